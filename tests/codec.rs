//! The codec against the plain decoder in `reference.rs`, on every kind of weight and shape.

#[allow(dead_code)]
mod reference;

use std::ops::Range;

use half::bf16;
use proptest::prelude::*;
use zipserv::{CompressedMatrix, Error, Matrix, MatrixHeader, decode, decode_into, encode};
use zipserv_gpu::{decode as lanes, layout};

/// Compresses, then restores by every route there is.
fn round_trip(rows: usize, cols: usize, bits: &[u16]) -> CompressedMatrix<'static> {
    let matrix = Matrix::from_bits(rows, cols, bits).unwrap();
    let compressed = encode(&matrix).unwrap();

    let reference = reference::decode(compressed.as_bytes()).unwrap();
    assert_eq!((reference.rows, reference.cols), (rows, cols));
    assert!(reference.bits == bits, "the reference decoder differs");

    let parsed = CompressedMatrix::from_bytes(compressed.as_bytes()).unwrap();
    assert_eq!(parsed, compressed);
    assert!(restore(&parsed) == bits, "`decode` differs");
    let mut bytes = vec![0xA5; 2 * bits.len()];
    decode_into(&parsed, &mut bytes).unwrap();
    assert!(bytes == matrix.as_le_bytes(), "`decode_into` differs");
    compressed
}

fn restore(compressed: &CompressedMatrix) -> Vec<u16> {
    decode(compressed).into_iter().map(bf16::to_bits).collect()
}

/// Weights as trained layers have them: 16 exponents, most of them in one window.
fn typical() -> impl Strategy<Value = u16> {
    (any::<u16>(), 0u16..8, 0u16..100).prop_map(|(bits, near, rare)| {
        let exponent = if rare == 0 { 106 + near } else { 114 + near };
        bits & 0x807F | exponent << 7
    })
}

fn nan() -> impl Strategy<Value = u16> {
    any::<u16>().prop_map(|bits| bits | 0x7F80)
}

fn subnormal() -> impl Strategy<Value = u16> {
    any::<u16>().prop_map(|bits| bits & 0x807F)
}

fn mixed() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => typical(),
        1 => any::<u16>(),
        1 => nan(),
        1 => subnormal(),
        1 => Just(0),
    ]
}

/// Rows, columns and weights of a matrix of up to three tiles each way.
fn matrix(
    weight: impl Strategy<Value = u16> + Clone,
) -> impl Strategy<Value = (usize, usize, Vec<u16>)> {
    (0usize..=70, 0usize..=140).prop_flat_map(move |(rows, cols)| {
        let bits = prop::collection::vec(weight.clone(), rows * cols);
        (Just(rows), Just(cols), bits)
    })
}

