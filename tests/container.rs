//! Compressed checkpoints are safetensors files, and give the original back byte for byte.

use std::{fs, io::Write, os::unix::fs::symlink, path::Path};

use safetensors::{Dtype, SafeTensors};
use tempfile::tempdir;
use zipserv::checkpoint::{
    self, DifferenceKind, ErrorKind, Progress, Storage, compress, decompress, inspect, verify,
};

mod support;
use support::*;

fn bf16(name: &str, shape: &[u64], bits: impl Fn(usize) -> u16) -> Tensor {
    let count = shape.iter().product::<u64>() as usize;
    let bytes = (0..count).flat_map(|i| bits(i).to_le_bytes()).collect();
    tensor(name, "BF16", shape, bytes)
}

fn matrix(name: &str, shape: &[u64]) -> Tensor {
    let count = shape.iter().product::<u64>() as usize;
    tensor(name, "BF16", shape, weights(count, count as u32))
}

/// The names of the tensors in a file.
fn tensor_names(file: &[u8]) -> Vec<String> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let mut names: Vec<_> = tensors.names().into_iter().map(String::from).collect();
    names.sort();
    names
}

#[test]
fn hostile_shapes_come_back() {
    let shapes: &[&[u64]] = &[
        &[0, 5],
        &[5, 0],
        &[0, 0],
        &[1, 1],
        &[1, 4097],
        &[4097, 1],
        &[33, 65],
        &[31, 63],
        &[127, 129],
        &[3, 5, 7],
        &[40, 50, 60],
        &[2, 0, 3],
        &[1, 1, 1, 1, 200, 300],
        &[],
        &[7],
        &[0],
    ];
    let mut all = Vec::new();
    for shape in shapes {
        all.push(matrix(&format!("{shape:?}"), shape));
        round_trip(&checkpoint(&all[all.len() - 1..]));
    }
    round_trip(&checkpoint(&all));
    // An odd tensor in front, so that nothing is aligned.
    all.insert(0, tensor("odd", "U8", &[3], vec![1, 2, 3]));
    round_trip(&checkpoint(&all));
}

#[test]
fn hostile_weights_come_back() {
    let shape = &[256, 256];
    let tensors = [
        bf16("all patterns", shape, |i| i as u16),
        bf16("all outliers", shape, |i| ((i * 37 % 256) << 7) as u16),
        bf16("all equal", shape, |_| 0x3c7e),
        bf16("all zero", shape, |_| 0),
        bf16("negative zero", shape, |_| 0x8000),
        bf16("all ones", shape, |_| 0xffff),
        bf16("many NaNs", shape, |i| match i % 3 {
            0 => 0x7fc0 | i as u16 & 0x803f,
            1 => 0xff80,
            _ => 0x3c00 | i as u16 & 0xff,
        }),
        bf16("subnormal", shape, |i| i as u16 & 0x807f),
    ];
    for tensor in &tensors {
        round_trip(&checkpoint(std::slice::from_ref(tensor)));
    }
    let compressed = round_trip(&checkpoint(&tensors));
    // Spread over all exponents, a matrix would grow: it stays as it was.
    let names = tensor_names(&compressed);
    assert!(names.contains(&"all patterns".into()), "{names:?}");
    assert!(names.contains(&"all equal.zipserv".into()), "{names:?}");
}

#[test]
fn other_dtypes_pass_through() {
    let mut tensors = vec![matrix("matrix", &[64, 128])];
    let dtypes = [
        ("F64", 8),
        ("I64", 8),
        ("F32", 4),
        ("F16", 2),
        ("BOOL", 1),
        ("U8", 1),
        ("F8_E4M3", 1),
        ("F8_E5M2", 1),
        ("F8_E8M0", 1),
    ];
    for (dtype, size) in dtypes {
        let bytes = weights(64 * 64 * size / 2, size as u32);
        tensors.push(tensor(&format!("of {dtype}"), dtype, &[64, 64], bytes));
    }
    let original = checkpoint(&tensors);
    let compressed = round_trip(&original);
    let before = SafeTensors::deserialize(&original).unwrap();
    let after = SafeTensors::deserialize(&compressed).unwrap();
    for (dtype, _) in dtypes {
        let name = format!("of {dtype}");
        let (before, after) = (before.tensor(&name).unwrap(), after.tensor(&name).unwrap());
        assert_eq!(before.dtype(), after.dtype());
        assert_eq!(before.shape(), after.shape());
        assert!(before.data() == after.data());
    }
    let blob = after.tensor("matrix.zipserv").unwrap();
    assert_eq!(blob.dtype(), Dtype::U8);
    assert_eq!(blob.shape(), [blob.data().len()]);
    assert!(blob.data().starts_with(b"ZIPSERV\0"));

    // A dtype of the future, which no other reader opens yet, and four-bit floats.
    tensors.push(tensor("future", "F3_FUTURE", &[10, 10], vec![7; 38]));
    tensors.push(tensor("four bits", "F4", &[3, 2], vec![7; 3]));
    round_trip(&checkpoint(&tensors));
}

