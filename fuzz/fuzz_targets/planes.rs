//! Whatever the bytes, the reader of byte planes refuses them or restores what has their checksums; and any bytes come
//! back from planes of any element.

#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use zipserv::{Element, Planes};

#[path = "../../tests/reference.rs"]
#[allow(dead_code)]
mod reference;

/// The most bytes that an input may ask for.
const LARGEST: usize = 1 << 24;

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_last() else {
        return;
    };
    let width = 1 << (mode >> 1 & 3);
    match mode & 1 {
        0 => round_trip(data, width, mode & 8 != 0),
        _ => read(data.to_vec(), mode & 16 != 0),
    }
});

fn round_trip(data: &[u8], width: usize, is_float: bool) {
    let element = match is_float {
        true => Element::float(width),
        false => Element::integer(width),
    };
    let element = element.expect("a width that there is");
    // Repeated, so that there are more than a chunk and something to find.
    let tensor = data.repeat(1 + 300_000 / data.len().max(1));
    for tensor in [data, &tensor] {
        if let Some(planes) = Planes::encode(tensor, element) {
            assert!(planes.stored_bytes() < tensor.len());
            let read = Planes::from_bytes(planes.as_bytes()).expect("own output");
            assert!(read.decode().expect("own output") == tensor);
        }
    }
}

fn other_zstd(frame: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(frame).ok()?;
    let mut bytes = Vec::new();
    decoder.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn read(mut blob: Vec<u8>, is_signed: bool) {
    if is_signed {
        sign(&mut blob);
    }
    let Ok(planes) = Planes::from_bytes(&blob) else {
        return;
    };
    assert_eq!(planes.stored_bytes(), blob.len());
    if planes.original_bytes() > LARGEST {
        return;
    }
    if let Ok(tensor) = planes.decode() {
        // Another decoder of zstd may have other limits, so what it refuses tells nothing.
        match reference::planes(&blob, other_zstd) {
            Err(why) => assert_eq!(why, "frame"),
            Ok(expected) => assert!(tensor == expected),
        }
        let again = Planes::encode(&tensor, planes.element());
        let again = again.map(|planes| planes.decode().expect("own output"));
        assert!(again.is_none_or(|again| again == tensor));
    }
}

/// Makes all right that a mutation is unlikely to: magic, versions, checksum of the header, length.
fn sign(blob: &mut Vec<u8>) {
    if blob.len() < 32 {
        blob.resize(32, 0);
    }
    blob[..12].copy_from_slice(b"ZIPSERV\0\x01\0\x04\0");
    blob[14..16].fill(0);
    let number = |at: usize, bytes: usize| {
        let number = blob[at..at + bytes].iter().rev();
        number.fold(0u64, |number, &byte| number << 8 | u64::from(byte))
    };
    let (width, bytes, chunk) = (u64::from(blob[12]), number(16, 8), number(24, 4));
    let Some(chunks) = bytes
        .checked_div(chunk * width)
        .filter(|&chunks| chunks < 1000)
    else {
        return;
    };
    let chunks = chunks + u64::from(bytes % (chunk * width) != 0);
    let table = 32 + (chunks * (4 + 4 * width)) as usize;
    if blob.len() < table {
        blob.resize(table, 0);
    }
    blob.resize(blob.len().next_multiple_of(16), 0);
    let crc = reference::crc32(&[&blob[..28], &blob[32..table]].concat());
    blob[28..32].copy_from_slice(&crc.to_le_bytes());
}