fn boxed(weight: impl Strategy<Value = u16> + 'static) -> BoxedStrategy<u16> {
    weight.boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn typical_weights_come_back((rows, cols, bits) in matrix(boxed(typical()))) {
        round_trip(rows, cols, &bits);
    }

    #[test]
    fn any_weights_come_back((rows, cols, bits) in matrix(boxed(any::<u16>()))) {
        round_trip(rows, cols, &bits);
    }

    #[test]
    fn nans_come_back((rows, cols, bits) in matrix(boxed(nan()))) {
        round_trip(rows, cols, &bits);
    }

    #[test]
    fn subnormals_come_back((rows, cols, bits) in matrix(boxed(subnormal()))) {
        round_trip(rows, cols, &bits);
    }

    #[test]
    fn mixtures_come_back((rows, cols, bits) in matrix(boxed(mixed()))) {
        round_trip(rows, cols, &bits);
    }

    #[test]
    fn equal_weights_need_no_patch(rows in 0usize..70, cols in 0usize..140, bits: u16) {
        let compressed = round_trip(rows, cols, &vec![bits; rows * cols]);
        prop_assert_eq!(compressed.outliers(), 0);
    }

    #[test]
    fn parts_decode_to_parts_of_the_whole(
        (rows, cols, bits) in matrix(boxed(mixed())),
        at: [prop::sample::Index; 4],
    ) {
        let compressed = encode(&Matrix::from_bits(rows, cols, &bits).unwrap()).unwrap();
        let (r, c) = (ranges(rows, 32), ranges(cols, 64));
        let (part, bits) = slice(&compressed, &bits, at[0].get(&r).clone(), at[1].get(&c).clone());
        // And a part of the part.
        let (r, c) = (ranges(part.rows(), 32), ranges(part.cols(), 64));
        slice(&part, &bits, at[2].get(&r).clone(), at[3].get(&c).clone());
    }

    #[test]
    fn any_range_is_cut_or_refused(rows in 0usize..70, cols in 0usize..140, r: [u8; 2], c: [u8; 2]) {
        let bits = vec![0x3F80; rows * cols];
        let compressed = encode(&Matrix::from_bits(rows, cols, &bits).unwrap()).unwrap();
        let range = |[start, end]: [u8; 2]| usize::from(start)..usize::from(end);
        let (r, c) = (range(r), range(c));
        let allowed = ranges(rows, 32).contains(&r) && ranges(cols, 64).contains(&c);
        prop_assert_eq!(compressed.slice(r, c).is_ok(), allowed);
    }

    /// The very function that the kernels inline, as compiled for the host.
    #[test]
    fn lanes_decode_as_the_reference(
        low: [u8; 32],
        words: [u32; 3],
        rest in prop::array::uniform32(0u8..=31),
    ) {
        let word = |bytes: &[u8; 32], i: usize| {
            u32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap())
        };
        let high = rest.map(|rest| rest << 2);
        let step = |bytes: &[u8; 32], step: usize| [word(bytes, 2 * step), word(bytes, 2 * step + 1)];
        let decoded = [
            lanes::kstep::<0>(step(&low, 0), words, step(&high, 0)),
            lanes::kstep::<1>(step(&low, 1), words, step(&high, 1)),
            lanes::kstep::<2>(step(&low, 2), words, step(&high, 2)),
            lanes::kstep::<3>(step(&low, 3), words, step(&high, 3)),
        ];
        for (pair, weights) in decoded.into_iter().flatten().enumerate() {
            for second in [0, 1] {
                let (sign, exponent) = reference::code(words, pair, second);
                let rest = u16::from(rest[2 * pair + second]);
                let low = u16::from(low[2 * pair + second]);
                let expected = sign << 15 | rest << 10 | exponent << 8 | low;
                prop_assert_eq!((weights >> (16 * second)) as u16, expected);
            }
        }
    }

    #[test]
    fn lane_words_hold_their_codes(words: [u32; 3]) {
        let high = std::array::from_fn(|quad| {
            let byte = |i: usize| {
                let (sign, exponent) = reference::code(words, 2 * quad + i / 2, i % 2);
                u32::from(sign << 7 | exponent) << (8 * i)
            };
            byte(0) | byte(1) | byte(2) | byte(3)
        });
        prop_assert_eq!(lanes::code_words(&high), words);
    }
}

#[test]
fn scales_are_undone() {
    for scale in 0..8 {
        let factor = f32::from(2u8).powi(scale as i32);
        for weight in 0..=u16::MAX {
            let special = weight & 0x7F80 == 0x7F80;
            let product = bf16::from_bits(weight).to_f32() * factor;
            if special || bf16::from_f32(product).is_finite() {
                let scaled = layout::scaled(weight, scale);
                let expected = if special {
                    weight
                } else {
                    (product.to_bits() >> 16) as u16
                };
                assert_eq!(scaled, expected, "{weight:04x} by 2^{scale}");
                assert_eq!(layout::unscaled(scaled, scale), weight);
                assert_eq!(reference::unscale(scaled, scale), weight);
            }
        }
    }
}

/// What a kernel does for a weight that has a patch: its place decodes as one in the window first.
#[test]
fn patches_give_their_weights() {
    for base in (0..=248u8).filter(|&base| layout::is_base(base)) {
        let scale = layout::scale(base);
        let window = u16::from(layout::window_high(base)) << 8;
        for weight in (0..=u16::MAX).step_by(3) {
            let scaled = layout::scaled(weight, scale);
            let code = scaled & !layout::LEFT_OUT;
            let unpatched = (code | window) - ((scale as u16) << 7);
            let patch = layout::Patch::new(1234, scaled);
            assert_eq!(patch.position(), 1234);
            let exponent = u32::from(weight >> 7 & 0xFF);
            if exponent == 255 || exponent + scale < 255 {
                assert_eq!(patch.weight(unpatched, scale), weight);
            }
        }
    }
}

#[test]
fn all_bit_patterns_come_back() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    for (rows, cols) in [(256, 256), (1, 65536), (65536, 1), (32, 2048)] {
        round_trip(rows, cols, &bits);
    }
}

