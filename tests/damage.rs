//! Whatever befalls a compressed file, it is refused or restored exactly, and nothing is left behind.

use std::fs;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tempfile::tempdir;
use zipserv::checkpoint::{compress, convert, decompress, inspect, open};

mod support;
use support::*;

/// Of each form.
const DAMAGES: usize = 500;

/// Tensors that become matrices, planes of each coder, and stay as they were.
fn original(rng: &mut SmallRng) -> Vec<u8> {
    let mut noise = |count: usize| (0..count).map(|_| rng.random()).collect::<Vec<u8>>();
    checkpoint(&[
        tensor("matrix", "BF16", &[96, 130], weights(96 * 130, 1)),
        tensor("narrow", "BF16", &[300, 4], weights(300 * 4, 2)),
        tensor("vector", "BF16", &[1000], weights(1000, 3)),
        tensor("ones", "F32", &[500], 1f32.to_le_bytes().repeat(500)),
        tensor(
            "numbers",
            "I64",
            &[400],
            (0..400i64).flat_map(i64::to_le_bytes).collect(),
        ),
        tensor("noise", "U8", &[3000], noise(3000)),
        tensor("small", "F16", &[3], noise(6)),
    ])
}

/// Changes a file in one of the ways that disks, networks and people do.
fn damage(file: &mut Vec<u8>, rng: &mut SmallRng) {
    let at = rng.random_range(0..file.len());
    let len = rng
        .random_range(1..200.min(file.len() - at + 1).max(2))
        .min(file.len() - at);
    match rng.random_range(0..7) {
        0 => file[at] ^= 1 << rng.random_range(0..8),
        1 => file[at] = rng.random(),
        2 => file[at..at + len].fill(0),
        3 => rng.fill(&mut file[at..at + len]),
        4 => file.truncate(at),
        5 => {
            let to = rng.random_range(0..=file.len() - len);
            file.copy_within(at..at + len, to);
        }
        _ => {
            let more: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            file.splice(at..at, more);
        }
    }
}

#[test]
fn damaged_files_are_refused_or_restored_exactly() {
    let mut rng = SmallRng::seed_from_u64(1);
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let original = original(&mut rng);
    fs::write(at("original"), &original).unwrap();
    for archive in [false, true] {
        let options = options().archive(archive);
        compress(at("original"), at("whole"), &options.force(true)).unwrap();
        let whole = fs::read(at("whole")).unwrap();
        let mut refused = 0;
        for number in 0..DAMAGES {
            let mut file = whole.clone();
            damage(&mut file, &mut rng);
            fs::write(at("damaged"), file).unwrap();
            let before = names(folder.path());
            match decompress(at("damaged"), at("restored"), &options) {
                Ok(_) => {
                    assert!(fs::read(at("restored")).unwrap() == original, "{number}");
                    fs::remove_file(at("restored")).unwrap();
                }
                Err(_) => refused += 1,
            }
            // Of another form, from which the original comes, or nothing.
            if convert(at("damaged"), at("converted"), &options.archive(!archive)).is_ok() {
                decompress(at("converted"), at("restored"), &options).unwrap();
                assert!(fs::read(at("restored")).unwrap() == original, "{number}");
                fs::remove_file(at("restored")).unwrap();
                fs::remove_file(at("converted")).unwrap();
            }
            let _ = inspect(at("damaged"), &options);
            if let Ok(checkpoint) = open(at("damaged")) {
                for tensor in checkpoint.tensors() {
                    let _ = tensor.decoded();
                    let _ = tensor.matrix();
                }
            }
            assert_eq!(names(folder.path()), before, "{number}");
        }
        // What is not noticed does not matter: bits that change nothing.
        assert!(refused > DAMAGES * 9 / 10, "{refused}");
    }
}
