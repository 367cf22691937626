//! The published layout, against a plain decoder made from its description alone.

use half::bf16;
use proptest::prelude::*;
use published_kernels::{
    Before,
    decode::{Cursor, Lane, base_pair},
};
use zipserv::Matrix;
use zipserv_bench::published::PublishedMatrix;

/// Restores a matrix band by band, each from its own offsets, a weight at a time.
fn reference(matrix: &PublishedMatrix) -> Vec<u16> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut weights = vec![0; rows * cols];
    let block_cols = cols.div_ceil(64);
    let starts = matrix.starts();
    for (band, &before) in matrix.bands().iter().enumerate() {
        let (block, band) = (band / 4, band % 4);
        let mut byte = 16 * starts[block][0] as usize + (before & 0xFFFF) as usize;
        let mut outlier = 8 * starts[block][1] as usize + (before >> 16) as usize;
        for weight in 0..1024 {
            // k-step by k-step, in each the 8 x 8 tiles down its left half, then down its right.
            let (kstep, tile, bit) = (weight / 256, weight / 64 % 4, weight % 64);
            let row = block / block_cols * 64 + 16 * band + tile % 2 * 8 + bit / 8;
            let col = block % block_cols * 64 + 16 * kstep + tile / 2 * 8 + bit % 8;
            let planes = &matrix.bitmaps()[3 * (64 * block + 16 * band + weight / 64)..];
            let code =
                (planes[0] >> bit & 1) | (planes[1] >> bit & 1) << 1 | (planes[2] >> bit & 1) << 2;
            let bits = if code == 0 {
                outlier += 1;
                matrix.outliers()[outlier - 1]
            } else {
                byte += 1;
                let byte = u16::from(matrix.bytes()[byte - 1]);
                (byte >> 7) << 15 | (u16::from(matrix.base()) + code as u16) << 7 | byte & 0x7F
            };
            if row < rows && col < cols {
                weights[row * cols + col] = bits;
            }
        }
        // Each band ends where the next one starts, or in the chunk that ends its block tile.
        let ends = [
            byte - 16 * starts[block][0] as usize,
            outlier - 8 * starts[block][1] as usize,
        ];
        if band < 3 {
            let next = matrix.bands()[4 * block + band + 1];
            assert_eq!(ends, [(next & 0xFFFF) as usize, (next >> 16) as usize]);
        } else {
            let chunks = [ends[0].div_ceil(16) as u32, ends[1].div_ceil(8) as u32];
            let [from, to] = [starts[block], starts[block + 1]];
            assert_eq!(chunks, [to[0] - from[0], to[1] - from[1]]);
        }
    }
    let [bytes, outliers] = starts[starts.len() - 1];
    assert_eq!(matrix.bytes().len(), 16 * bytes as usize);
    assert_eq!(matrix.outliers().len(), 8 * outliers as usize);
    weights
}

fn round_trip(rows: usize, cols: usize, bits: &[u16]) -> PublishedMatrix {
    let matrix = Matrix::from_bits(rows, cols, bits).unwrap();
    let compressed = PublishedMatrix::encode(&matrix).unwrap();
    assert_eq!((compressed.rows(), compressed.cols()), (rows, cols));
    assert!(
        reference(&compressed) == bits,
        "the reference decoder differs"
    );
    let decoded: Vec<u16> = compressed.decode().into_iter().map(bf16::to_bits).collect();
    assert!(decoded == bits, "`decode` differs");
    compressed
}

/// Restores a block tile as a warp for each band does: with the very functions that the kernels
/// inline, from bytes that lie as in shared memory.
fn by_lanes(matrix: &PublishedMatrix, block: usize) -> Vec<u16> {
    let [from, to] = [matrix.starts()[block], matrix.starts()[block + 1]];
    let part = |bytes: &[u8], stream: usize| {
        bytes[16 * from[stream] as usize..16 * to[stream] as usize].to_vec()
    };
    // An address that is no multiple of anything but 16.
    let mut shared = vec![0xA5; 48];
    shared.extend(part(matrix.bytes(), 0));
    let outliers_at = shared.len() as u32;
    let outliers: Vec<u8> = matrix
        .outliers()
        .iter()
        .flat_map(|o| o.to_le_bytes())
        .collect();
    shared.extend(part(&outliers, 1));

    let mut weights = vec![0; 64 * 64];
    for band in 0..4 {
        let before = Before::of_word(matrix.bands()[4 * block + band]);
        let mut cursors: Vec<_> = (0..32)
            .map(|lane| Cursor::new(lane, 48, outliers_at, before))
            .collect();
        for kstep in 0..4 {
            for tile in 0..4 {
                let at = 3 * (64 * block + 16 * band + 4 * kstep + tile);
                let planes = [0, 1, 2].map(|i| matrix.bitmaps()[at + i]);
                let find = |lane: u32| {
                    Lane::new(lane).find(planes.map(|plane| (plane >> (lane / 16 * 32)) as u32))
                };
                let halves = [15, 31].map(|lane| find(lane).through);
                for (lane, cursor) in cursors.iter_mut().enumerate() {
                    let found = find(lane as u32);
                    let [first, second] = cursor.tile(&Lane::new(lane as u32), &found, halves);
                    let load = |has: u32, byte: u32, outlier: u32| match has {
                        0 => {
                            assert_eq!(outlier % 2, 0, "not aligned");
                            let at = outlier as usize;
                            u32::from(u16::from_le_bytes([shared[at], shared[at + 1]]))
                        }
                        _ => u32::from(shared[byte as usize]),
                    };
                    let after = 128 * tile as u32;
                    let pair = found.pair(
                        load(
                            found.has_first(),
                            first.byte,
                            first.outlier.wrapping_add(after),
                        ),
                        load(
                            found.has_second(),
                            second.byte,
                            second.outlier.wrapping_add(after + 2),
                        ),
                        base_pair(matrix.base()),
                    );
                    let row = 16 * band + tile % 2 * 8 + lane / 4;
                    let col = 16 * kstep + tile / 2 * 8 + lane % 4 * 2;
                    weights[64 * row + col] = pair as u16;
                    weights[64 * row + col + 1] = (pair >> 16) as u16;
                }
            }
            cursors.iter_mut().for_each(Cursor::end_kstep);
        }
    }
    weights
}