#[test]
fn odd_names_come_back() {
    let names = [
        "",
        "重み.ß.🦀",
        "a \"quoted\" \\ name",
        "line\nfeed\ttab\u{0}\u{1f}",
        "../../etc/passwd",
        "/",
    ];
    let tensors: Vec<_> = names.map(|name| matrix(name, &[64, 128])).into();
    let compressed = round_trip(&checkpoint(&tensors));
    for name in names {
        assert!(tensor_names(&compressed).contains(&format!("{name}.zipserv")));
    }
}

#[test]
fn names_that_end_in_the_suffix_do_not_collide() {
    let compressed = round_trip(&checkpoint(&[
        matrix("a", &[64, 128]),
        tensor("a.zipserv", "U8", &[4], vec![1, 2, 3, 4]),
        matrix("b.zipserv", &[64, 128]),
    ]));
    assert_eq!(
        tensor_names(&compressed),
        ["a.zipserv", "a.zipserv2", "b.zipserv.zipserv2"]
    );
    round_trip(&checkpoint(&[
        matrix("a", &[64, 128]),
        matrix("a.zipserv", &[64, 128]),
        matrix("a.zipserv2", &[64, 128]),
    ]));
}

#[test]
fn files_without_tensors_come_back() {
    round_trip(&file("{}", b""));
    round_trip(&file("{}      ", b""));
    round_trip(&file(r#"{"__metadata__":{}}"#, b""));
    round_trip(&file(r#"{"__metadata__":{"a":"b"}}"#, b""));
}

#[test]
fn headers_come_back_as_they_were_written() {
    let data = weights(64 * 128, 1);
    let entry = r#""w":{"dtype":"BF16","shape":[64,128],"data_offsets":[0,16384]}"#;
    let info = r#" "shape" :[64 ,128], "data_offsets":[ 0,16384],"dtype":"\u0042F16" "#;
    for json in [
        format!("{{{entry}}}"),
        format!("{{{entry}}}       "),
        format!(" \n\t{{ {entry}\r\n}}\n\n"),
        format!(r#"{{ "\u0077" : {{{info}}} }}"#),
        format!(r#"{{{entry},"__metadata__":{{"format":"pt","ключ":"\"значение\""}}}}"#),
        format!(r#"{{"__metadata__":null,{entry}}}"#),
        // Keys of ours, but not the one that makes a file a compressed one.
        format!(
            r#"{{"__metadata__":{{"zipserv.header":"{{}}","zipserv.suffix":".x","zipserv.crc32":"?"}},{entry}}}"#
        ),
        format!(
            r#"{{{},"a":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}}}"#,
            entry
        ),
    ] {
        round_trip(&file(&json, &data));
    }
}

#[test]
fn metadata_stays() {
    let json = r#"{"__metadata__":{"format":"pt","name":"a \"b\""}}"#;
    let compressed = round_trip(&file(json, b""));
    let (_, header) = SafeTensors::read_metadata(&compressed).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["format"], "pt");
    assert_eq!(metadata["name"], "a \"b\"");
    assert_eq!(metadata["zipserv.version"], "1");
    assert_eq!(metadata["zipserv.header"], json);
}

#[test]
fn a_sharded_folder_comes_back() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |name: &str, bytes: &[u8]| fs::write(at(name), bytes).unwrap();
    fs::create_dir_all(at("model/vae/empty")).unwrap();
    fs::create_dir(at("cache")).unwrap();
    let shard = |seed: u64| checkpoint(&[matrix("w", &[64, 128 * seed])]);
    put("model/model-00001-of-00002.safetensors", &shard(1));
    put("model/vae/vae.safetensors", &shard(2));
    put("cache/blob", &shard(3));
    put("cache/tokens", b"tokens");
    // Download caches are made of links.
    let link = |from: &str, to: &str| symlink(at(from), at(to)).unwrap();
    link("cache/blob", "model/model-00002-of-00002.safetensors");
    link("cache/tokens", "model/tokenizer.json");
    put("model/config.json", b"{}");
    // What a killed run has left is not copied, nor read.
    put("model/.zipserv-AbCdEf.partial", b"half");
    fs::create_dir(at("model/.zipserv-123456.partial")).unwrap();
    put("model/.zipserv-123456.partial/a.safetensors", b"half");
    put(
        "model/model.safetensors.index.json",
        br#"{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
    );

    let report = compress(at("model"), at("small"), &options()).unwrap();
    assert_eq!((report.files.len(), report.other_files), (3, 3));
    assert!(report.tensors().all(|t| t.storage == Storage::Compressed));
    let verdict = verify(at("small"), at("model"), &options()).unwrap();
    assert_eq!(verdict.difference, None);
    assert_eq!(inspect(at("small"), &options()).unwrap().files.len(), 3);
    decompress(at("small"), at("restored"), &options()).unwrap();
    for name in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "vae/vae.safetensors",
        "tokenizer.json",
        "config.json",
        "model.safetensors.index.json",
    ] {
        let restored = at("restored").join(name);
        assert!(restored.symlink_metadata().unwrap().is_file());
        assert_eq!(sha256(at("model").join(name)), sha256(restored), "{name}");
    }
    assert!(at("restored/vae/empty").is_dir());
    let hidden = |folder: &str| names(at(folder)).iter().any(|name| name.starts_with('.'));
    assert!(!hidden("small") && !hidden("restored"));
    assert_eq!(
        names(folder.path()),
        ["cache", "model", "restored", "small"]
    );

    // An existing folder is replaced only by force, and as a whole.
    put("small/stale", b"");
    let error = compress(at("model"), at("small"), &options()).unwrap_err();
    assert_eq!(text(&error), "already exists; --force replaces it");
    compress(at("model"), at("small"), &options().force(true)).unwrap();
    assert!(!at("small/stale").exists());

    // A difference in another file counts, too.
    put("small/tokenizer.json", b"[]");
    let difference = verify(at("small"), at("model"), &options()).unwrap();
    let difference = difference.difference.unwrap();
    assert_eq!(difference.file, Path::new("tokenizer.json"));
    assert_eq!(difference.kind, DifferenceKind::Bytes { offset: 0 });
}

/// Who does not know of zipserv finds no file of tensors under a name that it looks for.
#[test]
fn a_compressed_folder_is_not_loaded_by_mistake() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |name: &str, bytes: &[u8]| fs::write(at(name), bytes).unwrap();
    fs::create_dir_all(at("model/part")).unwrap();
    put(
        "model/a-1.safetensors",
        &checkpoint(&[matrix("w", &[64, 128])]),
    );
    put(
        "model/a-2.safetensors",
        &checkpoint(&[matrix("v", &[64, 128])]),
    );
    put(
        "model/part/b.safetensors",
        &checkpoint(&[matrix("u", &[64, 128])]),
    );
    let index = br#"{"weight_map": {"w": "a-1.safetensors", "v": "a-2.safetensors"}}"#;
    put("model/a.safetensors.index.json", index);
    let config = "{\n    \"hidden_size\": 64,\n    \"name\": \"\u{e9}}\"\n}\n";
    put("model/config.json", config.as_bytes());
    put("model/part/config.json", b"{}");
    compress(at("model"), at("small"), &options()).unwrap();

    assert_eq!(
        names(at("small")),
        [
            "a-1.zipserv.safetensors",
            "a-2.zipserv.safetensors",
            "a.zipserv.safetensors.index.json",
            "config.json",
            "part",
            "zipserv-original",
        ]
    );
    assert_eq!(
        names(at("small/part")),
        ["b.zipserv.safetensors", "config.json"]
    );
    let own = "\"quantization_config\": {\n    \"quant_method\": \"zipserv\"\n  }\n}";
    let expected = config.replace("\n}", &format!(",\n  {own}"));
    assert_eq!(
        fs::read_to_string(at("small/config.json")).unwrap(),
        expected
    );
    let part = fs::read_to_string(at("small/part/config.json")).unwrap();
    assert_eq!(part, format!("{{\n  {own}"));
    let json = fs::read(at("small/a.zipserv.safetensors.index.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let map = serde_json::json!({"v.zipserv": "a-2.zipserv.safetensors", "w.zipserv": "a-1.zipserv.safetensors"});
    assert_eq!(json["weight_map"], map);

    assert_eq!(
        verify(at("small"), at("model"), &options())
            .unwrap()
            .difference,
        None
    );
    let small = checkpoint::open(at("small")).unwrap();
    assert_eq!(small.names().collect::<Vec<_>>(), ["v", "w"]);
    decompress(at("small"), at("restored"), &options()).unwrap();
    for name in [
        "a-1.safetensors",
        "config.json",
        "part/config.json",
        "a.safetensors.index.json",
    ] {
        assert_eq!(
            fs::read(at("restored").join(name)).unwrap(),
            fs::read(at("model").join(name)).unwrap()
        );
    }
    assert_eq!(names(at("restored")), names(at("model")));

    // Where loaders look by default, they are told what there is.
    for (given, weights) in [
        (
            "model/model.safetensors.index.json",
            "model.zipserv.safetensors.index.json",
        ),
        ("model/model.safetensors", "model.zipserv.safetensors"),
    ] {
        match given.ends_with("json") {
            true => put(given, index),
            false => put(given, &checkpoint(&[matrix("m", &[64, 128])])),
        }
        compress(at("model"), at("small"), &options().force(true)).unwrap();
        let json = fs::read(at("small/config.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let expected = serde_json::json!({"quant_method": "zipserv", "weights": weights});
        assert_eq!(json["quantization_config"], expected);
        assert!(at("small").join(weights).is_file());
    }

    // A quantization of its own stays, and what is no object.
    for config in ["{\"quantization_config\": {}}", "[]", "{"] {
        put("model/config.json", config.as_bytes());
        compress(at("model"), at("small"), &options().force(true)).unwrap();
        assert_eq!(fs::read_to_string(at("small/config.json")).unwrap(), config);
        assert_eq!(
            verify(at("small"), at("model"), &options())
                .unwrap()
                .difference,
            None
        );
    }
    // Names that compressed folders need.
    put(
        "model/c.zipserv.safetensors",
        &checkpoint(&[matrix("t", &[64, 128])]),
    );
    let error = compress(at("model"), at("other"), &options()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Reserved));
    assert!(!at("other").exists());
}

/// As versions wrote it that kept all names.
#[test]
fn a_folder_of_old_names_is_restored() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |name: &str, bytes: &[u8]| fs::write(at(name), bytes).unwrap();
    fs::create_dir_all(at("model")).unwrap();
    fs::create_dir_all(at("small")).unwrap();
    for (name, tensor) in [("a-1.safetensors", "w"), ("a-2.safetensors", "v")] {
        let name = |folder: &str| format!("{folder}/{name}");
        put(&name("model"), &checkpoint(&[matrix(tensor, &[64, 128])]));
        compress(at(&name("model")), at(&name("small")), &options()).unwrap();
    }
    let index = br#"{"weight_map": {"w": "a-1.safetensors", "v": "a-2.safetensors"}}"#;
    for name in ["model", "small"] {
        put(&format!("{name}/a.safetensors.index.json"), index);
        put(&format!("{name}/config.json"), b"{}");
    }
    assert_eq!(
        verify(at("small"), at("model"), &options())
            .unwrap()
            .difference,
        None
    );
    assert_eq!(
        checkpoint::open(at("small"))
            .unwrap()
            .names()
            .collect::<Vec<_>>(),
        ["v", "w"]
    );
    decompress(at("small"), at("restored"), &options()).unwrap();
    assert_eq!(names(at("restored")), names(at("model")));
    for name in names(at("model")) {
        assert_eq!(
            fs::read(at("restored").join(&name)).unwrap(),
            fs::read(at("model").join(&name)).unwrap()
        );
    }
}

/// A job that is told to stop leaves nothing.
#[test]
fn a_cancelled_job_leaves_nothing() {
    struct Stop;
    impl Progress for Stop {
        fn is_cancelled(&self) -> bool {
            true
        }
    }
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("model")).unwrap();
    fs::write(
        at("model/a.safetensors"),
        checkpoint(&[matrix("w", &[64, 128])]),
    )
    .unwrap();
    compress(at("model"), at("small"), &options()).unwrap();
    let stop = options().progress(&Stop);
    let errors = [
        compress(at("model"), at("other"), &stop).map(|_| ()),
        compress(at("model/a.safetensors"), at("other"), &stop).map(|_| ()),
        decompress(at("small"), at("other"), &stop).map(|_| ()),
        verify(at("small"), at("model"), &stop).map(|_| ()),
        inspect(at("small"), &stop).map(|_| ()),
    ];
    for error in errors {
        assert!(matches!(error.unwrap_err().kind(), ErrorKind::Cancelled));
    }
    assert_eq!(names(folder.path()), ["model", "small"]);
}

#[test]
fn folders_that_must_not_be_written_to_are_refused() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("model/sub")).unwrap();
    fs::create_dir(at("home")).unwrap();
    fs::write(at("home/letter"), b"dear").unwrap();
    let original = checkpoint(&[matrix("w", &[64, 128])]);
    fs::write(at("model/a.safetensors"), original).unwrap();
    let by_force = options().force(true);
    for (target, expected) in [
        ("model", "it contains the input"),
        ("model/new", "it is inside the input"),
        ("model/sub", "it is inside the input"),
        ("home", "it is a folder without a .safetensors file"),
        ("home/letter", "it is not a folder"),
    ] {
        let error = compress(at("model"), at(target), &by_force).unwrap_err();
        let expected = format!("cannot be replaced by the output: {expected}");
        assert_eq!(text(&error), expected);
    }
    assert_eq!(names(at("model")), ["a.safetensors", "sub"]);
    assert_eq!(names(at("home")), ["letter"]);
    assert_eq!(names(folder.path()), ["home", "model"]);
}

#[test]
fn outputs_are_not_overwritten() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let original = checkpoint(&[matrix("w", &[64, 128])]);
    fs::write(at("original"), &original).unwrap();
    fs::write(at("there"), b"precious").unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    symlink(at("original"), at("link")).unwrap();
    for target in ["there", "original", "dangling", "link"] {
        let error = compress(at("original"), at(target), &options()).unwrap_err();
        assert_eq!(text(&error), "already exists; --force replaces it");
    }
    let by_force = options().force(true);
    for target in ["original", "link", "../original"] {
        let target = match target.strip_prefix("../") {
            Some(name) => folder
                .path()
                .join("..")
                .join(folder.path().file_name().unwrap())
                .join(name),
            None => at(target),
        };
        let error = compress(at("original"), target, &by_force).unwrap_err();
        assert_eq!(
            text(&error),
            "cannot be replaced by the output: it is the input"
        );
    }
    assert_eq!(fs::read(at("there")).unwrap(), b"precious");
    assert!(fs::read(at("original")).unwrap() == original);

    compress(at("original"), at("there"), &by_force).unwrap();
    // An empty folder, as it may be made for an output, is still not a file.
    fs::create_dir(at("folder")).unwrap();
    let error = compress(at("original"), at("folder"), &by_force).unwrap_err();
    assert_eq!(
        text(&error),
        "cannot be replaced by the output: it is a folder"
    );
    assert!(compress(at("original"), at("no/such/folder"), &options()).is_err());
    assert_eq!(
        names(folder.path()),
        ["dangling", "folder", "link", "original", "there"]
    );
}

#[test]
fn what_is_compressed_is_not_compressed_again() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("original"), checkpoint(&[matrix("w", &[64, 128])])).unwrap();
    compress(at("original"), at("compressed"), &options()).unwrap();
    let error = compress(at("compressed"), at("twice"), &options()).unwrap_err();
    assert_eq!(text(&error), "already compressed by zipserv");
    let plain = "not compressed by zipserv: no `zipserv.version` in its metadata";
    let error = decompress(at("original"), at("restored"), &options()).unwrap_err();
    assert_eq!(text(&error), plain);
    let error = verify(at("original"), at("original"), &options()).unwrap_err();
    assert_eq!(text(&error), plain);
    assert_eq!(names(folder.path()), ["compressed", "original"]);
}

