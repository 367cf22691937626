//! Batch-invariant plans: a token's outputs have the same bits whatever tokens share the call, are
//! right, and activations that the kernels cannot read are refused.

use zipserv::gpu::{
    Buffer, DeviceMatrix, Family, GpuError, Operand, Operands, Plan, PlanOptions, RawOperands,
};

use crate::{
    data::{Kind, Product},
    lab::{GUARD, Guarded, Lab, NAN, invariant_plan, quick, refused},
};

/// Numbers of tokens, of which the first few are enough to see whether it works at all.
/// Each tile takes some of them.
const TOKENS: [usize; 15] = [
    1, 65, 300, 7, 17, 64, 128, 129, 145, 177, 193, 256, 257, 513, 4096,
];

fn tokens() -> &'static [usize] {
    if quick() { &TOKENS[..3] } else { &TOKENS }
}

/// Multiplies any part of the tokens, so that each comes with others and at many places, and compares
/// with what they are together.
fn check(lab: &Lab, kind: Kind, (m, k): (usize, usize)) {
    let bits = kind.weights(m, k);
    let weights = lab.upload(m, k, &bits);
    let plan = invariant_plan(&weights);
    let what = format!("{kind:?} {m} x {k}, {plan}");
    let most = tokens().iter().copied().max().unwrap();
    let x = kind.activations(most, k);
    let all = lab.multiply(&plan, &weights, &x, [0; 2]);

    // The others have the same bits, as seen below.
    Product::check_ends([&x, &bits, &all], k, 80, &what);
    for &n in tokens() {
        let mut firsts = vec![0, 1, 63, 64, 200, 256, most / 2, most - 1];
        firsts
            .iter_mut()
            .for_each(|first| *first = (*first).min(most - n));
        firsts.dedup();
        for first in firsts {
            let x = &x[first * k..][..n * k];
            // Outputs that no vector is written to, and launches that do not overlap.
            for (plan, skew) in [(plan, 0), (plan.with_pdl(false), 1)] {
                let y = lab.multiply(&plan, &weights, x, [0, skew]);
                let expected = &all[first * m..][..n * m];
                let differs = y.iter().zip(expected).position(|(a, b)| a != b);
                let token = differs.map(|at| at / m);
                assert!(
                    y == expected,
                    "{what}: {n} tokens from {first} on, skew {skew}: other bits of {token:?}"
                );
            }
        }
    }
}

/// Tiles shared by two clusters and more, evenly and not, and not at all; odd features, and input
/// features that fill no unit.
#[test]
fn invariant_bits() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    let shapes = [
        (301, 1032),
        (133, 264),
        (1, 8),
        (127, 4104),
        (1000, 712),
        (4099, 1000),
        (4096, 4096),
        (17_000, 328),
    ];
    let shapes = if quick() { &shapes[..2] } else { &shapes };
    for &shape in shapes {
        check(&lab, Kind::Gaussian, shape);
    }
}

#[test]
fn invariant_outliers_and_extremes() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    for kind in [Kind::Outliers, Kind::Large, Kind::Tiny] {
        check(&lab, kind, (200, 776));
    }
}

/// With all that an epilogue adds, rows apart, and a K that only rows apart can be read of.
#[test]
fn invariant_bits_with_an_epilogue() {
    let Some(mut lab) = Lab::hopper() else {
        return;
    };
    let (m, k, most) = (133, 1021_usize, 600);
    let [x_stride, y_stride] = [k.next_multiple_of(8), m + 2];
    let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
    let plan = invariant_plan(&weights);
    let x = lab.buffer(&Kind::Gaussian.activations(most, x_stride));
    let bias = lab.buffer(&Kind::Gaussian.activations(1, m));
    let old: Vec<f32> = (0..m).map(|feature| feature as f32 / 77.0).collect();
    let old: Vec<f32> = [old, vec![0.0; y_stride - m]].concat().repeat(most);
    let mut multiply = |first: usize, n: usize| {
        let mut y = Buffer::from_slice(lab.device, &old[..n * y_stride]).unwrap();
        let operands = Operands::new(x.slice(first * x_stride..), &mut y).tokens(n);
        let operands = operands.x_stride(x_stride).y_stride(y_stride);
        let operands = operands.bias(&bias).accumulate();
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        plan.run(stream, &weights, operands, work).unwrap();
        let outputs = y.to_vec(stream).unwrap();
        outputs.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let all = multiply(0, most);
    for (first, n) in [(0, 1), (599, 1), (130, 65), (7, 256), (70, 257), (1, 599)] {
        let same = multiply(first, n) == all[first * y_stride..][..n * y_stride];
        assert!(same, "{n} tokens from {first} on: other bits");
    }
}

/// Nothing is launched for activations that the kernels cannot read, nor for other weights.
#[test]
fn invariant_refusals() {
    let Some(mut lab) = Lab::hopper() else {
        return;
    };
    let (m, k, n) = (100, 203, 300);
    let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
    let plan = invariant_plan(&weights);
    let y = Guarded::new(&lab, &vec![0u16; n * m], GUARD, 0);
    for (stride, skew, fits) in [
        (208, 0, true),
        (208, 8, true),
        (203, 0, false),
        (208, 1, false),
        (204, 0, false),
    ] {
        let x = Guarded::new(&lab, &Kind::Gaussian.activations(n, stride), NAN, skew);
        let operands = RawOperands {
            x_stride: stride,
            ..RawOperands::new(&weights, x.address(), n, y.address())
        };
        // SAFETY: both have room; nothing else uses the workspace.
        let result = unsafe { lab.try_launch(&plan, &weights, &operands) };
        lab.stream.synchronize().unwrap();
        match fits {
            true => result.unwrap(),
            false => refused!(
                result,
                GpuError::Alignment { operand: Operand::Activations, align: 16, address, pitch }
                    if (*address, *pitch) == (operands.x, 2 * stride)
            ),
        }
    }

    let call = |lab: &mut Lab, weights: &DeviceMatrix| {
        let x = lab.buffer(&Kind::Gaussian.activations(n, weights.cols()));
        let mut y = lab.buffer(&vec![GUARD; n * m]);
        let (stream, work) = (&lab.stream, &mut lab.workspace);
        let result = plan.run(stream, weights, Operands::new(&x, &mut y), work);
        assert!(lab.bits(&y).iter().all(|&y| y == GUARD), "it ran");
        result
    };
    refused!(
        call(&mut lab, &weights),
        GpuError::Alignment {
            operand: Operand::Activations,
            align: 16,
            pitch: 406,
            ..
        }
    );
    // As many output tiles and units.
    let other = lab.upload(m, k + 5, &Kind::Zero.weights(m, k + 5));
    refused!(
        call(&mut lab, &other),
        GpuError::PlanMismatch { what: "weights of", expected, got }
            if expected == "100 x 203" && got == "100 x 208"
    );
}

#[test]
fn invariant_needs_kernels_for_hopper() {
    for lab in Lab::each() {
        let weights = lab.upload(64, 64, &Kind::Zero.weights(64, 64));
        let plan = Plan::new(&weights, 1, &PlanOptions::default().batch_invariant());
        match lab.device.family() {
            Family::Hopper => {
                let text = plan.unwrap().to_string();
                assert!(text.starts_with("batch_invariant (as asked for)"), "{text}");
            }
            _ => refused!(
                plan,
                GpuError::NoKernel { kernel, family: Family::Portable }
                    if kernel == "batch_invariant"
            ),
        }
    }
}
