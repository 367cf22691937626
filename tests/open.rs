//! Compressed checkpoints are read tensor by tensor.

use std::{fs, path::Path};

use half::bf16;
use tempfile::tempdir;
use zipserv::{
    CompressedMatrix,
    checkpoint::{Checkpoint, Error, ErrorKind, TensorView, compress, open},
    decode,
};

mod support;
use support::*;

const INDEX: &str = "model.safetensors.index.json";
const STORED_INDEX: &str = "model.zipserv.safetensors.index.json";

fn matrix(name: &str, shape: &[u64]) -> Tensor {
    let count = shape.iter().product::<u64>() as usize;
    tensor(name, "BF16", shape, weights(count, count as u32))
}

/// Compresses tensors to a file.
fn put(path: &Path, tensors: &[Tensor]) {
    let folder = tempdir().unwrap();
    let original = folder.path().join("original");
    fs::write(&original, checkpoint(tensors)).unwrap();
    compress(original, path, &options()).unwrap();
}

fn index(entries: &[(&str, &str)]) -> String {
    let entries = entries.iter().map(|(a, b)| format!("{a:?}:{b:?}"));
    format!(
        r#"{{"weight_map":{{{}}}}}"#,
        entries.collect::<Vec<_>>().join(",")
    )
}

fn all_names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint
        .tensors()
        .map(|tensor: TensorView| tensor.name())
        .collect()
}

/// A checkpoint may be used by many threads, and outlive the one that opened it.
const _: fn() = || {
    fn is_shared<T: Send + Sync + 'static>() {}
    is_shared::<Checkpoint>();
};

#[test]
fn all_tensors_of_a_file_are_there() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("small");
    let tensors = [
        matrix("up", &[96, 160]),
        matrix("conv", &[3, 40, 5, 60]),
        matrix("norm", &[7]),
        matrix("empty", &[0, 5]),
        tensor("frequencies", "F32", &[3, 3], weights(18, 3)),
        tensor("odd", "U8", &[3], vec![1, 2, 3]),
        tensor("future", "F3_FUTURE", &[10, 10], vec![7; 38]),
        tensor("scalar", "F64", &[], vec![1; 8]),
        // As a matrix it would grow: it is made of planes.
        tensor(
            "spread",
            "BF16",
            &[256, 256],
            (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        ),
    ];
    put(&path, &tensors);
    let checkpoint = open(&path).unwrap();

    assert_eq!(
        checkpoint.names().collect::<Vec<_>>(),
        ["conv", "spread", "up"]
    );
    let others: Vec<_> = checkpoint.other_names().collect();
    let expected = ["empty", "frequencies", "future", "norm", "odd", "scalar"];
    assert_eq!(others, expected);
    assert_eq!(all_names(&checkpoint).len(), tensors.len());
    for tensor in &tensors {
        let found = checkpoint.tensor(&tensor.name).unwrap();
        assert_eq!(found.name(), tensor.name);
        assert_eq!(found.dtype(), tensor.dtype);
        assert_eq!(found.shape(), tensor.shape);
        assert_eq!(found.original_bytes(), tensor.bytes.len() as u64);
        assert_eq!(found.path(), path);
        assert!(*found.decoded().unwrap() == tensor.bytes);
        if found.header().is_some() {
            let matrix = checkpoint.matrix(&tensor.name).unwrap();
            let (cols, leading) = tensor.shape.split_last().unwrap();
            let rows = leading.iter().product::<u64>();
            assert_eq!((matrix.rows() as u64, matrix.cols() as u64), (rows, *cols));
            assert_eq!(found.header(), Some(matrix.header()));
            assert_eq!(found.stored_bytes(), matrix.stored_bytes() as u64);
            assert!(found.stored_bytes() < found.original_bytes());
            let bits = decode(&matrix).into_iter().map(bf16::to_bits);
            assert!(bits.flat_map(u16::to_le_bytes).eq(tensor.bytes.clone()));
        } else if found.is_compressed() {
            assert!(found.stored_bytes() < found.original_bytes());
            assert!(found.bytes().is_err());
        } else {
            assert_eq!(found.stored_bytes(), found.original_bytes());
            assert!(found.bytes().unwrap() == tensor.bytes);
        }
    }
}

/// Matrices come from an archive too: what is in a file for GPUs, and more that there are planes.
#[test]
fn archives_give_matrices() {
    let folder = tempdir().unwrap();
    let at = |name| folder.path().join(name);
    let tensors = [
        matrix("up", &[96, 160]),
        matrix("narrow", &[500, 3]),
        matrix("norm", &[700]),
    ];
    fs::write(at("original"), checkpoint(&tensors)).unwrap();
    compress(at("original"), at("small"), &options()).unwrap();
    compress(at("original"), at("archive"), &options().archive(true)).unwrap();
    let [small, archive] = ["small", "archive"].map(|name| open(at(name)).unwrap());
    assert_eq!(archive.names().collect::<Vec<_>>(), ["up"]);
    assert!(archive.names().eq(small.names()) && archive.other_names().eq(small.other_names()));
    assert_eq!(archive.matrix("up").unwrap(), small.matrix("up").unwrap());
    assert_eq!(archive.tensor("up").unwrap().header(), None);
    let narrow = archive.matrix("narrow").unwrap();
    assert_eq!((narrow.rows(), narrow.cols()), (500, 3));
    assert!(matches!(
        archive.matrix("norm").unwrap_err().kind(),
        ErrorKind::NoMatrix { .. }
    ));
    for tensor in &tensors {
        for checkpoint in [&small, &archive] {
            let found = checkpoint.tensor(&tensor.name).unwrap();
            assert!(*found.decoded().unwrap() == tensor.bytes);
        }
    }
}