#[test]
fn a_pipe_is_refused_without_waiting_for_it() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let error = inspect(&pipe, &options()).unwrap_err();
    assert_eq!(text(&error), "neither a file nor a folder");
}

#[test]
fn differences_are_located() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let original = checkpoint(&[
        tensor("first", "F32", &[4], vec![0; 16]),
        matrix("w", &[64, 128]),
    ]);
    fs::write(at("original"), &original).unwrap();
    compress(at("original"), at("compressed"), &options()).unwrap();
    let difference = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut other = original.clone();
        change(&mut other);
        fs::write(at("other"), other).unwrap();
        let verdict = verify(at("compressed"), at("other"), &options()).unwrap();
        verdict.difference.unwrap().kind
    };
    let data = original.len() - 64 * 128 * 2;
    assert_eq!(
        difference(&|bytes| {
            bytes[data + 2 * (3 * 128 + 5) + 1] ^= 1;
            bytes[data + 2 * (4 * 128 + 5)] ^= 1;
        }),
        DifferenceKind::Tensor {
            name: "w".into(),
            index: 3 * 128 + 5,
            coordinates: vec![3, 5]
        }
    );
    assert_eq!(
        difference(&|bytes| bytes[data - 1] ^= 1),
        DifferenceKind::Tensor {
            name: "first".into(),
            index: 3,
            coordinates: vec![3]
        }
    );
    assert_eq!(
        difference(&|bytes| bytes[9] ^= 1),
        DifferenceKind::Header { offset: 9 }
    );
    let whole = original.len() as u64;
    assert_eq!(
        difference(&|bytes| bytes.truncate(data + 10)),
        DifferenceKind::Length {
            restored: whole,
            original: data as u64 + 10
        }
    );
}

