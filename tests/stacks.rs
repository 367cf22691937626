//! Tensors of three and more dimensions as stacks of experts.

use std::{fs, path::Path};

use proptest::prelude::*;
use safetensors::SafeTensors;
use tempfile::tempdir;
use zipserv::{
    ExpertStack, Matrix,
    checkpoint::{ErrorKind, Storage, compress, decompress, inspect, open},
    decode, encode,
};

#[allow(dead_code)]
mod reference;
mod support;
use support::*;

fn stack(name: &str, shape: &[u64]) -> Tensor {
    let count = shape.iter().product::<u64>() as usize;
    tensor(name, "BF16", shape, weights(count, count as u32))
}

/// The stored bytes of the only tensor, and the version of the container.
fn stored(container: &[u8]) -> (Vec<u8>, String) {
    let (_, header) = SafeTensors::read_metadata(container).unwrap();
    let version = header.metadata().as_ref().unwrap()["zipserv.version"].clone();
    let tensors = SafeTensors::deserialize(container).unwrap();
    let (_, view) = tensors.iter().next().unwrap();
    (view.data().to_vec(), version)
}

fn bits(bytes: &[u8]) -> Vec<u16> {
    let pairs = bytes.chunks_exact(2);
    pairs.map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

fn put(path: &Path, tensors: &[Tensor], archive: bool) {
    let folder = tempdir().unwrap();
    let original = folder.path().join("original");
    fs::write(&original, checkpoint(tensors)).unwrap();
    compress(original, path, &options().archive(archive)).unwrap();
}

/// What the document says of each shape: rows of the matrix, and the version that the container then has.
#[test]
fn stacks_are_aligned_where_that_takes_little() {
    let cases: &[(&[u64], usize, &str)] = &[
        // Aligned as they are.
        (&[4, 64, 128], 256, "1"),
        (&[96, 160], 96, "1"),
        // An eighth of padding at most.
        (&[4, 57, 128], 256, "3"),
        (&[4, 56, 128], 224, "1"),
        (&[3, 2, 95, 120], 6 * 96, "3"),
        (&[300, 60, 50], 300 * 64, "3"),
        // There is nothing to align.
        (&[1, 60, 128], 60, "1"),
        (&[61, 128], 61, "1"),
        // Padding would take it all.
        (&[400, 3, 128], 1200, "1"),
        // No smaller than the tensor, with padding both ways; as one matrix it is.
        (&[40, 57, 46], 40 * 57, "1"),
    ];
    for (shape, rows, version) in cases {
        let tensor = stack("w", shape);
        let container = round_trip(&checkpoint(std::slice::from_ref(&tensor)));
        let (blob, found) = stored(&container);
        let matrix = reference::decode(&blob).unwrap();
        assert_eq!((matrix.rows, &*found), (*rows, *version), "{shape:?}");
        let shape: Vec<_> = shape.iter().map(|&dim| dim as usize).collect();
        let weights = reference::tensor(&matrix, &shape).unwrap();
        assert!(weights == bits(&tensor.bytes), "{shape:?}");
    }
}

/// Convolutions and others whose last dimension is small are as they were: planes.
#[test]
fn convolutions_are_no_stacks() {
    for shape in [&[64, 32, 3, 3][..], &[64, 57, 5], &[8, 60, 16, 16]] {
        let folder = tempdir().unwrap();
        let path = folder.path().join("original");
        fs::write(&path, checkpoint(&[stack("conv", shape)])).unwrap();
        let report = inspect(&path, &options()).unwrap();
        let tensor = report.tensors().next().unwrap();
        assert_eq!((tensor.storage, tensor.stack), (Storage::Planes, None));
    }
}

#[test]
fn padding_is_written_as_nothing() {
    let (experts, rows, cols) = (3, 60, 120);
    let mut tensor = stack("w", &[experts, rows, cols]);
    // The last row of an expert is out of the window.
    let at = 2 * (59 * cols) as usize;
    tensor.bytes[at..at + 2 * cols as usize].fill(0);
    let (blob, _) = stored(&round_trip(&checkpoint(&[tensor])));
    let matrix = reference::decode(&blob).unwrap();
    let base = u16::from(blob[12]);
    for expert in 0..3 {
        for row in 60..64 {
            let row = &matrix.bits[(64 * expert + row) * 120..][..120];
            assert!(row.iter().all(|&weight| weight == base << 7));
        }
    }
    assert_eq!(u64::from_le_bytes(blob[32..40].try_into().unwrap()), 120);
}

/// Another encoder may leave there what it likes.
#[test]
fn what_padding_holds_is_dropped() {
    let (experts, rows, cols) = (2, 60, 64);
    let original = checkpoint(&[stack("w", &[experts, rows, cols])]);
    let weights = bits(&original[original.len() - 2 * 2 * 60 * 64..]);
    let mut all = vec![0x7FC0; 2 * 64 * 64];
    for expert in 0..2 {
        all[expert * 64 * 64..][..60 * 64].copy_from_slice(&weights[expert * 60 * 64..][..60 * 64]);
    }
    let matrix = encode(&Matrix::from_bits(128, 64, &all).unwrap()).unwrap();
    assert!(matrix.outliers() >= 2 * 4 * 64);
    let length = u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
    let header = serde_json::to_string(str::from_utf8(&original[8..8 + length]).unwrap()).unwrap();
    let (crc, len) = (crc32fast::hash(&original), matrix.stored_bytes());
    let container = file(
        &format!(
            r#"{{"__metadata__":{{"zipserv.version":"3","zipserv.suffix":".zipserv","zipserv.header":{header},"zipserv.crc32":"{crc:08x}"}},"w.zipserv":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#
        ),
        matrix.as_bytes(),
    );
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("small"), container).unwrap();
    decompress(at("small"), at("restored"), &options()).unwrap();
    assert!(fs::read(at("restored")).unwrap() == original);
    let checkpoint = open(at("small")).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    assert!(bits(&tensor.decoded().unwrap()) == weights);
    assert!(bits(&tensor.experts().unwrap().decode(1).unwrap()) == weights[60 * 64..]);
    assert_eq!(tensor.matrix().unwrap().rows(), 120);
}