/// A matrix has memory of its own: it outlives the checkpoint, and does not change with the file.
#[test]
fn matrices_are_kept_without_the_file() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("small");
    put(&path, &[matrix("up", &[96, 160])]);
    let matrix: CompressedMatrix<'static> = open(&path).unwrap().matrix("up").unwrap();
    let stored = fs::read(&path).unwrap();
    let at = stored.len() - matrix.stored_bytes();
    fs::write(&path, vec![0; stored.len()]).unwrap();
    assert!(stored[at..] == *matrix.as_bytes());
    assert_eq!(matrix.slice(32..96, 0..64).unwrap().rows(), 64);
}

#[test]
fn what_is_not_there_is_named() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("small");
    put(
        &path,
        &[
            matrix("model.layers.0.mlp.up_proj.weight", &[64, 128]),
            matrix("model.layers.1.mlp.up_proj.weight", &[64, 128]),
            tensor("model.norm.weight", "F32", &[4], vec![0; 16]),
            matrix("重み", &[64, 128]),
        ],
    );
    let checkpoint = open(&path).unwrap();
    for (name, near) in [
        (
            "model.layers.1.mlp.up_proj.bias",
            Some("model.layers.1.mlp.up_proj.weight"),
        ),
        (
            "layers.0.mlp.up_proj.weight",
            Some("model.layers.0.mlp.up_proj.weight"),
        ),
        (
            "model.layers.17.mlp.up_proj.weight",
            Some("model.layers.1.mlp.up_proj.weight"),
        ),
        ("norm.weight", Some("model.norm.weight")),
        ("重", Some("重み")),
        ("lm_head", None),
        ("", None),
    ] {
        let error = checkpoint.matrix(name).unwrap_err();
        assert_eq!(error.path(), path);
        let hint = near.map(|near| format!("; there is `{near}`"));
        let expected = format!("no tensor `{name}`{}", hint.unwrap_or_default());
        assert_eq!(text(&error), expected);
        match error.kind() {
            ErrorKind::NoTensor { tensor, near: n } => {
                assert_eq!((tensor.as_str(), n.as_deref()), (name, near));
            }
            other => panic!("{other:?}"),
        }
        assert!(checkpoint.tensor(name).is_err());
    }
    let error = checkpoint.matrix("model.norm.weight").unwrap_err();
    let expected = "tensor `model.norm.weight` (F32 of shape [4]) is not a compressed matrix";
    assert_eq!(text(&error), expected);
    let error = checkpoint.tensor("重み").unwrap().bytes().unwrap_err();
    assert_eq!(text(&error), "tensor `重み` is compressed");
}

#[test]
fn a_checkpoint_without_tensors_is_open() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("small");
    put(&path, &[]);
    let checkpoint = open(&path).unwrap();
    assert_eq!(checkpoint.tensors().count(), 0);
    assert_eq!(text(&checkpoint.matrix("w").unwrap_err()), "no tensor `w`");
}

