//! Decompression to memory, then cuBLASLt: right for any tokens, and refused without that memory.

use half::bf16;
use zipserv::gpu::{
    Buffer, Device, DeviceMatrix, GpuError, Operand, Operands, Plan, PlanOptions, RawOperands,
    Workspace,
};

use crate::{
    data::{Kind, Product},
    lab::{GUARD, Guarded, Lab, NAN, decoupled_plan, plan_with, quick, refused, skipped},
};

/// Numbers of tokens, of which the first few are enough to see whether it works at all.
const TOKENS: [usize; 10] = [65, 333, 1, 128, 200, 512, 1000, 2049, 4095, 4096];

fn tokens() -> &'static [usize] {
    if quick() { &TOKENS[..2] } else { &TOKENS }
}

fn check(lab: &Lab, kind: Kind, (m, k): (usize, usize), tokens: &[usize], skews: [usize; 2]) {
    let bits = kind.weights(m, k);
    let weights = lab.upload(m, k, &bits);
    let most = tokens.iter().copied().max().unwrap();
    let x = kind.activations(most, k);
    let product = Product::new(&x, &bits, k);
    for &n in tokens {
        let plan = decoupled_plan(&weights, n);
        let y = lab.multiply(&plan, &weights, &x[..n * k], skews);
        let what = format_args!("{kind:?} {m} x {k}, {n} tokens, skews {skews:?}, {plan}");
        product.check(&y, &what);
        let again = lab.multiply(&plan, &weights, &x[..n * k], skews);
        assert!(y == again, "{what}: other bits");
    }
}

#[test]
fn decoupled_tokens() {
    for lab in Lab::each_with_dense() {
        check(&lab, Kind::Gaussian, (384, 1032), tokens(), [0, 0]);
    }
}

#[test]
fn decoupled_shapes() {
    for lab in Lab::each_with_dense() {
        let shapes = [
            (301, 1031),
            (33, 72),
            (1, 1),
            (127, 201),
            (1, 3000),
            (3000, 1),
            (513, 136),
            (129, 4096),
            (5120, 640),
        ];
        let shapes = if quick() { &shapes[..2] } else { &shapes };
        for &shape in shapes {
            check(&lab, Kind::Gaussian, shape, &tokens()[..2], [0, 0]);
        }
    }
}

#[test]
fn decoupled_operands_anywhere() {
    for lab in Lab::each_with_dense() {
        for skews in [[1, 0], [0, 1], [4, 4], [8, 8]] {
            check(&lab, Kind::Gaussian, (136, 328), &tokens()[..2], skews);
        }
    }
}

#[test]
fn decoupled_outliers_and_extremes() {
    for lab in Lab::each_with_dense() {
        for kind in [Kind::Outliers, Kind::Zero, Kind::Large, Kind::Tiny] {
            check(&lab, kind, (200, 776), &tokens()[..2], [0, 0]);
        }
    }
}

/// Whatever the dispatch picks is right, with memory for dense weights and without.
#[test]
fn dispatch_of_any_tokens() {
    for lab in Lab::each_with_dense() {
        // Of the second one, tensor copies do not read the activations.
        for (m, k) in [(200, 328), (200, 333)] {
            let bits = Kind::Gaussian.weights(m, k);
            let weights = lab.upload(m, k, &bits);
            let tokens = [1, 65, 64, 128, 129, 200, 1000, 2048, 2561, 4095];
            let tokens = if quick() { &tokens[..2] } else { &tokens };
            let most = tokens.iter().copied().max().unwrap();
            let x = Kind::Gaussian.activations(most, k);
            let product = Product::new(&x, &bits, k);
            for &n in tokens {
                let within = |bytes| PlanOptions::default().dense_workspace(bytes);
                let plan = |bytes| plan_with(&weights, n, within(bytes));
                let needed = weights.dense_workspace_bytes();
                assert!(needed <= lab.workspace.dense_bytes());
                let (with, without) = (plan(needed), plan(needed - 1));
                assert!(!without.is_decoupled(), "{n} tokens: {without}");
                let regrets = without.to_string().contains("would be preferred");
                assert_eq!(with.is_decoupled(), regrets, "{with}, {without}");
                assert!(!with.to_string().contains("would be preferred"), "{with}");
                for plan in [with, without] {
                    let y = lab.multiply(&plan, &weights, &x[..n * k], [0, 0]);
                    product.check(&y, &format_args!("{m} x {k}, {n} tokens, {plan}"));
                }
            }
            for n in [0, 16_385] {
                let within = PlanOptions::default().dense_workspace(lab.workspace.dense_bytes());
                for options in [within, PlanOptions::default().decoupled()] {
                    refused!(Plan::new(&weights, n, &options), GpuError::Tokens { tokens, .. } if *tokens == n);
                }
            }
        }
    }
}