#[test]
fn every_shape_around_a_tile_comes_back() {
    let sizes = [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];
    for rows in sizes {
        for cols in sizes {
            let bits: Vec<u16> = (0..rows * cols).map(|i| (i * 40503) as u16).collect();
            round_trip(rows, cols, &bits);
        }
    }
}

#[test]
fn empty_matrices_keep_their_shape() {
    for (rows, cols) in [(0, 0), (0, u32::MAX as usize), (u32::MAX as usize, 0)] {
        let compressed = round_trip(rows, cols, &[]);
        assert_eq!((compressed.rows(), compressed.cols()), (rows, cols));
    }
}

#[test]
fn tiles_of_outliers_keep_all_their_patches() {
    // Three tiles set the window, all weights of the other lie outside.
    let mut bits = vec![120 << 7; 4 * 2048];
    bits[2048..4096].fill(0xFFFF);
    let compressed = round_trip(128, 64, &bits);
    assert_eq!(compressed.outliers(), 2048);
}

#[test]
fn threads_do_not_change_the_bytes() {
    let bits: Vec<u16> = (0..1000u32 * 700)
        .map(|i| (i.wrapping_mul(2654435761) >> 16) as u16 & 0xBFFF)
        .collect();
    let matrix = Matrix::from_bits(1000, 700, &bits).unwrap();
    let by = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| encode(&matrix).unwrap())
    };
    let one = by(1);
    for threads in [1, 2, 3, 8] {
        assert!(by(threads) == one, "{threads} threads");
    }
}

/// Slices a matrix, and checks that what the part decodes to is that part of `bits`.
fn slice(
    compressed: &CompressedMatrix,
    bits: &[u16],
    rows: Range<usize>,
    cols: Range<usize>,
) -> (CompressedMatrix<'static>, Vec<u16>) {
    let part = compressed.slice(rows.clone(), cols.clone()).unwrap();
    assert_eq!((part.rows(), part.cols()), (rows.len(), cols.len()));
    assert_eq!(part.base(), compressed.base());
    let row = |row: usize| &bits[row * compressed.cols()..][cols.clone()];
    let expected: Vec<u16> = rows.flat_map(row).copied().collect();
    assert!(restore(&part) == expected, "`decode` differs");
    assert!(
        reference::decode(part.as_bytes()).unwrap().bits == expected,
        "the reference decoder differs"
    );
    assert_eq!(
        CompressedMatrix::from_bytes(part.as_bytes()),
        Ok(part.clone())
    );
    (part, expected)
}

/// All places at which a part may start or end.
fn edges(len: usize, tile: usize) -> Vec<usize> {
    let mut edges: Vec<_> = (0..len).step_by(tile).collect();
    edges.push(len);
    edges
}

fn ranges(len: usize, tile: usize) -> Vec<Range<usize>> {
    let edges = edges(len, tile);
    let from = |(i, &start): (usize, &usize)| -> Vec<_> {
        edges[i..].iter().map(|&end| start..end).collect()
    };
    edges.iter().enumerate().flat_map(from).collect()
}

#[test]
fn every_part_decodes_to_that_part() {
    let few = |i: usize| match i % 61 {
        0 => 0x7F80,
        _ => (((i % 8 + 115) << 7) + i % 97) as u16,
    };
    let many = |i: usize| (i * 40503) as u16;
    for (rows, cols) in [
        (0, 0),
        (0, 130),
        (70, 0),
        (1, 1),
        (32, 64),
        (33, 65),
        (64, 128),
        (70, 140),
        (96, 200),
    ] {
        for weight in [&few as &dyn Fn(usize) -> u16, &many] {
            let bits: Vec<u16> = (0..rows * cols).map(weight).collect();
            let compressed = encode(&Matrix::from_bits(rows, cols, &bits).unwrap()).unwrap();
            for r in ranges(rows, 32) {
                for c in ranges(cols, 64) {
                    slice(&compressed, &bits, r.clone(), c);
                }
            }
            let (all, _) = slice(&compressed, &bits, 0..rows, 0..cols);
            assert_eq!(all, compressed);
        }
    }
}

