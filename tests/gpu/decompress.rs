//! `decompress` restores every bit.

use crate::{
    data::KINDS,
    lab::{Lab, quick},
};

const SHAPES: [(usize, usize); 12] = [
    (300, 520),
    (31, 65),
    (64, 64),
    (1, 1),
    (1, 3000),
    (3000, 1),
    (7, 13),
    (33, 72),
    (96, 200),
    (100, 1001),
    (257, 1024),
    (2048, 4096),
];

#[test]
fn every_bit_of_every_kind_and_shape() {
    for lab in Lab::each() {
        let shapes = if quick() { &SHAPES[..2] } else { &SHAPES };
        for kind in KINDS {
            for &(rows, cols) in shapes {
                let bits = kind.weights(rows, cols);
                let matrix = lab.upload(rows, cols, &bits);
                for skew in [0, 1] {
                    let restored = lab.decompress(&matrix, skew);
                    assert!(restored == bits, "{kind:?}, {rows} x {cols}, skew {skew}");
                }
            }
        }
    }
}
