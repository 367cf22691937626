//! Compressed checkpoints are safetensors files, and give the original back byte for byte.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use safetensors::{Dtype, SafeTensors};
use tempfile::tempdir;
use zipserv::checkpoint::{
    DifferenceKind, Error, ErrorKind, Options, Progress, Storage, compress, decompress, inspect,
    verify,
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

/// Bytes that nothing makes shorter.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let bytes = (0..count).map(|_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 56) as u8
    });
    bytes.collect()
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
    // Spread over all exponents, a matrix would grow: these are planes.
    let stored = SafeTensors::deserialize(&compressed).unwrap();
    let layout = |name: &str| stored.tensor(&format!("{name}.zipserv")).unwrap().data()[10];
    assert_eq!((layout("all patterns"), layout("all outliers")), (4, 4));
    assert_eq!((layout("all equal"), layout("many NaNs")), (1, 4));
}

#[test]
fn other_dtypes_become_planes_where_that_helps() {
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
    tensors.push(tensor("noise", "F32", &[64, 64], noise(64 * 64 * 4)));
    let original = checkpoint(&tensors);
    let compressed = round_trip(&original);
    let before = SafeTensors::deserialize(&original).unwrap();
    let after = SafeTensors::deserialize(&compressed).unwrap();
    for (dtype, _) in dtypes {
        let planes = after.tensor(&format!("of {dtype}.zipserv")).unwrap();
        assert_eq!(planes.dtype(), Dtype::U8);
        assert_eq!(planes.data()[8..12], [1, 0, 4, 0]);
    }
    let noise = before.tensor("noise").unwrap();
    let stored = after.tensor("noise").unwrap();
    assert_eq!(noise.dtype(), stored.dtype());
    assert_eq!(noise.shape(), stored.shape());
    assert!(noise.data() == stored.data());
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
    assert!(report.tensors().all(|t| t.storage == Storage::Matrix));
    let verdict = verify(at("small"), at("model"), &options()).unwrap();
    assert_eq!(verdict.difference, None);
    assert_eq!(inspect(at("small"), &options()).unwrap().files.len(), 3);
    assert_eq!(
        names(at("small")),
        [
            "config.json",
            "model-00001-of-00002.zipserv.safetensors",
            "model-00002-of-00002.zipserv.safetensors",
            "model.zipserv.safetensors.index.json",
            "tokenizer.json",
            "vae",
            "zipserv.json",
        ]
    );
    assert_eq!(
        names(at("small/vae")),
        ["empty", "vae.zipserv.safetensors", "zipserv.json"]
    );
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
    put("small/tokenizer.json", b"token");
    let difference = verify(at("small"), at("model"), &options()).unwrap();
    let difference = difference.difference.unwrap();
    assert_eq!(difference.file, Path::new("tokenizer.json"));
    let (restored, original) = (5, 6);
    assert_eq!(
        difference.kind,
        DifferenceKind::Length { restored, original }
    );
    put("small/tokenizer.json", b"tokens");
    put("model/config.json", b"{ }");
    let difference = verify(at("small"), at("model"), &options()).unwrap();
    let difference = difference.difference.unwrap();
    assert_eq!(difference.file, Path::new("config.json"));
    assert_eq!(difference.kind, DifferenceKind::Bytes { offset: 1 });
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
    assert_eq!(
        text(&error),
        "already compressed by zipserv; `zipserv decompress` restores the original"
    );
    let plain = "not compressed by zipserv: no `zipserv.version` in its metadata";
    let error = decompress(at("original"), at("restored"), &options()).unwrap_err();
    assert_eq!(text(&error), plain);
    let error = verify(at("original"), at("original"), &options()).unwrap_err();
    assert_eq!(text(&error), plain);
    assert_eq!(names(folder.path()), ["compressed", "original"]);
}

#[test]
fn files_of_other_kinds_are_named() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for (name, start, said) in [
        ("a.gguf", &b"GGUF\x03\0\0\0\0\0\0\0"[..], "a GGUF file; "),
        ("a.bin", b"PK\x03\x04\0\0\x08\x08\0\0", "a zip archive, "),
        ("a.safetensors", lfs, "a pointer of Git LFS, "),
        ("b.safetensors", b"<!DOCTYPE html><html>", "a web page, "),
        (
            "c.safetensors",
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
            "compressed by gzip; ",
        ),
    ] {
        fs::write(at(name), start).unwrap();
        for error in [
            compress(at(name), at("output"), &options()).unwrap_err(),
            decompress(at(name), at("output"), &options()).unwrap_err(),
            inspect(at(name), &options()).unwrap_err(),
        ] {
            assert!(text(&error).starts_with(said), "{error}");
            assert!(matches!(error.kind(), ErrorKind::Foreign(_)));
        }
        assert!(!at("output").exists());
    }
}

#[test]
fn an_output_that_is_larger_than_its_input_is_told() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("small"), checkpoint(&[tensor("v", "U8", &[1], vec![1])])).unwrap();
    fs::write(at("large"), checkpoint(&[matrix("w", &[64, 1024])])).unwrap();
    let report = compress(at("small"), at("output"), &options()).unwrap();
    let more = fs::metadata(at("output")).unwrap().len() - fs::metadata(at("small")).unwrap().len();
    let warning = format!("the output is larger than the input, by {more} bytes");
    assert_eq!(report.warnings, [warning]);
    let report = compress(at("large"), at("other"), &options()).unwrap();
    assert!(report.warnings.is_empty());
}

/// However often they are read.
#[test]
fn progress_counts_the_bytes_of_tensors_once() {
    #[derive(Default)]
    struct Count {
        started: AtomicU64,
        advanced: AtomicU64,
    }
    impl Progress for Count {
        fn start(&self, bytes: u64) {
            assert_eq!(self.started.swap(bytes, Ordering::Relaxed), 0);
        }

        fn advance(&self, bytes: u64) {
            self.advanced.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    let folder = tempdir().unwrap();
    let [original, small, restored] =
        ["original", "small", "restored"].map(|n| folder.path().join(n));
    let tensors = [
        matrix("w", &[2100, 1030]),
        tensor("odd", "U8", &[7], vec![1; 7]),
    ];
    let bytes: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    fs::write(&original, checkpoint(&tensors)).unwrap();
    let counts = |job: &dyn Fn(&Options) -> Result<(), Error>| {
        let count = Count::default();
        job(&options().progress(&count)).unwrap();
        assert_eq!(count.started.into_inner(), bytes as u64);
        assert_eq!(count.advanced.into_inner(), bytes as u64);
    };
    counts(&|options| compress(&original, &small, options).map(drop));
    counts(&|options| inspect(&original, options).map(drop));
    counts(&|options| inspect(&small, options).map(drop));
    counts(&|options| verify(&small, &original, options).map(drop));
    counts(&|options| decompress(&small, &restored, options).map(drop));
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