/// Where the window fits a part too, the part has the bytes that its encoder writes: padding too.
#[test]
fn parts_are_as_encoded() {
    let bits: Vec<u16> = (0..100 * 200)
        .map(|i| ((i % 8 + 115) << 7) + i % 128)
        .collect();
    let compressed = encode(&Matrix::from_bits(100, 200, &bits).unwrap()).unwrap();
    for (r, c) in [(0..32, 0..64), (32..100, 128..200), (96..100, 192..200)] {
        let (part, bits) = slice(&compressed, &bits, r, c);
        let matrix = Matrix::from_bits(part.rows(), part.cols(), &bits).unwrap();
        assert_eq!(part, encode(&matrix).unwrap());
    }
}

#[test]
fn empty_parts_keep_their_shape() {
    let most = u32::MAX as usize;
    let tall = encode(&Matrix::from_bits(most, 0, &[]).unwrap()).unwrap();
    let part = tall.slice(32..most, 0..0).unwrap();
    assert_eq!((part.rows(), part.cols()), (most - 32, 0));
    assert_eq!(tall.slice(0..most, 0..0), Ok(tall.clone()));
    let bits = vec![0xFFFF; 70 * 70];
    let compressed = encode(&Matrix::from_bits(70, 70, &bits).unwrap()).unwrap();
    for (r, c) in [
        (0..0, 0..70),
        (70..70, 0..64),
        (32..64, 70..70),
        (64..64, 64..64),
    ] {
        let (part, _) = slice(&compressed, &bits, r, c);
        assert_eq!((part.header().tiles(), part.outliers()), (0, 0));
        assert_eq!(part.stored_bytes(), 144);
    }
}

#[test]
fn parts_that_cut_tiles_are_refused() {
    let bits = vec![0x3F80; 70 * 140];
    let compressed = encode(&Matrix::from_bits(70, 140, &bits).unwrap()).unwrap();
    let error = |axis, range: Range<usize>, tile, len| {
        let Range { start, end } = range;
        Err(Error::Slice {
            axis,
            start,
            end,
            tile,
            len,
        })
    };
    #[allow(clippy::reversed_empty_ranges)]
    for wrong in [
        1..32,
        0..33,
        0..71,
        0..96,
        96..96,
        64..32,
        70..64,
        5..5,
        0..usize::MAX,
        usize::MAX..usize::MAX,
    ] {
        assert_eq!(
            compressed.slice(wrong.clone(), 0..64),
            error("rows", wrong, 32, 70)
        );
    }
    for wrong in [32..64, 0..139, 64..192, 141..141] {
        assert_eq!(
            compressed.slice(0..70, wrong.clone()),
            error("cols", wrong, 64, 140)
        );
    }
    assert_eq!(
        compressed.slice(5..64, 0..140).unwrap_err().to_string(),
        "rows 5..64 of 70 are no part: it starts and ends at multiples of 32, or at 70"
    );
}

#[test]
fn headers_say_where_the_sections_lie() {
    let blob = sample();
    let matrix = CompressedMatrix::from_bytes(&blob).unwrap();
    let first = blob.first_chunk().unwrap();
    let header = MatrixHeader::parse(first, blob.len()).unwrap();
    assert_eq!(header, *matrix.header());
    assert_eq!((header.rows(), header.cols(), header.tiles()), (40, 70, 4));
    assert_eq!(header.base(), matrix.base());
    assert_eq!(header.outliers(), matrix.outliers());
    assert_eq!(header.original_bytes(), 2 * 40 * 70);
    assert_eq!(header.stored_bytes(), blob.len());
    assert_eq!(matrix.stored_bytes(), blob.len());
    assert_eq!(header.bits_per_weight(), matrix.bits_per_weight());
    assert_eq!(header.dense(), 128..128 + 4 * 2816);
    assert_eq!(header.dense().end, header.patch_offsets().start);
    assert_eq!(header.patch_offsets().end, header.patches().start);
    assert_eq!(header.patches().end, blob.len());
    assert!(header.patches().len() >= 2 * header.outliers());
    assert_eq!(blob[header.dense()], *matrix.dense());
    assert_eq!(blob[header.patch_offsets()], *matrix.patch_offsets());
    assert_eq!(blob[header.patches()], *matrix.patches());

    let expected = blob.len() as u64;
    assert_eq!(
        MatrixHeader::parse(first, 128),
        Err(Error::Truncated {
            expected,
            found: 128
        })
    );
    assert_eq!(
        MatrixHeader::parse(first, usize::MAX),
        Err(Error::TrailingBytes {
            expected,
            found: usize::MAX as u64
        })
    );
    assert_eq!(MatrixHeader::parse(&[0; 128], 128), Err(Error::Magic));
}

