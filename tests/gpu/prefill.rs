//! The kernels for many tokens give what sums in FP64 give, and the same bits each time.

use zipserv::gpu::{DeviceMatrix, Plan};

use crate::{
    data::{Kind, Product},
    lab::{Lab, plan_of, quick},
};

/// Numbers of tokens, of which the first few are enough to see whether it works at all.
const TOKENS: [usize; 12] = [65, 300, 7, 31, 100, 128, 200, 256, 512, 1000, 2049, 4095];

fn tokens() -> &'static [usize] {
    if quick() { &TOKENS[..2] } else { &TOKENS }
}

/// Every kernel's launch for a problem, with tiles whole and shared, on all clusters and few.
fn plans(lab: &Lab, weights: &DeviceMatrix, n: usize) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (name, _) in lab.prefill_kernels() {
        let plan = plan_of(weights, n, name);
        let all = u32::MAX;
        plans.extend([plan, plan.with_shared_tiles(0), plan.with_shared_tiles(all)]);
        plans.push(plan.with_blocks(6).with_shared_tiles(all));
        plans.push(plan.with_blocks(4).with_shared_tiles(1).with_pdl(false));
    }
    plans
}

fn check(lab: &Lab, kind: Kind, (m, k): (usize, usize), tokens: &[usize], skew: usize) {
    let bits = kind.weights(m, k);
    let weights = lab.upload(m, k, &bits);
    let most = tokens.iter().copied().max().unwrap();
    let x = kind.activations(most, k);
    let product = Product::new(&x, &bits, k);
    for &n in tokens {
        for plan in plans(lab, &weights, n) {
            let y = lab.multiply(&plan, &weights, &x[..n * k], [0, skew]);
            product.check(&y, &format_args!("{kind:?} {m} x {k}, {n} tokens, {plan}"));
            let again = lab.multiply(&plan, &weights, &x[..n * k], [0, skew]);
            assert!(
                y == again,
                "{kind:?} {m} x {k}, {n} tokens, {plan}: other bits"
            );
        }
    }
}

/// One small problem for each kernel: run this first.
#[test]
fn prefill_smoke() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    check(&lab, Kind::Gaussian, (128, 64), &[65], 0);
    check(&lab, Kind::Gaussian, (256, 512), &[256], 0);
}

#[test]
fn prefill_tokens() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    check(&lab, Kind::Gaussian, (384, 1024), tokens(), 0);
}

#[test]
fn prefill_shapes() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    let shapes = [
        (301, 1032),
        (1, 8),
        (33, 72),
        (127, 200),
        (513, 136),
        (1000, 64),
        (129, 4096),
        (5120, 640),
    ];
    let shapes = if quick() { &shapes[..2] } else { &shapes };
    for &shape in shapes {
        check(&lab, Kind::Gaussian, shape, &tokens()[..2], 0);
    }
}

#[test]
fn prefill_outputs_anywhere() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    for skew in [1, 4] {
        check(&lab, Kind::Gaussian, (136, 328), &tokens()[..2], skew);
    }
}

/// Outputs to which no vectors can be stored keep a block's memory pipeline so busy that it reads the sums
/// of other clusters late: units of its next tile must not have taken their place.
#[test]
fn prefill_slow_outputs() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    // Tiles that are shared, and behind them others. Without a fence one run in four went wrong;
    // sanitizers, whose runs are quick, did not tell.
    let (m, runs) = if quick() { (1024, 1) } else { (28672, 40) };
    let (k, n) = (512, 512);
    let bits = Kind::Gaussian.weights(m, k);
    let weights = lab.upload(m, k, &bits);
    let x = Kind::Gaussian.activations(n, k);
    let plan = plan_of(&weights, n, "prefill_n256");
    let fast = lab.multiply(&plan, &weights, &x, [0; 2]);
    Product::check_ends([&x, &bits, &fast], k, 40, &plan);
    for run in 0..runs {
        let slow = lab.multiply(&plan, &weights, &x, [0, 1]);
        assert!(slow == fast, "{plan}: other bits in run {run}");
    }
}

#[test]
fn prefill_outliers_and_extremes() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    let (size, tokens) = match quick() {
        true => ((136, 264), &TOKENS[..1]),
        false => ((200, 776), &TOKENS[..2]),
    };
    for kind in [
        Kind::Outliers,
        Kind::OutlierTiles,
        Kind::Zero,
        Kind::Large,
        Kind::Tiny,
    ] {
        check(&lab, kind, size, tokens, 0);
    }
}