#[test]
fn a_folder_is_what_its_index_names() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("model/vae")).unwrap();
    let original = |name: &str, tensors: &[Tensor]| {
        fs::write(at(name), checkpoint(tensors)).unwrap();
    };
    let norm = || tensor("norm", "F32", &[4], vec![5; 16]);
    original(
        "model/model-00001-of-00002.safetensors",
        &[matrix("a", &[64, 128]), norm()],
    );
    original(
        "model/model-00002-of-00002.safetensors",
        &[matrix("b", &[32, 256]), matrix("a", &[1, 64])],
    );
    // The same once more in one file, and another model in a folder of its own.
    original("model/consolidated.safetensors", &[matrix("a", &[2, 640])]);
    original("model/vae/vae.safetensors", &[matrix("c", &[64, 128])]);
    let shards = index(&[
        ("a", "model-00001-of-00002.safetensors"),
        ("norm", "model-00001-of-00002.safetensors"),
        ("b", "model-00002-of-00002.safetensors"),
    ]);
    fs::write(at("model").join(INDEX), &shards).unwrap();
    compress(at("model"), at("small"), &options()).unwrap();

    for path in [at("small"), at("small").join(STORED_INDEX)] {
        let checkpoint = open(&path).unwrap();
        assert_eq!(all_names(&checkpoint), ["a", "b", "norm"]);
        assert_eq!(checkpoint.matrix("a").unwrap().rows(), 64);
        assert_eq!(checkpoint.matrix("b").unwrap().cols(), 256);
        let norm = checkpoint.tensor("norm").unwrap();
        assert_eq!(norm.bytes().unwrap(), [5; 16]);
        let shard = at("small/model-00001-of-00002.zipserv.safetensors");
        assert_eq!(norm.path(), shard);
        assert_eq!(text(&checkpoint.matrix("c").unwrap_err()), "no tensor `c`");
    }
    let vae = open(at("small/vae")).unwrap();
    assert_eq!(all_names(&vae), ["c"]);

    let refused = |name: &str, expected: &str| {
        let error: Error = open(at("small")).unwrap_err();
        assert_eq!(error.path(), at(name));
        assert_eq!(text(&error), expected);
    };
    let stored_shards = fs::read(at("small").join(STORED_INDEX)).unwrap();
    // Without the index there are three tensors called `a`.
    fs::remove_file(at("small").join(STORED_INDEX)).unwrap();
    refused(
        "small/model-00001-of-00002.zipserv.safetensors",
        &format!(
            "tensor `a` is also in {}, and no index says which counts",
            at("small/consolidated.zipserv.safetensors").display()
        ),
    );
    fs::remove_file(at("small/consolidated.zipserv.safetensors")).unwrap();
    fs::remove_file(at("small/model-00002-of-00002.zipserv.safetensors")).unwrap();
    assert_eq!(all_names(&open(at("small")).unwrap()), ["a", "norm"]);

    // An index of what is not there.
    fs::write(at("small").join(STORED_INDEX), stored_shards).unwrap();
    let index_name = format!("small/{STORED_INDEX}");
    refused(
        &index_name,
        "the index places tensor `b.zipserv` in `model-00002-of-00002.zipserv.safetensors`, which does not exist",
    );
    let wrong = index(&[("b", "model-00001-of-00002.zipserv.safetensors")]);
    fs::write(at("small").join(STORED_INDEX), wrong).unwrap();
    refused(
        &index_name,
        "the index places tensor `b` in `model-00001-of-00002.zipserv.safetensors`, which does not have it",
    );
    let outside = index(&[("a", "../model/consolidated.safetensors")]);
    fs::write(at("small").join(STORED_INDEX), outside).unwrap();
    refused(
        &index_name,
        "the index places tensor `a` in `../model/consolidated.safetensors`, which is not a file name within the folder",
    );

    fs::write(at("small").join(STORED_INDEX), index(&[])).unwrap();
    assert_eq!(open(at("small")).unwrap().tensors().count(), 0);
    fs::write(at("small/fp16.safetensors.index.json"), index(&[])).unwrap();
    refused(
        "small",
        "more than one index of shards in this folder: open one of them",
    );
}

#[test]
fn what_is_not_compressed_is_opened_as_it_is() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors = [
        matrix("w", &[64, 128]),
        tensor("b", "F32", &[1], vec![1; 4]),
    ];
    fs::write(at("plain.safetensors"), checkpoint(&tensors)).unwrap();
    for path in [folder.path(), &at("plain.safetensors")] {
        let opened = open(path).unwrap();
        assert_eq!(opened.tensors().count(), tensors.len());
        for tensor in &tensors {
            let view = opened.tensor(&tensor.name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (tensor.dtype, &*tensor.shape));
            assert_eq!(
                (view.stored_name(), view.is_compressed()),
                (&*tensor.name, false)
            );
            assert_eq!(view.bytes().unwrap(), tensor.bytes);
            assert_eq!(view.decoded().unwrap(), tensor.bytes);
            let error = view.matrix().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NoMatrix { .. }));
        }
    }
    let error = open(at("nothing")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io(_)), "{error}");
    fs::create_dir_all(at("empty/sub")).unwrap();
    put(&at("empty/sub/a.safetensors"), &[matrix("w", &[64, 128])]);
    let error = open(at("empty")).unwrap_err();
    assert_eq!(
        text(&error),
        "no .safetensors file in this folder; weights in .bin, .pt and .gguf files are not read"
    );
}

/// One damaged matrix is refused by name and place; all else is still to be had.
#[test]
fn a_damaged_matrix_is_refused_alone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("small");
    put(
        &path,
        &[matrix("bad", &[64, 128]), matrix("good", &[96, 160])],
    );
    let mut bytes = fs::read(&path).unwrap();
    let starts: Vec<_> = (0..bytes.len())
        .filter(|&at| bytes[at..].starts_with(b"ZIPSERV\0"))
        .collect();
    bytes[starts[0] + 1000] ^= 1;
    fs::write(&path, bytes).unwrap();

    let checkpoint = open(&path).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["bad", "good"]);
    checkpoint.matrix("good").unwrap();
    let error = checkpoint.matrix("bad").unwrap_err();
    assert_eq!(error.path(), path);
    match error.kind() {
        ErrorKind::Tensor {
            tensor,
            offset,
            source: zipserv::Error::Checksum { part, .. },
        } => assert_eq!(
            (tensor.as_str(), *offset, *part),
            ("bad", starts[0] as u64, "payload")
        ),
        other => panic!("{other:?}"),
    }
    let error = checkpoint.tensor("bad").unwrap().decoded().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Tensor { .. }));
}