/// Whichever way the tensor is stored.
#[test]
fn experts_of_a_tensor_are_to_be_had() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors = [
        stack("aligned", &[5, 60, 128]),
        stack("unaligned", &[5, 40, 128]),
        stack("whole", &[2, 3, 64, 64]),
        stack("one", &[1, 40, 200]),
        stack("narrow", &[500, 3, 4]),
        stack("raw", &[2, 3, 4]),
        stack("none", &[0, 3, 4]),
        stack("empty", &[3, 0, 4]),
        stack("matrix", &[60, 96]),
        tensor("other", "F16", &[2, 60, 96], weights(2 * 60 * 96, 3)),
    ];
    put(&at("small"), &tensors, false);
    put(&at("archive"), &tensors, true);
    for name in ["small", "archive"] {
        let checkpoint = open(at(name)).unwrap();
        for tensor in &tensors[..6] {
            let view = checkpoint.tensor(&tensor.name).unwrap();
            let stack = view.experts().unwrap();
            let [outer @ .., rows, cols] = &tensor.shape[..] else {
                unreachable!()
            };
            let experts = outer.iter().product::<u64>();
            assert_eq!(stack.experts() as u64, experts);
            assert_eq!((stack.rows() as u64, stack.cols() as u64), (*rows, *cols));
            let mut all = Vec::new();
            for expert in 0..stack.experts() {
                all.extend(stack.decode(expert).unwrap());
            }
            assert!(all == tensor.bytes, "{}", tensor.name);
            if tensor.name != "raw" {
                // Without padding, and not as it is stored.
                let matrix = view.matrix().unwrap();
                assert_eq!(matrix.rows() as u64, experts * rows);
                let weights = decode(&matrix).into_iter().map(half::bf16::to_bits);
                assert!(weights.eq(bits(&tensor.bytes)));
            }
        }
        assert_eq!(
            checkpoint
                .tensor("empty")
                .unwrap()
                .experts()
                .unwrap()
                .experts(),
            3
        );
        assert!(checkpoint.tensor("none").unwrap().experts().is_err());
        for name in ["matrix", "other"] {
            let error = checkpoint.tensor(name).unwrap().experts().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NoStack { .. }), "{error}");
        }
    }
    let small = open(at("small")).unwrap();
    assert_eq!(small.tensor("aligned").unwrap().header(), None);
    assert!(small.tensor("unaligned").unwrap().header().is_some());
}

