//! ZipGEMM gives what sums in FP64 give, in every kernel.

use half::bf16;
use zipserv::gpu::{GpuError, Plan, PlanOptions};

use crate::{
    data::{Kind, Product},
    lab::{Lab, plan, plans_of, quick},
};

/// Tokens that every kernel for few of them takes some of.
const TOKENS: [usize; 12] = [1, 9, 64, 2, 5, 7, 8, 16, 17, 31, 32, 33];
/// Thread blocks: one, few, unequal shares, a multiprocessor's worth and two.
const BLOCKS: [u32; 5] = [3, 1, 7, 132, 264];
/// More tokens than those kernels take at a time.
const MANY: [usize; 10] = [65, 300, 100, 128, 200, 256, 512, 1000, 2049, 4095];

/// Checks every kernel for few tokens and the plan on one matrix, with up to the first `tokens` of
/// the same activations.
fn check(lab: &Lab, kind: Kind, (m, k): (usize, usize), tokens: &[usize], skew: usize) {
    let bits = kind.weights(m, k);
    let most = tokens.iter().copied().max().unwrap();
    let x = kind.activations(most, k);
    check_bits(
        lab,
        &bits,
        &x,
        k,
        tokens,
        skew,
        &format!("{kind:?} {m} x {k}"),
    );
}

fn check_bits(
    lab: &Lab,
    bits: &[u16],
    x: &[u16],
    k: usize,
    tokens: &[usize],
    skew: usize,
    what: &str,
) {
    let weights = lab.upload(bits.len() / k, k, bits);
    let product = Product::new(x, bits, k);
    let blocks = if quick() { &BLOCKS[..1] } else { &BLOCKS };
    for &n in tokens {
        let x = &x[..n * k];
        match Plan::new(&weights, n, &PlanOptions::default()) {
            // A file of PTX may have no such kernels.
            Err(GpuError::NoKernel { .. }) => {}
            plan => {
                let plan = plan.unwrap();
                let y = lab.multiply(&plan, &weights, x, [skew; 2]);
                product.check(&y, &format_args!("{what}, {n} tokens, {plan}"));
            }
        }
        for (kernel, _) in lab.decode_kernels().filter(|&(_, tokens)| n <= tokens) {
            for plan in plans_of(&weights, n, kernel, blocks) {
                let y = lab.multiply(&plan, &weights, x, [skew; 2]);
                product.check(&y, &format_args!("{what}, {n} tokens, {plan}"));
            }
        }
    }
}

fn tokens() -> &'static [usize] {
    if quick() { &TOKENS[..3] } else { &TOKENS }
}

#[test]
fn every_number_of_tokens() {
    for lab in Lab::each() {
        let all: Vec<usize> = (1..=64).collect();
        let some = [1, 8, 12, 24, 40, 64];
        let tokens = if quick() { &some[..] } else { &all };
        check(&lab, Kind::Gaussian, (200, 328), tokens, 0);
    }
}

/// The plan, for as many tokens as there may be, of activations that tensor copies read and of
/// those that they do not.
#[test]
fn the_plan_for_any_tokens() {
    for lab in Lab::each() {
        let few: Vec<usize> = (1..=64).collect();
        let (few, many) = match quick() {
            true => (&few[31..33], &MANY[..2]),
            false => (&few[..], &MANY[..]),
        };
        let m = 200;
        for (k, skews) in [
            (328, [0, 0]),
            (328, [0, 1]),
            (328, [8, 8]),
            (328, [1, 0]),
            (328, [4, 4]),
            (333, [0, 0]),
        ] {
            let bits = Kind::Gaussian.weights(m, k);
            let weights = lab.upload(m, k, &bits);
            let most = many.iter().copied().max().unwrap();
            let x = Kind::Gaussian.activations(most, k);
            let product = Product::new(&x, &bits, k);
            for &n in few.iter().chain(many) {
                let plan = plan(&weights, n);
                let y = lab.multiply(&plan, &weights, &x[..n * k], skews);
                product.check(
                    &y,
                    &format_args!("{m} x {k}, {n} tokens, skews {skews:?}, {plan}"),
                );
            }
        }
    }
}

#[test]
fn slices_of_any_kernel() {
    for lab in Lab::each() {
        let (m, k, n) = (100, 328, 65);
        let bits = Kind::Gaussian.weights(m, k);
        let weights = lab.upload(m, k, &bits);
        let x = Kind::Gaussian.activations(n, k);
        let product = Product::new(&x, &bits, k);
        for (kernel, _) in lab.decode_kernels() {
            for plan in plans_of(&weights, n, kernel, &BLOCKS[..1]) {
                let y = lab.multiply(&plan, &weights, &x, [0; 2]);
                product.check(&y, &plan);
            }
        }
    }
}

#[test]
fn shapes() {
    for lab in Lab::each() {
        // K a multiple of 64, of 8, of neither; M of 32, of 4, of neither; one tile and many.
        let shapes = [
            (300, 2048),
            (31, 65),
            (1, 1),
            (7, 13),
            (33, 72),
            (64, 64),
            (96, 200),
            (101, 1000),
            (130, 777),
            (129, 4096),
            (1000, 64),
            (5120, 640),
        ];
        let shapes = if quick() { &shapes[..2] } else { &shapes };
        for &shape in shapes {
            check(&lab, Kind::Gaussian, shape, tokens(), 0);
        }
    }
}

#[test]
fn activations_and_outputs_anywhere() {
    for lab in Lab::each() {
        for skew in [1, 2, 4] {
            check(&lab, Kind::Gaussian, (100, 328), tokens(), skew);
        }
    }
}

#[test]
fn outliers() {
    for lab in Lab::each() {
        for kind in [Kind::Outliers, Kind::OutlierTiles] {
            check(&lab, kind, (200, 776), tokens(), 0);
            check(&lab, kind, (97, 130), tokens(), 0);
        }
    }
}

#[test]
fn extreme_bases() {
    for lab in Lab::each() {
        for kind in [Kind::Zero, Kind::Large, Kind::Tiny] {
            check(&lab, kind, (100, 330), tokens(), 0);
        }
    }
}

#[test]
fn nan_and_infinity_reach_their_outputs_only() {
    for lab in Lab::each() {
        // Tensor copies read activations of the first width only.
        for k in [336, 330] {
            nan_and_infinity(&lab, k);
        }
    }
}

fn nan_and_infinity(lab: &Lab, k: usize) {
    let m = 100;
    let (infinity, minus) = (bf16::INFINITY.to_bits(), bf16::NEG_INFINITY.to_bits());
    let nan = bf16::NAN.to_bits();
    let mut weights = Kind::Gaussian.weights(m, k);
    weights[3 * k + 5] = nan;
    weights[41 * k - 1] = infinity;
    weights[41 * k] = minus;
    weights[99 * k + 64] = infinity;
    weights[99 * k + 65] = minus;
    let mut x = Kind::Gaussian.activations(64, k);
    check_bits(lab, &weights, &x, k, tokens(), 0, "weights not finite");
    // Infinity times zero, for any number of tokens.
    x[k - 1] = 0;
    x[2 * k + 11] = nan;
    x[8 * k + 12] = infinity;
    x[64 * k - 1] = minus;
    check_bits(lab, &weights, &x, k, tokens(), 0, "neither finite");
    let weights = Kind::Gaussian.weights(m, k);
    check_bits(lab, &weights, &x, k, tokens(), 0, "activations not finite");
    // In the window, in whole tiles.
    check(lab, Kind::Nan, (m, k), &tokens()[..3], 0);
}
