//! Whatever the bytes, the reader refuses them or decodes them as the reference decoder does.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zipserv::{CompressedMatrix, Matrix, decode, encode};

#[path = "../../tests/reference.rs"]
#[allow(dead_code)]
mod reference;
mod sign;

fuzz_target!(|data: &[u8]| {
    let [mode, blob @ ..] = data else {
        return;
    };
    let mut blob = blob.to_vec();
    if mode % 2 == 1 {
        sign::sign(&mut blob, reference::crc32);
    }
    let parsed = CompressedMatrix::from_bytes(&blob);
    let reference = reference::decode(&blob);
    assert_eq!(
        parsed.is_ok(),
        reference.is_ok(),
        "{parsed:?}, {reference:?}"
    );
    let (Ok(parsed), Ok(reference)) = (parsed, reference) else {
        return;
    };
    assert_eq!(
        (parsed.rows(), parsed.cols()),
        (reference.rows, reference.cols)
    );
    let weights = decode(&parsed);
    assert!(weights.iter().map(|w| w.to_bits()).eq(reference.bits));

    let all = parsed.slice(0..parsed.rows(), 0..parsed.cols());
    let all = all.expect("all of it is a part");
    CompressedMatrix::from_bytes(all.as_bytes()).expect("own output");
    assert!(
        weights
            .iter()
            .map(|w| w.to_bits())
            .eq(decode(&all).iter().map(|w| w.to_bits()))
    );

    let matrix = Matrix::from_bf16(parsed.rows(), parsed.cols(), &weights).expect("it fits");
    let again = decode(&encode(&matrix).expect("it is small"));
    assert!(
        weights
            .iter()
            .map(|w| w.to_bits())
            .eq(again.iter().map(|w| w.to_bits()))
    );
});