/// Weights as trained layers have them.
fn typical() -> impl Strategy<Value = u16> {
    (any::<u16>(), 0u16..7, 0u16..50).prop_map(|(bits, near, rare)| {
        let exponent = if rare == 0 { 104 + near } else { 114 + near };
        bits & 0x807F | exponent << 7
    })
}

fn any_kind() -> impl Strategy<Value = u16> {
    prop_oneof![
        8 => typical(),
        1 => any::<u16>(),
        1 => any::<u16>().prop_map(|bits| bits | 0x7F80),
        1 => any::<u16>().prop_map(|bits| bits & 0x807F),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn weights_of_every_kind_come_back(
        (rows, cols, bits) in (0usize..=140, 0usize..=140).prop_flat_map(|(rows, cols)| {
            let kind = prop_oneof![
                typical().boxed(),
                any::<u16>().boxed(),
                any_kind().boxed(),
            ];
            (Just(rows), Just(cols), prop::collection::vec(kind, rows * cols))
        })
    ) {
        round_trip(rows, cols, &bits);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn lanes_restore_block_tiles(
        bits in prop_oneof![
            prop::collection::vec(typical(), 64 * 192),
            prop::collection::vec(any::<u16>(), 64 * 192),
            prop::collection::vec(any_kind(), 64 * 192),
        ]
    ) {
        let compressed = round_trip(64, 192, &bits);
        for block in 0..3 {
            for (row, weights) in by_lanes(&compressed, block).chunks(64).enumerate() {
                prop_assert_eq!(weights, &bits[192 * row + 64 * block..][..64]);
            }
        }
    }
}

#[test]
fn all_bit_patterns_come_back() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    for (rows, cols) in [(256, 256), (1, 65536), (65536, 1)] {
        round_trip(rows, cols, &bits);
    }
}

#[test]
fn every_shape_around_a_tile_comes_back() {
    let sizes = [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 128, 129];
    for rows in sizes {
        for cols in sizes {
            let bits: Vec<u16> = (0..rows * cols).map(|i| (i * 40503) as u16).collect();
            round_trip(rows, cols, &bits);
        }
    }
}

#[test]
fn what_a_window_cannot_hold_is_all_outliers() {
    // The window starts at exponent 1 at least.
    for bits in [0x0000, 0x8000, 0x007F] {
        let compressed = round_trip(100, 70, &[bits; 7000]);
        assert_eq!(compressed.outlier_count(), 7000);
    }
    for bits in [0x0080, 0x3F80, 0x7F80, 0xFFFF] {
        let compressed = round_trip(100, 70, &[bits; 7000]);
        assert_eq!(compressed.outlier_count(), 0);
    }
}

#[test]
fn the_window_is_the_seven_exponents_that_hold_most() {
    // Exponents 100 to 107: 107 is the rarest but one, and 100 the rarest.
    let exponents = (0..800u16).map(|i| 100 + if i < 99 { 0 } else { 1 + i % 7 });
    let bits: Vec<u16> = exponents.map(|exponent| exponent << 7).collect();
    let compressed = round_trip(8, 100, &bits);
    assert_eq!((compressed.base(), compressed.outlier_count()), (100, 99));
}

#[test]
fn gaussian_weights_take_as_many_bits_as_published() {
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    use rand_distr::StandardNormal;

    let mut rng = SmallRng::seed_from_u64(1);
    let mut weight = || bf16::from_f32(0.02 * rng.sample::<f32, _>(StandardNormal)).to_bits();
    let bits: Vec<u16> = (0..1024 * 1024).map(|_| weight()).collect();
    let compressed = round_trip(1024, 1024, &bits);
    let bits_per_weight = 8.0 * compressed.stored_bytes() as f64 / bits.len() as f64;
    assert!((11.1..11.4).contains(&bits_per_weight), "{bits_per_weight}");
}