#[test]
fn bits_are_counted_for_each_weight() {
    let of = |rows, cols| {
        let bits = vec![0x3F80; rows * cols];
        let compressed = encode(&Matrix::from_bits(rows, cols, &bits).unwrap()).unwrap();
        compressed.bits_per_weight()
    };
    let tile = (128 + 2816 + 16) as f64;
    assert_eq!(of(32, 64), 8.0 * tile / 2048.0);
    assert_eq!(of(1, 1), 8.0 * tile);
    assert_eq!([of(0, 0), of(0, 70), of(70, 0)], [0.0; 3]);
}

/// A small matrix with patches in two of its four tiles, compressed.
fn sample() -> Vec<u8> {
    let mut bits: Vec<u16> = (0..40 * 70)
        .map(|i| ((i % 9 + 118) << 7) + i % 128)
        .collect();
    bits[0] = 0;
    bits[7] = 0x7F80;
    bits[39 * 70 + 69] = 0xFFFF;
    encode(&Matrix::from_bits(40, 70, &bits).unwrap())
        .unwrap()
        .as_bytes()
        .to_vec()
}

#[test]
fn every_flipped_bit_is_refused() {
    let mut blob = encode(&Matrix::from_bits(1, 2, &[0x3F80, 0]).unwrap())
        .unwrap()
        .as_bytes()
        .to_vec();
    for bit in 0..8 * blob.len() {
        blob[bit / 8] ^= 1 << (bit % 8);
        assert!(CompressedMatrix::from_bytes(&blob).is_err(), "bit {bit}");
        assert!(reference::decode(&blob).is_err(), "bit {bit}");
        blob[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_other_length_is_refused() {
    let mut blob = sample();
    for len in 0..blob.len() {
        assert!(
            matches!(
                CompressedMatrix::from_bytes(&blob[..len]),
                Err(Error::Truncated { .. })
            ),
            "{len} bytes"
        );
        assert!(reference::decode(&blob[..len]).is_err(), "{len} bytes");
    }
    blob.push(0);
    assert!(matches!(
        CompressedMatrix::from_bytes(&blob),
        Err(Error::TrailingBytes { .. })
    ));
    assert!(reference::decode(&blob).is_err());
}

/// Overwrites bytes of [`sample`] and makes both checksums right again: what a forger can do.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut blob = sample();
    blob[at..at + bytes.len()].copy_from_slice(bytes);
    sign(&mut blob);
    blob
}

fn sign(blob: &mut [u8]) {
    let payload = reference::crc32(&blob[128..]);
    blob[40..44].copy_from_slice(&payload.to_le_bytes());
    let header = reference::crc32(&blob[..44]);
    blob[44..48].copy_from_slice(&header.to_le_bytes());
}

#[test]
fn forgeries_with_right_checksums_are_refused() {
    const OFFSETS: usize = 128 + 4 * 2816;
    const PATCHES: usize = OFFSETS + 32;
    let huge = u64::MAX.to_le_bytes();
    let field = |field, offset, value| Error::HeaderField {
        field,
        offset,
        value,
    };
    let cases = [
        (forged(0, b"z"), Error::Magic),
        (forged(8, &[2]), Error::Version(2)),
        (forged(10, &[0]), Error::Layout(0)),
        (forged(10, &[2]), Error::Layout(2)),
        (forged(10, &[3]), Error::Layout(3)),
        (forged(10, &[4]), Error::Layout(4)),
        (forged(12, &[241]), field("base", 12, 241)),
        (forged(12, &[247]), field("base", 12, 247)),
        (forged(12, &[249]), field("base", 12, 249)),
        (forged(16, &huge), field("rows", 16, u64::MAX)),
        (forged(24, &huge), field("cols", 24, u64::MAX)),
        (forged(32, &huge), field("patches", 32, u64::MAX)),
        // One more than there may be, and as many as offsets could count.
        (
            forged(32, &(1u64 << 31).to_le_bytes()),
            field("patches", 32, 1 << 31),
        ),
        (
            forged(32, &(u64::from(u32::MAX)).to_le_bytes()),
            field("patches", 32, u32::MAX.into()),
        ),
        (
            forged(32, &((1u64 << 31) - 1).to_le_bytes()),
            Error::Truncated {
                expected: PATCHES as u64 + (1 << 32),
                found: sample().len() as u64,
            },
        ),
        (forged(99, &[1]), field("reserved", 99, 1)),
        (
            forged(16, &[[255, 255, 255, 255, 0, 0, 0, 0]; 2].concat()),
            Error::MatrixTooLarge {
                rows: 0xFFFF_FFFF,
                cols: 0xFFFF_FFFF,
            },
        ),
        (
            forged(OFFSETS, &[1]),
            Error::PatchOffset {
                tile: 0,
                offset: OFFSETS as u64,
            },
        ),
        (
            forged(OFFSETS + 8, &[1]),
            Error::PatchOffset {
                tile: 2,
                offset: OFFSETS as u64 + 8,
            },
        ),
        (
            forged(OFFSETS + 4, &[255; 4]),
            Error::PatchOffset {
                tile: 1,
                offset: OFFSETS as u64 + 4,
            },
        ),
        // The first patch of the last tile points at the last weight of the tile: padding.
        (
            forged(PATCHES + 2 * last_patch(), &[0xFF, 0xFF]),
            Error::PatchPosition {
                tile: 3,
                index: last_patch(),
            },
        ),
        // The second patch repeats the first.
        (
            forged(PATCHES + 2, &sample()[PATCHES..][..2]),
            Error::PatchPosition { tile: 0, index: 1 },
        ),
    ];
    for (blob, expected) in cases {
        assert_eq!(CompressedMatrix::from_bytes(&blob), Err(expected.clone()));
        assert!(reference::decode(&blob).is_err(), "{expected}");
    }
}

fn last_patch() -> usize {
    CompressedMatrix::from_bytes(sample()).unwrap().outliers() - 1
}

#[test]
fn output_of_another_size_is_refused() {
    let blob = sample();
    let matrix = CompressedMatrix::from_bytes(&blob).unwrap();
    let mut output = vec![0; matrix.original_bytes() + 2];
    assert!(matches!(
        decode_into(&matrix, &mut output),
        Err(Error::OutputSize { .. })
    ));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let bits = [0u16; 6];
    assert!(Matrix::from_bits(2, 3, &bits).is_ok());
    for (rows, cols) in [(2, 2), (6, 0), (usize::MAX, 2), (usize::MAX, usize::MAX)] {
        assert!(matches!(
            Matrix::from_bits(rows, cols, &bits),
            Err(Error::MatrixSize { .. })
        ));
    }
    assert!(matches!(
        Matrix::from_bits(1 << 32, 0, &[]),
        Err(Error::MatrixTooLarge { .. })
    ));
}

/// The fenced blocks of the worked example: the weights, then the bytes that are not zero.
#[test]
fn the_example_in_the_format_document_is_true() {
    let document = include_str!("../docs/FORMAT.md");
    let (_, example) = document.split_once("## Worked example").unwrap();
    let mut blocks = example.split("```").skip(1).step_by(2);
    let mut lines = || blocks.next().unwrap().lines().skip(1);

    let rows: Vec<Vec<u16>> = lines().map(|row| hex(row).collect()).collect();
    let bits = rows.concat();
    let mut blob = Vec::new();
    for line in lines() {
        let (at, bytes) = line.split_once(':').unwrap();
        blob.resize(usize::from_str_radix(at, 16).unwrap(), 0);
        blob.extend(hex(bytes).map(|byte| byte as u8));
    }

    let compressed = round_trip(rows.len(), rows[0].len(), &bits);
    assert!(
        compressed.as_bytes() == blob,
        "the bytes are\n{}",
        dump(&compressed)
    );
}

fn hex(line: &str) -> impl Iterator<Item = u16> {
    line.split_whitespace()
        .map(|word| u16::from_str_radix(word, 16).unwrap())
}

fn dump(compressed: &CompressedMatrix) -> String {
    let chunks = compressed.as_bytes().chunks(16).enumerate();
    let mut text = String::new();
    for (i, chunk) in chunks.filter(|(_, chunk)| chunk.iter().any(|&byte| byte != 0)) {
        let bytes: String = chunk.iter().map(|byte| format!(" {byte:02x}")).collect();
        text += &format!("{:04x}:{bytes}\n", 16 * i);
    }
    text + &format!("{:04x}:", compressed.as_bytes().len())
}