#[test]
fn threads_do_not_change_the_result() {
    let folder = tempdir().unwrap();
    let at = |name: String| folder.path().join(name);
    // The large one takes several jobs, the wide one is decoded in panels.
    let original = checkpoint(&[
        matrix("large", &[1500, 1100]),
        matrix("wide", &[40, 70_000]),
        matrix("small", &[64, 128]),
        tensor("other", "F32", &[1000, 1000], weights(2_000_000, 9)),
    ]);
    fs::write(at("original".into()), original).unwrap();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            let (small, restored) = (at(format!("{threads}")), at(format!("{threads}r")));
            compress(at("original".into()), &small, &options()).unwrap();
            decompress(&small, &restored, &options()).unwrap();
            assert_eq!(sha256(&small), sha256(at("1".into())));
            assert_eq!(sha256(restored), sha256(at("original".into())));
        });
    }
}

/// `ZIPSERV_PYTHON` names a Python that has `safetensors` and `torch`, if `python3` has not.
#[test]
fn the_stock_python_package_opens_it() {
    let python = std::env::var("ZIPSERV_PYTHON").unwrap_or("python3".into());
    let run = |arguments: &[&std::ffi::OsStr]| {
        let output = std::process::Command::new(&python).args(arguments).output();
        output.map_or((false, String::new()), |output| {
            let text = String::from_utf8_lossy(&output.stderr).into();
            (output.status.success(), text)
        })
    };
    if !run(&["-c".as_ref(), "import safetensors, torch".as_ref()]).0 {
        // Not by `println!`, which the test harness keeps from sight.
        let line = format!("SKIPPED: {python} lacks safetensors or torch\n");
        return std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors = [
        matrix("a \"name\"", &[64, 128]),
        matrix("b", &[3, 40, 500]),
        matrix("vector", &[7]),
        matrix("empty", &[0, 5]),
        tensor("f32", "F32", &[3, 3], weights(18, 3)),
        tensor("bool", "BOOL", &[3], vec![0, 1, 1]),
        tensor("f8", "F8_E4M3", &[2, 2], vec![1, 2, 3, 4]),
    ];
    fs::write(at("original"), checkpoint(&tensors)).unwrap();
    compress(at("original"), at("compressed"), &options()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/stock_reader.py");
    let (compressed, original) = (at("compressed"), at("original"));
    let (fine, text) = run(&[script.as_ref(), compressed.as_ref(), original.as_ref()]);
    assert!(fine, "{text}");
}