#[test]
fn a_report_says_what_is_a_stack() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors = [
        stack("aligned", &[5, 60, 128]),
        stack("unaligned", &[5, 40, 128]),
        stack("whole", &[2, 3, 64, 64]),
        stack("one", &[1, 64, 96]),
        stack("matrix", &[64, 96]),
    ];
    fs::write(at("original"), checkpoint(&tensors)).unwrap();
    let made = compress(at("original"), at("small"), &options()).unwrap();
    let would_be = inspect(at("original"), &options()).unwrap();
    let is = inspect(at("small"), &options()).unwrap();
    for report in [made, would_be, is] {
        let stacks = report.tensors().map(|tensor| {
            let stack = tensor.stack?;
            Some((stack.experts, stack.rows, stack.is_aligned))
        });
        let expected = [
            Some((5, 60, true)),
            Some((5, 40, false)),
            Some((6, 64, true)),
            None,
            None,
        ];
        assert_eq!(stacks.collect::<Vec<_>>(), expected);
    }
}

/// Names of tensors, and rows and columns of each.
type Named<'a> = (&'a str, usize, usize);

/// Packs from a file and compares with what the weights give. Says whether all are compressed in one window.
fn pack<const PARTS: usize>(tensors: &[Tensor], experts: &[[Named; PARTS]]) -> bool {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    put(&at("small"), tensors, false);
    put(&at("archive"), tensors, true);
    let bytes = |name: &str| {
        let tensor = tensors.iter().find(|tensor| tensor.name == name).unwrap();
        &tensor.bytes[..]
    };
    let dense: Vec<Vec<u8>> = experts
        .iter()
        .map(|parts| {
            parts
                .iter()
                .flat_map(|part| bytes(part.0))
                .copied()
                .collect()
        })
        .collect();
    let rows = experts[0].iter().map(|part| part.1).sum();
    let matrices: Vec<_> = dense
        .iter()
        .map(|bytes| Matrix::from_le_bytes(rows, experts[0][0].2, bytes).unwrap())
        .collect();
    let expected = ExpertStack::encode(&matrices).unwrap();
    let names: Vec<_> = experts
        .iter()
        .map(|parts| parts.map(|part| part.0))
        .collect();
    for name in ["small", "archive"] {
        let stack = open(at(name)).unwrap().pack_experts(&names).unwrap();
        assert_eq!((stack.experts(), stack.rows()), (experts.len(), rows));
        assert!(stack.matrix() == expected.matrix(), "{name}");
        for (expert, dense) in dense.iter().enumerate() {
            assert!(stack.decode(expert).unwrap() == *dense);
        }
    }
    let small = open(at("small")).unwrap();
    let base = |name| small.tensor(name).unwrap().header().map(|h| h.base());
    let first = base(names[0][0]);
    first.is_some() && names.iter().flatten().all(|name| base(name) == first)
}

