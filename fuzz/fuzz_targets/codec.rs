//! Any weights in any small shape come back bit for bit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zipserv::{CompressedMatrix, Matrix, decode_into, encode};

fuzz_target!(|data: &[u8]| {
    let [rows, cols, weights @ ..] = data else {
        return;
    };
    // Up to three tiles each way.
    let (rows, cols) = (usize::from(*rows) % 70, usize::from(*cols) % 140);
    // Few bytes of input fill a matrix of any shape.
    let bytes: Vec<u8> = match weights {
        [] => vec![0; 2 * rows * cols],
        _ => weights
            .iter()
            .copied()
            .cycle()
            .take(2 * rows * cols)
            .collect(),
    };
    let matrix = Matrix::from_le_bytes(rows, cols, &bytes).expect("the shape fits");
    let compressed = encode(&matrix).expect("the matrix is small");
    let parsed = CompressedMatrix::from_bytes(compressed.as_bytes()).expect("own output");
    assert_eq!(parsed, compressed);
    let mut restored = vec![0xA5; bytes.len()];
    decode_into(&parsed, &mut restored).expect("the size fits");
    assert_eq!(restored, bytes);
});
