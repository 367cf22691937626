//! Byte planes: any bytes come back, and what is stored means what `docs/FORMAT.md` says.

use std::io::Read;

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use zipserv::{Element, Error, Planes};

#[path = "reference.rs"]
#[allow(dead_code)]
mod reference;

fn elements() -> Vec<Element> {
    let widths = [1, 2, 4, 8].into_iter();
    widths
        .flat_map(|width| [Element::integer(width), Element::float(width)])
        .flatten()
        .collect()
}

/// Decodes a frame with an implementation by others.
fn other_zstd(frame: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(frame).ok()?;
    let mut bytes = Vec::new();
    decoder.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Encodes and decodes, here and by the document; tells whether it has shrunk.
fn check(tensor: &[u8], element: Element) -> bool {
    let Some(planes) = Planes::encode(tensor, element) else {
        return false;
    };
    assert!(planes.stored_bytes() < tensor.len());
    assert_eq!(planes.stored_bytes(), planes.as_bytes().len());
    let read = Planes::from_bytes(planes.as_bytes()).unwrap();
    assert_eq!(read, planes);
    assert_eq!(read.original_bytes(), tensor.len());
    assert!(read.decode().unwrap() == tensor);
    assert!(reference::planes(planes.as_bytes(), other_zstd).unwrap() == tensor);
    true
}

/// Gaussian F32 weights.
fn gauss(count: usize) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(1);
    let normal = rand_distr::Normal::new(0.0, 0.02f32).unwrap();
    (0..count).map(|_| rng.sample(normal)).collect()
}

#[test]
fn tensors_of_all_kinds_come_back() {
    let mut rng = SmallRng::seed_from_u64(2);
    // More than a chunk, and no whole number of them.
    let weights = gauss(300_001);
    let f32s: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let bf16s: Vec<u8> = weights
        .iter()
        .flat_map(|w| half::bf16::from_f32(*w).to_le_bytes())
        .collect();
    let cast: Vec<u8> = bf16s.chunks(2).flat_map(|w| [0, 0, w[0], w[1]]).collect();
    let noise: Vec<u8> = (0..1_000_000).map(|_| rng.random()).collect();
    let mixed = [&noise[..400_000], &[0; 1_200_000], &f32s[..400_000]].concat();
    let rows: Vec<u8> = noise[..5000].repeat(1000);
    for (name, tensor, shrinks) in [
        ("F32", &f32s, true),
        ("BF16", &bf16s, true),
        ("F32 of BF16 values", &cast, true),
        ("noise", &noise, false),
        ("mixed", &mixed, true),
        ("rows that repeat", &rows, true),
        ("zeros", &vec![0; 3_000_000], true),
        ("nothing", &vec![], false),
    ] {
        for element in elements() {
            let whole = tensor.len() / element.width() * element.width();
            assert_eq!(
                check(&tensor[..whole], element),
                shrinks,
                "{name} {element:?}"
            );
        }
    }
}

/// The bar: Huffman codes of single exponents, and sign and mantissa as they are.
#[test]
fn gaussian_weights_take_10_64_bits() {
    let weights: Vec<u8> = gauss(4 << 20)
        .iter()
        .flat_map(|w| half::bf16::from_f32(*w).to_le_bytes())
        .collect();
    let planes = Planes::encode(&weights, Element::float(2).unwrap()).unwrap();
    let bits = 16.0 * planes.stored_bytes() as f64 / weights.len() as f64;
    assert!(bits < 10.64, "{bits}");
}

#[test]
fn threads_do_not_matter() {
    let tensor: Vec<u8> = gauss(3_000_000)
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    let element = Element::float(4).unwrap();
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build()
            .unwrap()
            .install(|| Planes::encode(&tensor, element).unwrap())
    };
    assert!(on(1) == on(3));
}

#[test]
fn outputs_have_the_tensors_size() {
    let planes = Planes::encode(&[7; 1000], Element::integer(1).unwrap()).unwrap();
    let error = planes.decode_into(&mut [0; 999]).unwrap_err();
    let expected = Error::OutputSize {
        expected: 1000,
        found: 999,
    };
    assert_eq!(error, expected);
}

/// Of a whole tensor every single bit: refused, or of no meaning.
#[test]
fn flipped_bits_are_noticed() {
    let tensor: Vec<u8> = gauss(200).iter().flat_map(|w| w.to_le_bytes()).collect();
    let planes = Planes::encode(&tensor, Element::float(4).unwrap()).unwrap();
    let mut silent = 0;
    for bit in 0..8 * planes.stored_bytes() {
        let mut blob = planes.as_bytes().to_vec();
        blob[bit / 8] ^= 1 << (bit % 8);
        match Planes::from_bytes(blob).and_then(|planes| planes.decode()) {
            Err(_) => {}
            Ok(found) => {
                assert!(found == tensor, "bit {bit}");
                silent += 1;
            }
        }
    }
    // Some bits of a frame's header say nothing about the bytes in it.
    assert!(silent < 80, "{silent}");
}

proptest! {
    #[test]
    fn any_bytes_come_back(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        times in 1usize..500,
        element in prop::sample::select(elements()),
    ) {
        let tensor = bytes.repeat(times);
        check(&tensor[..tensor.len() / element.width() * element.width()], element);
    }

    /// Whatever the bytes, they are refused, or both decoders agree.
    #[test]
    fn any_stored_bytes_are_refused_or_agreed_on(
        header in prop::array::uniform4(0u8..9),
        bytes in 0u64..2000,
        chunk in 0u32..600,
        rest in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut blob = b"ZIPSERV\0\x01\0\x04\0".to_vec();
        blob.extend([header[0], header[1] & 1, 0, 0]);
        blob.extend(bytes.to_le_bytes());
        blob.extend(chunk.to_le_bytes());
        blob.extend([0; 4]);
        blob.extend(rest);
        let entry = 4 + 4 * usize::from(header[0]);
        let chunks = bytes.div_ceil((u64::from(chunk) * u64::from(header[0])).max(1)) as usize;
        if let Some(table) = blob.get(32..32 + chunks * entry) {
            let crc = crc32fast::hash(&[&blob[..28], table].concat());
            blob[28..32].copy_from_slice(&crc.to_le_bytes());
        }
        let ours = Planes::from_bytes(&blob).and_then(|planes| planes.decode());
        let theirs = reference::planes(&blob, other_zstd);
        prop_assert_eq!(ours.ok(), theirs.ok());
    }
}