/// The checked call, onto BF16, with a bias that is aligned, alone and with old outputs: rounded once
/// either way.
#[test]
fn decoupled_slices() {
    for mut lab in Lab::each_with_dense() {
        let (m, k, n) = (136, 264, 100);
        let bits = Kind::Gaussian.weights(m, k);
        let weights = lab.upload(m, k, &bits);
        let values = Kind::Gaussian.activations(n, k);
        let product = Product::new(&values, &bits, k);
        let plan = decoupled_plan(&weights, n);
        let full = |value: f32, len| vec![bf16::from_f32(value).to_bits(); len];
        let x = lab.buffer(&values);
        let bias = lab.buffer(&full(1.0, m));
        for (accumulate, added) in [(false, 1.0), (true, 3.0)] {
            let mut y = lab.buffer(&full(2.0, n * m));
            let operands = Operands::new(&x, &mut y).bias(&bias);
            let operands = match accumulate {
                true => operands.accumulate(),
                false => operands,
            };
            let (stream, work) = (&lab.stream, &mut lab.workspace);
            plan.run(stream, &weights, operands, work).unwrap();
            let outputs = lab.bits(&y);
            for (at, (&bits, &(sum, all))) in outputs.iter().zip(product.sums()).enumerate() {
                let (value, exact) = (bf16::from_bits(bits).to_f64(), sum + added);
                let close = (value - exact).abs() <= exact.abs() / 256.0 + all * 2e-6 + 1e-6;
                assert!(
                    close,
                    "accumulate {accumulate}, output {at}: {value}, not {exact}"
                );
            }
        }
    }
}

/// What a call of a decoupled plan with a workspace says; nothing is written when it is refused.
fn call(
    lab: &Lab,
    plan: &Plan,
    weights: &DeviceMatrix,
    n: usize,
    workspace: &Workspace,
) -> Result<(), GpuError> {
    let k = weights.cols();
    let x = Guarded::new(lab, &Kind::Gaussian.activations(n, k), NAN, 0);
    let y = Guarded::new(lab, &vec![0u16; n * weights.rows()], GUARD, 0);
    let operands = RawOperands::new(weights, x.address(), n, y.address());
    // SAFETY: both have room; nothing else uses the workspace.
    let result = unsafe { plan.run_raw(lab.raw(), weights, &operands, workspace) };
    let outputs = y.values(lab);
    if let Err(error) = &result {
        assert!(outputs.iter().all(|&y| y == 0), "{error}, but it ran");
    }
    result
}

#[test]
fn memory_for_dense_weights_is_checked() {
    for mut lab in Lab::each_with_dense() {
        let (m, k, n) = (100, 200, 70);
        let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
        let plan = decoupled_plan(&weights, n);
        let bytes = weights.dense_workspace_bytes();
        let memory = Buffer::<u8>::zeroed(lab.device, bytes + 256).unwrap();
        let at = memory.address();
        let workspace = |at, bytes| {
            // SAFETY: within `memory`, which only these use, one after the other.
            let memory = unsafe { Buffer::borrowed(lab.device, at, bytes) };
            Workspace::new(lab.device).unwrap().with_dense(memory)
        };
        let call = |weights, n, workspace: &Workspace| call(&lab, &plan, weights, n, workspace);
        refused!(
            call(&weights, n, &Workspace::new(lab.device).unwrap()),
            GpuError::Missing {
                operand: Operand::DenseMemory
            }
        );
        refused!(
            call(&weights, n, &workspace(at, bytes - 1)),
            GpuError::WorkspaceTooSmall { what: "bytes for dense weights", needed, got }
                if *needed == bytes && *got == bytes - 1
        );
        refused!(
            call(&weights, n, &workspace(at + 128, bytes)),
            GpuError::Alignment { operand: Operand::DenseMemory, align: 256, address, .. }
                if *address == at + 128
        );
        let fits = workspace(at + 256, bytes);
        assert_eq!(fits.dense_bytes(), bytes);
        call(&weights, n, &fits).unwrap();

        // Other numbers of tokens and other weights than the plan's.
        refused!(call(&weights, n + 1, &fits), GpuError::PlanMismatch { .. });
        let larger = lab.upload(m, k + 8, &Kind::Zero.weights(m, k + 8));
        refused!(call(&larger, n, &fits), GpuError::PlanMismatch { .. });
        drop(fits);

        // The checked call, with none and with too little.
        let x = lab.buffer(&Kind::Gaussian.activations(n, k));
        let mut y = lab.buffer(&vec![0; n * m]);
        let little = Buffer::zeroed(lab.device, bytes - 1).unwrap();
        lab.workspace = Workspace::new(lab.device).unwrap();
        let mut multiply = |lab: &mut Lab| {
            let (stream, work) = (&lab.stream, &mut lab.workspace);
            plan.run(stream, &weights, Operands::new(&x, &mut y), work)
        };
        refused!(
            multiply(&mut lab),
            GpuError::Missing {
                operand: Operand::DenseMemory
            }
        );
        lab.workspace = Workspace::new(lab.device).unwrap().with_dense(little);
        refused!(multiply(&mut lab), GpuError::WorkspaceTooSmall { .. });
    }
}

#[test]
fn memory_of_another_device_is_refused() {
    for lab in Lab::each_with_dense() {
        if Device::count().unwrap() < 2 {
            return skipped(&"there is one device only");
        }
        let (m, k, n) = (100, 200, 70);
        let weights = lab.upload(m, k, &Kind::Gaussian.weights(m, k));
        let plan = decoupled_plan(&weights, n);
        let other = Device::new(1).unwrap();
        let memory = Buffer::zeroed(&other, weights.dense_workspace_bytes()).unwrap();
        let workspace = Workspace::new(lab.device).unwrap().with_dense(memory);
        refused!(
            call(&lab, &plan, &weights, n, &workspace),
            GpuError::Context {
                operand: Operand::DenseMemory
            }
        );
    }
}
