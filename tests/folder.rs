//! A compressed folder is not loaded by mistake, and gives every file of the original back.

use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use zipserv::checkpoint::{
    ErrorKind, Options, Progress, Report, compress, convert, decompress, inspect, open, verify,
};

mod support;
use support::*;

fn matrix(name: &str, shape: &[u64]) -> Tensor {
    let count = shape.iter().product::<u64>() as usize;
    tensor(name, "BF16", shape, weights(count, count as u32))
}

/// A folder with a folder `model` of files.
fn model(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join("model").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// The bytes of all files in a folder, by their paths in it.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for name in names(&next) {
            let path = next.join(name);
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
            found.insert(name.into(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Restores the folder `small` beside the original `model` and compares.
fn comes_back(folder: &Path) {
    let at = |name| folder.join(name);
    let verdict = verify(at("small"), at("model"), &options()).unwrap();
    assert_eq!(verdict.difference, None);
    inspect(at("small"), &options()).unwrap();
    decompress(at("small"), at("restored"), &options().force(true)).unwrap();
    assert!(contents(&at("restored")) == contents(&at("model")));
}

/// Compresses `model` to `small`, and checks that it comes back.
fn small(folder: &Path) -> Report {
    let report = compress(folder.join("model"), folder.join("small"), &options()).unwrap();
    comes_back(folder);
    each_form_becomes_the_other(folder);
    report
}

/// An archive comes back too, and either form is made of the other as it is of the original.
fn each_form_becomes_the_other(folder: &Path) {
    let made = tempfile::tempdir().unwrap();
    let (model, small) = (folder.join("model"), folder.join("small"));
    let at = |name| made.path().join(name);
    let archive = options().archive(true);
    compress(&model, at("archive"), &archive).unwrap();
    decompress(at("archive"), at("restored"), &options()).unwrap();
    assert!(contents(&at("restored")) == contents(&model));
    convert(at("archive"), at("small"), &options()).unwrap();
    assert!(contents(&at("small")) == contents(&small));
    convert(&small, at("again"), &archive).unwrap();
    assert!(contents(&at("again")) == contents(&at("archive")));
}

fn parsed(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_single_file_is_renamed_and_the_config_says_so() {
    // With every kind of text that may stand around the mark.
    for (config, expected) in [
        ("{}", r#"{"quantization_config": MARK}"#),
        (" { } \n", " {\"quantization_config\": MARK } \n"),
        (r#"{"a":1}"#, r#"{"a":1,"quantization_config": MARK}"#),
        (
            "{\n  \"z\": \"}\",\n  \"a\": {\"b\": []}\n}\n",
            "{\n  \"z\": \"}\",\n  \"a\": {\"b\": []},\n  \"quantization_config\": MARK\n}\n",
        ),
        (
            "{\r\n\t\"big\" : 1e400 , \"big\":12345678901234567890123\r\n}",
            "{\r\n\t\"big\" : 1e400 , \"big\":12345678901234567890123,\r\n\t\"quantization_config\": MARK\r\n}",
        ),
    ] {
        let weights = checkpoint(&[matrix("w", &[64, 128]), matrix("norm", &[7])]);
        let folder = model(&[
            ("config.json", config.as_bytes()),
            ("model.safetensors", &weights),
            ("generation_config.json", b"{}"),
            ("original/params.json", b"{}"),
        ]);
        let at = |name| folder.path().join(name);
        let report = small(folder.path());
        assert!(report.warnings.is_empty());
        assert_eq!((report.files.len(), report.other_files), (1, 3));
        assert_eq!(report.files[0].path, Path::new("model.safetensors"));
        let stored: Vec<_> = report.tensors().map(|t| &*t.stored_name).collect();
        assert_eq!(stored, ["w.zipserv", "norm"]);

        let mut files = contents(&at("small"));
        let mark = r#"{"quant_method":"zipserv","weights":"model.zipserv.safetensors"}"#;
        let text = String::from_utf8(files.remove("config.json").unwrap()).unwrap();
        assert_eq!(text, expected.replace("MARK", mark));
        let others: Vec<_> = files.keys().map(String::as_str).collect();
        let expected = [
            "generation_config.json",
            "model.zipserv.safetensors",
            "original/params.json",
            "zipserv.json",
        ];
        assert_eq!(others, expected);
        let manifest = json!({"version": "1", "files": {
            "config.json": {"name": "config.json", "text": config},
            "model.zipserv.safetensors": {"name": "model.safetensors"},
        }});
        assert_eq!(parsed(at("small/zipserv.json")), manifest);
        assert_eq!(
            open(at("small")).unwrap().names().collect::<Vec<_>>(),
            ["w"]
        );
    }
}

#[test]
fn an_index_names_what_is_stored() {
    let first = checkpoint(&[matrix("a", &[64, 128]), matrix("norm", &[7])]);
    // A name that would be that of the compressed `a`: all shards get another suffix.
    let second = checkpoint(&[
        tensor("a.zipserv", "U8", &[4], vec![1, 2, 3, 4]),
        matrix("b", &[32, 256]),
    ]);
    let index = r#"{"metadata": {"total_size": 7, "note": "ж"}, "more": [1], "weight_map": {
        "b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors",
        "a.zipserv": "model-00002-of-00002.safetensors", "norm": "model-00001-of-00002.safetensors",
        "nowhere": "model-00001-of-00002.safetensors"}}"#;
    let folder = model(&[
        ("config.json", b"{}"),
        ("model-00001-of-00002.safetensors", &first),
        ("model-00002-of-00002.safetensors", &second),
        ("model.safetensors.index.json", index.as_bytes()),
    ]);
    let at = |name| folder.path().join(name);
    let report = small(folder.path());
    let index = "model.zipserv.safetensors.index.json";
    let [first, second] = ["1", "2"].map(|n| format!("model-0000{n}-of-00002.zipserv.safetensors"));
    let listed = ["a", "norm", "b", "a.zipserv"];
    let listed = report.tensors().filter(|t| listed.contains(&&*t.name));
    let size: u64 = listed.map(|tensor| tensor.stored_bytes).sum();
    let expected = json!({
        "metadata": {"total_size": size, "note": "ж"},
        "more": [1],
        "weight_map": {
            "a.zipserv2": first, "norm": first, "nowhere": first,
            "a.zipserv": second, "b.zipserv2": second,
        },
    });
    assert_eq!(parsed(at("small").join(index)), expected);
    let mark = &parsed(at("small/config.json"))["quantization_config"];
    assert_eq!(*mark, json!({"quant_method": "zipserv", "weights": index}));

    let error = open(at("small")).unwrap_err();
    assert_eq!(error.tensor(), Some("nowhere"));
    let text = fs::read_to_string(at("small").join(index)).unwrap();
    let text = text.replace("\"nowhere\"", "\"norm\"");
    fs::write(at("small").join(index), text).unwrap();
    let opened = open(at("small")).unwrap();
    let names = opened
        .tensors()
        .map(|tensor| (tensor.name(), tensor.stored_name()));
    let expected = [
        ("a", "a.zipserv2"),
        ("a.zipserv", "a.zipserv"),
        ("b", "b.zipserv2"),
        ("norm", "norm"),
    ];
    assert_eq!(names.collect::<Vec<_>>(), expected);
}

#[test]
fn folders_in_the_folder_are_marked_each() {
    let weights = checkpoint(&[matrix("w", &[64, 128])]);
    let folder = model(&[
        ("model_index.json", b"{}"),
        // Not beside weights.
        ("config.json", b"{}"),
        ("scheduler/config.json", b"{}"),
        ("unet/config.json", b"{\"a\": 1}"),
        ("unet/diffusion_pytorch_model.safetensors", &weights),
        ("vae/a.safetensors", &weights),
        ("vae/b.safetensors", &weights),
        ("vae/config.json", b"{}"),
        ("text_encoder/model.fp16.safetensors", &weights),
        ("text_encoder/model.safetensors", &weights),
        ("text_encoder/config.json", b"{}"),
    ]);
    small(folder.path());
    let small = folder.path().join("small");
    assert_eq!(names(&small), names(folder.path().join("model")));
    for (part, weights) in [
        (".", None),
        ("scheduler", None),
        (
            "unet",
            Some(json!("diffusion_pytorch_model.zipserv.safetensors")),
        ),
        ("vae", Some(Value::Null)),
        ("text_encoder", Some(json!("model.zipserv.safetensors"))),
    ] {
        let mark = &parsed(small.join(part).join("config.json"))["quantization_config"];
        let method = weights.as_ref().map_or(Value::Null, |_| "zipserv".into());
        assert_eq!(mark["quant_method"], method, "{part}");
        assert_eq!(mark["weights"], weights.unwrap_or_default(), "{part}");
    }
    // A part is a folder of its own.
    let [part, original] = ["small/unet", "model/unet"].map(|name| folder.path().join(name));
    assert_eq!(
        verify(&part, &original, &options()).unwrap().difference,
        None
    );
    decompress(&part, folder.path().join("part"), &options()).unwrap();
    assert!(contents(&folder.path().join("part")) == contents(&original));
}

#[test]
fn a_config_that_cannot_be_marked_is_left_as_it_is() {
    for (config, why) in [
        (
            &b"{\"quantization_config\": null}"[..],
            "it has a quantization_config",
        ),
        (b"[]", "it is not a JSON object"),
        (b"{\"a\": NaN}", "it is not a JSON object"),
        (b"{\"a\": \"\xff\"}", "it is not a JSON object"),
        (b"", "it is not a JSON object"),
    ] {
        let weights = checkpoint(&[matrix("w", &[64, 128])]);
        let folder = model(&[("config.json", config), ("model.safetensors", &weights)]);
        let report = small(folder.path());
        assert_eq!(
            report.warnings,
            [format!("config.json is left as it is: {why}")]
        );
        assert_eq!(
            fs::read(folder.path().join("small/config.json")).unwrap(),
            config
        );
    }
}

/// Nothing shrinks, nothing is there, and names that compressed folders have.
#[test]
fn odd_files_come_back_under_their_names() {
    let folder = model(&[
        ("model.safetensors", &checkpoint(&[matrix("norm", &[7])])),
        (
            "model.zipserv.safetensors",
            &checkpoint(&[matrix("w", &[64, 128])]),
        ),
        ("model.zipserv.zipserv.safetensors", &file("{}", b"")),
        ("x.safetensors.index.json", b"{\"weight_map\":{}}"),
        (
            "x.zipserv.safetensors.index.json",
            b"{\"metadata\":null,\"weight_map\":{}}",
        ),
    ]);
    let at = |name| folder.path().join(name);
    small(folder.path());
    let expected = [
        "model.zipserv.safetensors",
        "model.zipserv.zipserv.safetensors",
        "model.zipserv.zipserv.zipserv.safetensors",
        "x.zipserv.safetensors.index.json",
        "x.zipserv.zipserv.safetensors.index.json",
        "zipserv.json",
    ];
    assert_eq!(names(at("small")), expected);
    let index = parsed(at("small/x.zipserv.zipserv.safetensors.index.json"));
    assert_eq!(index, json!({"metadata": {}, "weight_map": {}}));

    fs::create_dir(at("model/docs")).unwrap();
    fs::write(at("model/docs/zipserv.json"), b"{}").unwrap();
    for (input, manifest) in [("small", "zipserv.json"), ("model", "docs/zipserv.json")] {
        let error = compress(at(input), at("twice"), &options()).unwrap_err();
        assert_eq!(error.path(), at(input).join(manifest));
        assert!(matches!(error.kind(), ErrorKind::ManifestName));
    }
    assert_eq!(names(folder.path()), ["model", "restored", "small"]);
}

/// Folders as development versions wrote them: every file under its own name, and no manifest.
#[test]
fn folders_without_a_manifest_come_back() {
    let shard = |name| checkpoint(&[matrix(name, &[64, 128])]);
    let (first, second) = (shard("a"), shard("b"));
    let index = br#"{"weight_map":{"a":"1.safetensors","b":"2.zipserv.safetensors"}}"#;
    let folder = model(&[
        ("config.json", b"{\"quantization_config\": {}}"),
        ("1.safetensors", &first),
        ("2.zipserv.safetensors", &second),
        ("model.safetensors.index.json", index),
    ]);
    let at = |name| folder.path().join(name);
    fs::create_dir(at("small")).unwrap();
    for name in names(at("model")) {
        let (from, to) = (at("model").join(&name), at("small").join(&name));
        match name.ends_with(".safetensors") {
            true => drop(compress(from, to, &options()).unwrap()),
            false => drop(fs::copy(from, to).unwrap()),
        }
    }
    comes_back(folder.path());
    let opened = open(at("small")).unwrap();
    assert_eq!(opened.names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn wrong_manifests_are_refused() {
    let folder = model(&[
        ("config.json", b"{}"),
        ("model.safetensors", &checkpoint(&[matrix("w", &[64, 128])])),
    ]);
    let at = |name| folder.path().join(name);
    small(folder.path());
    fs::remove_dir_all(at("restored")).unwrap();
    let file = "model.zipserv.safetensors";
    let twice = "names `b`, which two files would be restored to";
    for (files, expected) in [
        (
            json!({file: {"name": "../b"}}),
            "names `../b`, which is not a file name",
        ),
        (
            json!({file: {"name": "/b"}}),
            "names `/b`, which is not a file name",
        ),
        (
            json!({file: {"name": "b/"}}),
            "names `b/`, which is not a file name",
        ),
        (
            json!({file: {"name": ""}}),
            "names ``, which is not a file name",
        ),
        (
            json!({"../a": {"name": "b"}}),
            "names `../a`, which is not a file name",
        ),
        (
            json!({"a": {"name": "b"}}),
            "names `a`, which does not exist",
        ),
        (
            json!({file: {"name": "b"}, "config.json": {"name": "b", "text": ""}}),
            twice,
        ),
    ] {
        let manifest = json!({"version": "1", "files": files});
        fs::write(at("small/zipserv.json"), manifest.to_string()).unwrap();
        let errors = [
            decompress(at("small"), at("restored"), &options()).unwrap_err(),
            verify(at("small"), at("model"), &options()).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.path(), at("small/zipserv.json"));
            assert_eq!(text(&error), expected);
        }
    }
    let refused = |manifest: &str| {
        fs::write(at("small/zipserv.json"), manifest).unwrap();
        text(&decompress(at("small"), at("restored"), &options()).unwrap_err())
    };
    let version = refused(r#"{"version":"2","files":{}}"#);
    assert_eq!(
        version,
        "version `2` is not supported; this build reads version 1"
    );
    let wrong = "not what zipserv writes into a compressed folder: ";
    assert!(refused("{}").starts_with(wrong));
    let deep = format!(r#"{{"version":"1","files":{}"#, "[".repeat(100_000));
    assert!(refused(&deep).starts_with(wrong));
    assert_eq!(names(folder.path()), ["model", "small"]);
}

/// Stops a job after so many calls.
struct Stop {
    after: u64,
    calls: AtomicU64,
}

impl Progress for Stop {
    fn is_cancelled(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) >= self.after
    }
}

#[test]
fn a_cancelled_job_leaves_nothing() {
    let weights = checkpoint(&[matrix("w", &[2048, 4096]), matrix("norm", &[7])]);
    let folder = model(&[
        ("config.json", b"{}"),
        ("model.safetensors", &weights),
        ("tokenizer.json", b"{}"),
    ]);
    let at = |name: &str| folder.path().join(name);
    compress(at("model"), at("small"), &options()).unwrap();
    let [file, stored] = ["model/model.safetensors", "small/model.zipserv.safetensors"].map(at);
    fs::write(at("there"), b"precious").unwrap();
    let before = (names(folder.path()), contents(folder.path()));

    type Job<'a> = &'a dyn Fn(&Options) -> Result<(), zipserv::checkpoint::Error>;
    let jobs: [Job; 12] = [
        &|options| compress(at("model"), at("output"), options).map(drop),
        &|options| compress(&file, at("output"), options).map(drop),
        &|options| compress(&file, at("there"), &options.force(true)).map(drop),
        &|options| compress(&file, at("output"), &options.archive(true)).map(drop),
        &|options| convert(at("small"), at("output"), &options.archive(true)).map(drop),
        &|options| convert(&stored, at("output"), options).map(drop),
        &|options| decompress(at("small"), at("output"), options).map(drop),
        &|options| decompress(&stored, at("output"), options).map(drop),
        &|options| verify(at("small"), at("model"), options).map(drop),
        &|options| verify(&stored, &file, options).map(drop),
        &|options| inspect(at("model"), options).map(drop),
        &|options| inspect(&stored, options).map(drop),
    ];
    for (job, run) in jobs.iter().enumerate() {
        let mut after = 0;
        loop {
            let calls = AtomicU64::new(0);
            let stop = Stop { after, calls };
            let Err(error) = run(&options().progress(&stop)) else {
                assert!(after > 3, "job {job} asks {after} times");
                break;
            };
            assert!(matches!(error.kind(), ErrorKind::Cancelled), "{error}");
            let now = (names(folder.path()), contents(folder.path()));
            assert!(now == before, "job {job} after {after}");
            after += 1;
        }
        let _ = fs::remove_file(at("output"));
        let _ = fs::remove_dir_all(at("output"));
        fs::write(at("there"), b"precious").unwrap();
    }
}

/// Mode and time of every file and folder, and of the root.
fn attributes(root: &Path) -> BTreeMap<String, (u32, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() {
            left.extend(names(&path).into_iter().map(|name| path.join(name)));
        }
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        found.insert(name.into(), (mode, metadata.modified().unwrap()));
    }
    found
}

#[test]
fn modes_and_times_are_kept() {
    let weights = checkpoint(&[matrix("a.weight", &[64, 128])]);
    let config = br#"{"model_type": "llama"}"#;
    let folder = model(&[
        ("model.safetensors", &weights),
        ("config.json", config),
        ("token.txt", b"secret"),
        ("bin/run.sh", b"#!/bin/sh"),
    ]);
    let at = |name: &str| folder.path().join(name);
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let modes = [
        ("model/model.safetensors", 0o600),
        ("model/config.json", 0o640),
        ("model/token.txt", 0o400),
        ("model/bin/run.sh", 0o755),
        ("model/bin", 0o750),
        ("model", 0o700),
    ];
    for (index, (name, mode)) in modes.into_iter().enumerate() {
        let path = File::open(at(name)).unwrap();
        let time = old + Duration::from_secs(1000 * index as u64);
        path.set_times(FileTimes::new().set_modified(time)).unwrap();
        path.set_permissions(Permissions::from_mode(mode)).unwrap();
    }
    compress(at("model"), at("small"), &options()).unwrap();
    let (model, small) = (attributes(&at("model")), attributes(&at("small")));
    for (name, expected) in &model {
        let stored = match &**name {
            "model.safetensors" => "model.zipserv.safetensors",
            name => name,
        };
        assert_eq!(small[stored], *expected, "{name}");
    }
    // It tells of both files that it is made of, so who may not read one of them may not read it.
    assert_eq!(small["zipserv.json"].0, 0o600);
    decompress(at("small"), at("restored"), &options()).unwrap();
    assert_eq!(attributes(&at("restored")), model);

    // A single file.
    let (one, stored, again) = (at("model/model.safetensors"), at("one"), at("again"));
    compress(&one, &stored, &options()).unwrap();
    decompress(&stored, &again, &options()).unwrap();
    for path in [stored, again] {
        assert_eq!(attributes(&path)[""], model["model.safetensors"]);
    }
}

/// While it is written, an output is its owner's alone.
#[test]
fn unfinished_outputs_are_private() {
    struct Look<'a> {
        folder: &'a Path,
        seen: AtomicU64,
    }
    impl Progress for Look<'_> {
        fn is_cancelled(&self) -> bool {
            for name in names(self.folder) {
                if name.starts_with(".zipserv-") {
                    let metadata = self.folder.join(name).metadata().unwrap();
                    assert_eq!(metadata.permissions().mode() & 0o077, 0);
                    self.seen.fetch_add(1, Ordering::Relaxed);
                }
            }
            false
        }
    }
    let weights = checkpoint(&[matrix("a.weight", &[64, 128])]);
    let folder = model(&[("model.safetensors", &weights)]);
    let at = |name: &str| folder.path().join(name);
    for (from, to) in [("model/model.safetensors", "one"), ("model", "small")] {
        let seen = AtomicU64::new(0);
        let look = Look {
            folder: folder.path(),
            seen,
        };
        compress(at(from), at(to), &options().progress(&look)).unwrap();
        assert!(look.seen.into_inner() > 0);
    }
}

#[test]
fn what_an_interrupted_run_has_left_goes() {
    let weights = checkpoint(&[matrix("a.weight", &[64, 128])]);
    let folder = model(&[("model.safetensors", &weights)]);
    let at = |name: &str| folder.path().join(name);
    fs::write(at(".zipserv-old.partial"), b"half").unwrap();
    fs::create_dir(at(".zipserv-dir.partial")).unwrap();
    fs::write(at(".zipserv-dir.partial/model.safetensors"), b"half").unwrap();
    // Another run may be about to lock this one.
    fs::write(at(".zipserv-new.partial"), b"new").unwrap();
    // This one is being written.
    fs::write(at(".zipserv-live.partial"), b"live").unwrap();
    let live = File::open(at(".zipserv-live.partial")).unwrap();
    live.try_lock().unwrap();
    // Not a run's: a link, and other names.
    fs::write(at("precious"), b"precious").unwrap();
    std::os::unix::fs::symlink(at("precious"), at(".zipserv-link.partial")).unwrap();
    fs::write(at(".zipserv-notes.txt"), b"notes").unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    for name in ["old", "dir", "live"] {
        let file = File::open(at(&format!(".zipserv-{name}.partial"))).unwrap();
        file.set_times(FileTimes::new().set_modified(old)).unwrap();
    }
    let report = compress(at("model"), at("small"), &options()).unwrap();
    let left: Vec<_> = names(folder.path())
        .into_iter()
        .filter(|name| name.starts_with('.'))
        .collect();
    let expected = ["link.partial", "live.partial", "new.partial", "notes.txt"];
    assert_eq!(left, expected.map(|name| format!(".zipserv-{name}")));
    assert_eq!(fs::read(at("precious")).unwrap(), b"precious");
    let mut warnings = report.warnings;
    warnings.sort();
    for (warning, name) in warnings.iter().zip(["dir", "old"]) {
        assert!(warning.contains(&format!(
            ".zipserv-{name}.partial, which an interrupted run had left"
        )));
    }
    assert_eq!(warnings.len(), 2);
}

/// As `hf download` leaves it: blobs, and snapshots of links to them.
#[test]
fn a_hub_cache_is_refused_with_the_snapshot_to_give() {
    let weights = checkpoint(&[matrix("a.weight", &[64, 128])]);
    let cache = "models--org--name";
    let folder = model(&[]);
    let at = |name: &str| folder.path().join(name);
    let make = |name: &str, bytes: &[u8]| {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), bytes).unwrap();
    };
    make(&format!("hub/{cache}/blobs/0123"), &weights);
    make(&format!("hub/{cache}/blobs/4567"), b"{}");
    make(&format!("hub/{cache}/refs/main"), b"bbbb");
    for snapshot in ["aaaa", "bbbb"] {
        let path = format!("hub/{cache}/snapshots/{snapshot}");
        fs::create_dir_all(at(&path)).unwrap();
        for (name, blob) in [("model.safetensors", "0123"), ("config.json", "4567")] {
            let blob = format!("../../blobs/{blob}");
            std::os::unix::fs::symlink(blob, at(&path).join(name)).unwrap();
        }
    }
    let cache = format!("hub/{cache}");
    let snapshot = at(&format!("{cache}/snapshots/bbbb"));
    let refused = |input: &str| {
        let errors = [
            compress(at(input), at("small"), &options()).unwrap_err(),
            decompress(at(input), at("small"), &options()).unwrap_err(),
            inspect(at(input), &options()).unwrap_err(),
            open(at(input)).unwrap_err(),
            verify(&snapshot, at(input), &options()).unwrap_err(),
        ];
        for error in &errors {
            assert_eq!(error.path(), at(&cache));
            assert_eq!(text(error), text(&errors[0]));
        }
        text(&errors[0])
    };
    let said = "a cache of the Hugging Face hub: give a snapshot in it";
    let expected = format!("{said}, such as {}", snapshot.display());
    // By itself, and among others.
    for input in [&*cache, "hub"] {
        assert_eq!(refused(input), expected);
    }
    // Without a branch of that name, or with one that leads elsewhere.
    for main in ["cccc", "", "../../../..", "/tmp"] {
        fs::write(at(&cache).join("refs/main"), main).unwrap();
        let said = refused(&cache);
        assert!(said.ends_with("snapshots/aaaa") || said.ends_with("snapshots/bbbb"));
    }
    assert_eq!(names(folder.path()), ["hub"]);

    // The snapshot is a folder as others are; what it has is stored once.
    compress(&snapshot, at("small"), &options()).unwrap();
    assert_eq!(
        verify(at("small"), &snapshot, &options())
            .unwrap()
            .difference,
        None
    );
    let stored = ["config.json", "model.zipserv.safetensors", "zipserv.json"];
    assert_eq!(names(at("small")), stored);
    assert!(
        at("small")
            .join(stored[1])
            .symlink_metadata()
            .unwrap()
            .is_file()
    );

    fs::remove_dir_all(at(&cache).join("snapshots")).unwrap();
    fs::create_dir(at(&cache).join("snapshots")).unwrap();
    let error = inspect(at(&cache), &options()).unwrap_err();
    assert_eq!(text(&error), said);
}

#[test]
fn large_files_that_are_copied_are_named() {
    let weights = checkpoint(&[matrix("a.weight", &[64, 128])]);
    let folder = model(&[
        ("model.safetensors", &weights),
        ("tokenizer.json", b"{}"),
        ("sub/.git/config", b"[core]"),
    ]);
    let at = |name: &str| folder.path().join("model").join(name);
    // Holes take no room.
    let make = |name: &str, bytes: u64| File::create(at(name)).unwrap().set_len(bytes).unwrap();
    let said = || {
        let output = folder.path().join("small");
        let report = compress(at(""), output, &options().force(true)).unwrap();
        report.warnings
    };
    make("pytorch_model.bin", 100_000_000);
    assert_eq!(said(), [""; 0]);
    make("pytorch_model.bin", 130_000_000);
    make("sub/.git/pack", 90_000_000);
    make("sub/.git/other", 70_000_000);
    let expected = "4 large files are copied as they are, 0.29 GB: sub/.git (3 files, 0.16 GB), pytorch_model.bin (0.13 GB)";
    assert_eq!(said(), [expected]);
}

#[test]
fn mistakes_of_an_index_are_named() {
    let shards = ["1", "2"].map(|name| checkpoint(&[matrix(name, &[64, 128])]));
    let folder = model(&[("1.safetensors", &shards[0]), ("2.safetensors", &shards[1])]);
    let at = |name: &str| folder.path().join(name);
    let said = |index: Value| {
        let name = "model/model.safetensors.index.json";
        fs::write(at(name), index.to_string()).unwrap();
        let report = compress(at("model"), at("small"), &options().force(true)).unwrap();
        comes_back(folder.path());
        assert_eq!(
            inspect(at("model"), &options()).unwrap().warnings,
            report.warnings
        );
        report.warnings
    };
    let bytes = 2 * 64 * 128;
    let weight_map = json!({"1": "1.safetensors", "2": "2.safetensors"});
    for total in [json!(2 * bytes), json!(2.0 * f64::from(bytes)), Value::Null] {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        assert_eq!(said(index), [""; 0]);
    }
    let index = json!({"metadata": {"total_size": 7}, "weight_map": weight_map});
    let name = "model.safetensors.index.json";
    assert_eq!(
        said(index),
        [format!(
            "{name} says total_size 7, but the tensors that it names have {} bytes",
            2 * bytes
        )]
    );
    // What it says of the whole is no wonder then.
    let index = json!({"metadata": {"total_size": 7}, "weight_map": {
        "1": "2.safetensors", "2": "2.safetensors", "3": "1.safetensors", "4\n": "1.safetensors"}});
    assert_eq!(
        said(index),
        [
            format!("{name} names 2 tensors that no file has, such as `3` in 1.safetensors"),
            format!(
                "{name} names 1 tensor in the wrong file, such as `1` in 2.safetensors, which is in 1.safetensors"
            ),
        ]
    );
    // A shard that is not there stays an error.
    fs::remove_file(at("model/2.safetensors")).unwrap();
    let error = compress(at("model"), at("smaller"), &options()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::IndexShard { .. }));
}
