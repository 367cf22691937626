//! The published layout, a baseline: restores every bit, and gives what sums in FP64 give.

use zipserv::{
    Matrix,
    gpu::{GpuError, Need, Operand},
};
use zipserv_bench::published::{
    PUBLISHED_MAX_TOKENS, PublishedDeviceMatrix, PublishedKernels, PublishedMatrix, PublishedPlan,
};

use crate::{
    data::{KINDS, Kind, Product},
    lab::{GUARD, Guarded, Lab, NAN, quick, refused},
};

/// A lab and the kernels, which are the same for every family. Every call leaves no sums.
struct Bench {
    lab: Lab,
    kernels: PublishedKernels,
}

impl Bench {
    /// One; none without a device.
    fn open() -> impl Iterator<Item = Self> {
        Lab::each().take(1).map(|lab| {
            let kernels = PublishedKernels::new(lab.device).unwrap();
            Self { lab, kernels }
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let empty = self.kernels.is_empty(&self.lab.stream).unwrap();
            assert!(empty, "sums are left over");
        }
    }
}

fn upload(lab: &Lab, rows: usize, cols: usize, bits: &[u16]) -> PublishedDeviceMatrix {
    let matrix = Matrix::from_bits(rows, cols, bits).unwrap();
    let matrix = PublishedMatrix::encode(&matrix).unwrap();
    PublishedDeviceMatrix::upload(lab.device, &matrix).unwrap()
}

#[test]
fn every_bit_of_every_kind_and_shape() {
    let shapes = [
        (300, 520),
        (31, 65),
        (0, 0),
        (64, 64),
        (1, 1),
        (1, 3000),
        (3000, 1),
        (7, 13),
        (65, 72),
        (100, 1001),
        (2048, 4096),
    ];
    for bench in Bench::open() {
        let Bench { lab, kernels } = &bench;
        let shapes = if quick() { &shapes[..3] } else { &shapes };
        for kind in KINDS {
            for &(rows, cols) in shapes {
                let bits = kind.weights(rows, cols);
                let matrix = upload(lab, rows, cols, &bits);
                for skew in [0, 1] {
                    let output = Guarded::new(lab, &vec![NAN; rows * cols], GUARD, skew);
                    let at = output.address();
                    // SAFETY: the output has room.
                    unsafe { kernels.decompress(&lab.stream, &matrix, at) }.unwrap();
                    let what = format!("{kind:?}, {rows} x {cols}, skew {skew}");
                    assert!(output.values(lab) == bits, "{what}");
                }
            }
        }
    }
}

fn multiply(
    Bench { lab, kernels }: &Bench,
    plan: &PublishedPlan,
    weights: &PublishedDeviceMatrix,
    x: &[u16],
    skew: usize,
) -> Vec<u16> {
    let n = x.len() / weights.cols();
    let input = Guarded::new(lab, x, NAN, 0);
    let output = Guarded::new(lab, &vec![NAN; n * weights.rows()], GUARD, skew);
    let (x, y) = (input.address(), output.address());
    // SAFETY: both have room; one stream has the kernels.
    unsafe { kernels.multiply(&lab.stream, plan, weights, x, n, y) }.unwrap();
    output.values(lab)
}

/// Checks one matrix with the first `tokens` of the same activations, and several splits of K.
fn check(bench: &Bench, kind: Kind, (m, k): (usize, usize), tokens: &[usize], skew: usize) {
    let bits = kind.weights(m, k);
    let weights = upload(&bench.lab, m, k, &bits);
    let x = kind.activations(PUBLISHED_MAX_TOKENS, k);
    let product = Product::new(&x, &bits, k);
    for &n in tokens {
        let planned = PublishedPlan::new(&bench.kernels, &weights, n).unwrap();
        let mut plans = vec![planned];
        for split in [1, 2, 3, 7, 64] {
            let plan = planned.with_split(split);
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        for plan in plans {
            let what = format!("{kind:?} {m} x {k}, {n} tokens, {plan}");
            let y = multiply(bench, &plan, &weights, &x[..n * k], skew);
            product.check(&y, &what);
            let again = multiply(bench, &plan, &weights, &x[..n * k], skew);
            assert!(again == y, "{what}: not the same again");
        }
    }
}

#[test]
fn every_number_of_tokens() {
    for bench in Bench::open() {
        let all: Vec<usize> = (1..=PUBLISHED_MAX_TOKENS).collect();
        let tokens = if quick() { &[1, 12, 64] } else { &all[..] };
        check(&bench, Kind::Gaussian, (200, 328), tokens, 0);
    }
}

#[test]
fn shapes() {
    let shapes = [
        (300, 1024),
        (31, 72),
        (1, 8),
        (64, 64),
        (65, 128),
        (130, 776),
        (129, 4096),
        (1000, 64),
        (4096, 640),
    ];
    for bench in Bench::open() {
        let shapes = if quick() { &shapes[..2] } else { &shapes };
        for &shape in shapes {
            for skew in [0, 1] {
                check(&bench, Kind::Gaussian, shape, &[1, 8, 16, 31, 64], skew);
            }
        }
    }
}

#[test]
fn outliers_and_extreme_bases() {
    let kinds = [
        Kind::Outliers,
        Kind::OutlierTiles,
        Kind::Zero,
        Kind::Large,
        Kind::Tiny,
        Kind::Nan,
    ];
    for bench in Bench::open() {
        for kind in kinds {
            check(&bench, kind, (200, 328), &[8, 17, 64], 0);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for bench in Bench::open() {
        let Bench { lab, kernels } = &bench;
        let (m, k) = (100, 65);
        let weights = upload(lab, m, k, &Kind::Gaussian.weights(m, k));
        for n in [0, PUBLISHED_MAX_TOKENS + 1] {
            refused!(
                PublishedPlan::new(kernels, &weights, n),
                GpuError::Tokens { tokens, most: PUBLISHED_MAX_TOKENS } if *tokens == n
            );
        }
        let empty = upload(lab, 0, 8, &[]);
        refused!(
            PublishedPlan::new(kernels, &empty, 1),
            GpuError::EmptyWeights { rows: 0, cols: 8 }
        );
        let plan = PublishedPlan::new(kernels, &weights, 1).unwrap();
        let other = upload(lab, m, 128, &Kind::Gaussian.weights(m, 128));
        let taller = upload(lab, 10 * m, k, &Kind::Gaussian.weights(10 * m, k));
        let call = |plan, weights: &PublishedDeviceMatrix, x: u64, n: usize, y: u64| {
            // SAFETY: refused before anything is launched.
            unsafe { kernels.multiply(&lab.stream, plan, weights, x, n, y) }
        };
        refused!(
            call(&plan, &weights, 256, 1, 256),
            GpuError::Length {
                expected: Need::MultipleOf(8),
                got: 65,
                ..
            }
        );
        refused!(
            call(&plan, &other, 256, 9, 256),
            GpuError::Tokens { tokens: 9, most: 8 }
        );
        refused!(
            call(&plan, &taller, 256, 1, 256),
            GpuError::PlanMismatch { .. }
        );
        let plan = PublishedPlan::new(kernels, &other, 1).unwrap();
        assert_eq!(plan.with_split(9).split(), 2);
        assert_eq!(plan.with_split(0).split(), 1);
        refused!(
            call(&plan, &other, 258, 1, 256),
            GpuError::Alignment {
                operand: Operand::Activations,
                align: 16,
                address: 258,
                ..
            }
        );
        refused!(
            call(&plan, &other, 256, 1, 257),
            GpuError::Alignment {
                operand: Operand::Outputs,
                align: 2,
                address: 257,
                ..
            }
        );
        // SAFETY: as above.
        let result = unsafe { kernels.decompress(&lab.stream, &other, 257) };
        refused!(
            result,
            GpuError::Alignment {
                operand: Operand::Outputs,
                align: 2,
                address: 257,
                ..
            }
        );
    }
}
