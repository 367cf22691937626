//! Whatever the file, inspecting, restoring, converting and compressing it does not panic, and what was
//! compressed or converted comes back.

#![no_main]

use std::{fs, path::Path};

use libfuzzer_sys::fuzz_target;
use zipserv::checkpoint::{self, Options};

#[path = "../../tests/reference.rs"]
#[allow(dead_code)]
mod reference;
mod sign;

// The last byte says what to make of the others, so that a file is a fair input as it is.
fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_last() else {
        return;
    };
    let file = match mode % 4 {
        0 => data.to_vec(),
        1 => with_length(data),
        2 => container(data, false),
        _ => container(data, true),
    };
    // Kept in memory: files this small would only wear out a disk.
    let folder = tempfile::Builder::new()
        .tempdir_in("/dev/shm")
        .expect("a folder");
    let at = |name| folder.path().join(name);
    fs::write(at("input.safetensors"), &file).expect("room for a small file");
    let input = at("input.safetensors");
    let options = Options::default();

    let inspected = checkpoint::inspect(&input, &options).is_ok();
    if checkpoint::decompress(&input, at("restored"), &options).is_ok() {
        assert!(inspected);
        let verdict = checkpoint::verify(&input, at("restored"), &options).expect("readable");
        assert_eq!(verdict.difference, None);
        let opened = checkpoint::open(&input).expect("readable");
        for tensor in opened.tensors() {
            let bytes = tensor.decoded().expect("readable");
            assert_eq!(bytes.len() as u64, tensor.original_bytes());
            if let Ok(stack) = tensor.experts() {
                // Those of an empty tensor may be very many.
                let experts = 0..stack.experts().min(bytes.len());
                let decoded = experts.flat_map(|expert| stack.decode(expert).expect("one of them"));
                assert!(decoded.eq(bytes));
            }
        }
    }
    for archive in [false, true] {
        let options = options.archive(archive).force(true);
        if checkpoint::compress(&input, at("compressed"), &options).is_ok() {
            checkpoint::decompress(at("compressed"), at("again"), &options).expect("own output");
            assert!(fs::read(at("again")).expect("it is there") == file);
        }
        if checkpoint::convert(&input, at("converted"), &options).is_ok() {
            checkpoint::decompress(at("converted"), at("again"), &options).expect("own output");
            assert!(
                fs::read(at("again")).expect("it is there")
                    == fs::read(at("restored")).expect("it is there")
            );
        }
    }
    assert!(no_leftovers(folder.path()));
});

/// Puts a length in front of a header that ends at the first zero byte.
fn with_length(data: &[u8]) -> Vec<u8> {
    let (json, data) = split(data);
    [&(json.len() as u64).to_le_bytes(), json, data].concat()
}

/// A compressed file from an original header, the entries of stored tensors, and data, with zero
/// bytes between them. `signed` makes the data a matrix with the right checksums.
fn container(data: &[u8], signed: bool) -> Vec<u8> {
    let (original, rest) = split(data);
    let (entries, data) = split(rest);
    let original = serde_json::to_string(&String::from_utf8_lossy(original)).expect("a string");
    let metadata = format!(
        r#"{{"__metadata__":{{"zipserv.version":"1","zipserv.suffix":".zipserv","zipserv.crc32":"00000000","zipserv.header":{original}}}"#
    );
    let mut data = data.to_vec();
    if signed {
        sign::sign(&mut data, reference::crc32);
    }
    let json = [metadata.as_bytes(), b",", entries, b"}"].concat();
    [&(json.len() as u64).to_le_bytes(), &json[..], &data].concat()
}

fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|&b| b == 0).unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

fn no_leftovers(folder: &Path) -> bool {
    let hidden = |name: &str| name.starts_with(".zipserv");
    fs::read_dir(folder)
        .expect("a folder")
        .all(|entry| !hidden(&entry.expect("an entry").file_name().to_string_lossy()))
}
