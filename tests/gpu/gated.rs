//! silu(gate) x up of a product, in its own epilogue and in a kernel behind it.

use half::bf16;
use zipserv::gpu::{Buffer, GatedPlan, GpuError, PlanOptions, RawGated};

use crate::{
    data::{Kind, Product},
    lab::{GUARD, Lab, quick},
};

const SHAPES: [(usize, usize); 6] = [
    (64, 64),
    (64, 65),
    (192, 200),
    (640, 1000),
    (4096, 512),
    (1024, 4096),
];

/// Outputs of `n` tokens, and guard zones behind them untouched.
fn gated(
    lab: &mut Lab,
    m: usize,
    k: usize,
    w: &[u16],
    x: &[u16],
    options: &PlanOptions,
) -> Vec<u16> {
    gated_of_rows(lab, (m, k), w, x, k, options)
}

/// The same of rows of activations that start so many apart.
fn gated_of_rows(
    lab: &mut Lab,
    (m, k): (usize, usize),
    w: &[u16],
    x: &[u16],
    x_stride: usize,
    options: &PlanOptions,
) -> Vec<u16> {
    let n = x.len() / k;
    let weights = lab.upload(m, k, w);
    let plan = GatedPlan::new(&weights, n, options).unwrap();
    let mut rows = vec![GUARD; n * x_stride];
    for (row, x) in rows.chunks_mut(x_stride).zip(x.chunks(k)) {
        row[..k].copy_from_slice(x);
    }
    let x = lab.buffer(&rows);
    let y = lab.buffer(&vec![GUARD; n * m / 2 + 64]);
    let scratch = lab.buffer(&vec![GUARD; plan.scratch_values(&weights, n) + 64]);
    let operands = RawGated {
        x: x.address(),
        x_stride,
        n,
        y: y.address(),
        scratch: scratch.address(),
    };
    // SAFETY: all is there, of these lengths, until the stream is waited for.
    unsafe {
        plan.run_raw(lab.raw(), &weights, &operands, &lab.workspace)
            .unwrap();
    }
    let mut bits = lab.bits(&y);
    let scratch = lab.bits(&scratch);
    for zone in [
        bits.split_off(n * m / 2),
        scratch[scratch.len() - 64..].to_vec(),
    ] {
        assert!(zone.iter().all(|&bits| bits == GUARD));
    }
    bits
}

/// Fails unless `y` is silu(gate) x up, as close as roundings of the products to BF16 let it be.
fn check(y: &[u16], x: &[u16], w: &[u16], (m, k): (usize, usize), what: &str) {
    let product = Product::new(x, w, k);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for (at, &bits) in y.iter().enumerate() {
        let (token, feature) = (at / (m / 2), at % (m / 2));
        let sum = |row: usize| product.sums()[token * m + row];
        let ((gate, all_gate), (up, all_up)) = (sum(feature), sum(m / 2 + feature));
        let off = |sum: f64, all: f64| sum.abs() / 200.0 + all * 2e-6;
        let (of_gate, of_up) = (off(gate, all_gate), off(up, all_up));
        let exact = silu(gate) * up;
        // silu's slope is 1.1 at most.
        let most = 1.1 * of_gate * (up.abs() + of_up) + silu(gate).abs() * of_up;
        let value = bf16::from_bits(bits).to_f64();
        let close = (value - exact).abs() <= most + exact.abs() / 200.0 + 1e-38;
        assert!(
            close || exact.is_nan() && value.is_nan(),
            "{what}: token {token}, feature {feature}: {value:e}, not {exact:e}"
        );
    }
}

#[test]
fn halves_of_every_shape_and_number_of_tokens() {
    for mut lab in Lab::each() {
        let shapes = if quick() { &SHAPES[..2] } else { &SHAPES };
        for &(m, k) in shapes {
            for n in [1, 2, 8, 9, 16, 17, 33, 64, 130] {
                for kind in [Kind::Gaussian, Kind::Outliers, Kind::Nan] {
                    let (w, x) = (kind.weights(m, k), Kind::Gaussian.activations(n, k));
                    let y = gated(&mut lab, m, k, &w, &x, &PlanOptions::default());
                    check(
                        &y,
                        &x,
                        &w,
                        (m, k),
                        &format!("{kind:?}, {m} x {k}, {n} tokens"),
                    );
                }
            }
        }
    }
}

/// Rows that tensor copies cannot read.
#[test]
fn rows_of_activations_anywhere() {
    for mut lab in Lab::each() {
        let (m, k) = (640, 512);
        let w = Kind::Outliers.weights(m, k);
        for n in [5, 16, 20, 64, 70] {
            let x = Kind::Gaussian.activations(n, k);
            let options = PlanOptions::default();
            let y = gated_of_rows(&mut lab, (m, k), &w, &x, k + 3, &options);
            check(&y, &x, &w, (m, k), &format!("{n} tokens, rows apart"));
        }
    }
}

#[test]
fn batch_invariant_bits_do_not_depend_on_other_tokens() {
    let Some(mut lab) = Lab::hopper() else { return };
    let (m, k) = (640, 1024);
    let (w, x) = (
        Kind::Gaussian.weights(m, k),
        Kind::Gaussian.activations(130, k),
    );
    let options = PlanOptions::default().batch_invariant();
    let all = gated(&mut lab, m, k, &w, &x, &options);
    for n in [1, 7, 64, 129] {
        let some = gated(&mut lab, m, k, &w, &x[..n * k], &options);
        assert!(some == all[..n * m / 2], "{n} tokens");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for lab in Lab::each() {
        for (m, k) in [(32, 64), (96, 64), (33, 64)] {
            let weights = lab.upload(m, k, &Kind::Zero.weights(m, k));
            let refused = GatedPlan::new(&weights, 1, &PlanOptions::default());
            assert!(matches!(refused, Err(GpuError::Gated { rows }) if rows == m));
        }
        let weights = lab.upload(64, 64, &Kind::Zero.weights(64, 64));
        let plan = GatedPlan::new(&weights, 1, &PlanOptions::default()).unwrap();
        let memory = Buffer::<bf16>::zeroed(lab.device, 256).unwrap();
        let operands = RawGated {
            x: memory.address(),
            x_stride: 64,
            n: 1,
            y: memory.address() + 130,
            scratch: 0,
        };
        // SAFETY: refused before anything is launched.
        let refused = unsafe { plan.run_raw(lab.raw(), &weights, &operands, &lab.workspace) };
        assert!(matches!(refused, Err(GpuError::Alignment { .. })));
        // SAFETY: as above.
        let refused = unsafe {
            let at = memory.address();
            lab.device.gate_raw(lab.raw(), at, at + 64, 1, 12, false)
        };
        assert!(matches!(refused, Err(GpuError::Columns { .. })));
    }
}