#[test]
fn experts_stored_one_by_one_are_packed() {
    let with = |name: &str, rows: u64, cols: u64, seed: u32, exponents: i32| {
        let bytes = weights((rows * cols) as usize, seed);
        let moved = bits(&bytes).into_iter().map(|bits| {
            let exponent = i32::from(bits >> 7 & 0xFF) + exponents;
            (bits & 0x807F | (exponent as u16) << 7).to_le_bytes()
        });
        tensor(name, "BF16", &[rows, cols], moved.flatten().collect())
    };
    // In one window: put together as they are, whatever their rows.
    for rows in [64, 60] {
        let experts =
            ["a", "b", "c"].map(|name| with(name, rows, 128, u32::from(name.as_bytes()[0]), 0));
        let rows = rows as usize;
        let packed = ["a", "b", "c", "a"].map(|name| [(name, rows, 128)]);
        assert!(pack(&experts, &packed));
    }
    // In another one: encoded anew.
    let experts = [with("a", 64, 128, 1, 0), with("b", 64, 128, 2, -9)];
    assert!(!pack(&experts, &[[("a", 64, 128)], [("b", 64, 128)]]));
    // So small that it is no matrix.
    let experts = [with("a", 3, 5, 1, 0), with("b", 3, 5, 2, 0)];
    assert!(!pack(&experts, &[[("a", 3, 5)], [("b", 3, 5)]]));
    // Gate above up, where a strip ends between them and where none does.
    for rows in [64, 60] {
        let tensors = [
            with("gate 0", rows, 128, 1, 0),
            with("up 0", rows, 128, 2, 0),
            with("gate 1", rows, 128, 3, 0),
            with("up 1", rows, 128, 4, 0),
        ];
        let part = |name| (name, rows as usize, 128);
        let packed = [
            [part("gate 0"), part("up 0")],
            [part("gate 1"), part("up 1")],
        ];
        assert!(pack(&tensors, &packed));
    }
    // One matrix of a whole number of strips above one that is not.
    let tensors = [with("a", 64, 128, 1, 0), with("b", 60, 128, 2, 0)];
    assert!(pack(&tensors, &[[("a", 64, 128), ("b", 60, 128)]; 2]));
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("small");
    let tensors = [
        stack("a", &[64, 96]),
        stack("rows", &[96, 96]),
        stack("cols", &[64, 128]),
        stack("stack", &[2, 64, 96]),
        stack("empty", &[64, 0]),
        tensor("other", "F16", &[64, 96], weights(64 * 96, 3)),
    ];
    put(&path, &tensors, false);
    let checkpoint = open(&path).unwrap();
    let error = |names: &[[&str; 1]]| text(&checkpoint.pack_experts(names).unwrap_err());
    assert_eq!(error(&[]), "no experts are named");
    assert_eq!(error(&[["a"], ["b"]]), "no tensor `b`");
    assert_eq!(
        error(&[["a"], ["rows"]]),
        "experts differ: tensor `rows` has shape [96, 96], but `a` has [64, 96]"
    );
    assert_eq!(
        error(&[["a"], ["cols"]]),
        "experts differ: tensor `cols` has shape [64, 128], but `a` has [64, 96]"
    );
    assert_eq!(
        error(&[["stack"]]),
        "tensor `stack` (BF16 of shape [2, 64, 96]) is not a compressed matrix"
    );
    assert_eq!(
        error(&[["other"]]),
        "tensor `other` (F16 of shape [64, 96]) is not a compressed matrix"
    );
    let parts = checkpoint.pack_experts(&[["a", "cols"]]).unwrap_err();
    assert!(matches!(parts.kind(), ErrorKind::ExpertShape { .. }));
    let none: [[&str; 0]; 3] = [[]; 3];
    assert!(checkpoint.pack_experts(&none).is_err());
    // Parts of an expert may differ in rows, and matrices may have no weights.
    let stack = checkpoint.pack_experts(&[["a", "rows"]]).unwrap();
    assert_eq!((stack.experts(), stack.rows()), (1, 160));
    let stack = checkpoint.pack_experts(&[["empty"], ["empty"]]).unwrap();
    assert_eq!((stack.experts(), stack.rows(), stack.cols()), (2, 64, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// In both forms, restored, verified, inspected and made of each other.
    #[test]
    fn stacks_of_any_shape_come_back(
        outer in prop::collection::vec(0u64..6, 1..3),
        rows in prop_oneof![0u64..5, 20u64..140],
        cols in prop_oneof![0u64..5, 40u64..200],
    ) {
        let shape = [&outer[..], &[rows, cols]].concat();
        let stack = stack("w", &shape);
        let bytes = stack.bytes.clone();
        let container = round_trip(&checkpoint(&[stack]));
        let (blob, _) = stored(&container);
        if blob.starts_with(b"ZIPSERV\0\x01\0\x01\0") {
            let matrix = reference::decode(&blob).unwrap();
            let shape: Vec<_> = shape.iter().map(|&dim| dim as usize).collect();
            prop_assert!(reference::tensor(&matrix, &shape).unwrap() == bits(&bytes));
        }
        let folder = tempdir().unwrap();
        let path = folder.path().join("small");
        fs::write(&path, container).unwrap();
        let checkpoint = open(path).unwrap();
        if let Ok(experts) = checkpoint.tensor("w").unwrap().experts() {
            let all = (0..experts.experts()).flat_map(|expert| experts.decode(expert).unwrap());
            prop_assert!(all.eq(bytes));
        } else {
            prop_assert_eq!(outer.iter().product::<u64>(), 0);
        }
    }
}
