//! Decompression to memory, then cuBLASLt: right for any tokens, and refused without that memory.

use cust::{
    context::CurrentContext,
    device::Device,
    memory::{CopyDestination, DeviceBuffer},
};
use half::bf16;
use zipserv::cuda::{
    CudaError, DeviceMatrix, GemmOperands, GemmSlices, Gpu, Outputs, Plan, Workspace, zipgemm,
    zipgemm_plan_within, zipgemm_raw, zipgemm_with,
};

use crate::{
    data::{Kind, Product},
    lab::{GUARD, Guarded, Lab, NAN, quick, upload},
};

/// Numbers of tokens, of which the first few are enough to see whether it works at all.
const TOKENS: [usize; 10] = [65, 333, 1, 128, 200, 512, 1000, 2049, 4095, 4096];

fn tokens() -> &'static [usize] {
    if quick() { &TOKENS[..2] } else { &TOKENS }
}

fn check(lab: &Lab, kind: Kind, (m, k): (usize, usize), tokens: &[usize], skews: [usize; 2]) {
    let bits = kind.weights(m, k);
    let weights = upload(m, k, &bits);
    let most = tokens.iter().copied().max().unwrap();
    let x = kind.activations(most, k);
    let product = Product::new(&x, &bits, k);
    for &n in tokens {
        let plan = Plan::decoupled(lab.gpu, &weights, n).unwrap();
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
            let weights = upload(m, k, &bits);
            let tokens = [1, 65, 64, 128, 129, 200, 1000, 2048, 2561, 4095];
            let tokens = if quick() { &tokens[..2] } else { &tokens };
            let most = tokens.iter().copied().max().unwrap();
            let x = Kind::Gaussian.activations(most, k);
            let product = Product::new(&x, &bits, k);
            for &n in tokens {
                let plan = |bytes| zipgemm_plan_within(lab.gpu, &weights, n, bytes).unwrap();
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
                let bytes = lab.workspace.dense_bytes();
                assert!(zipgemm_plan_within(lab.gpu, &weights, n, bytes).is_err());
                assert!(Plan::decoupled(lab.gpu, &weights, n).is_err());
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
        let weights = upload(m, k, &bits);
        let values = Kind::Gaussian.activations(n, k);
        let product = Product::new(&values, &bits, k);
        let plan = Plan::decoupled(lab.gpu, &weights, n).unwrap();
        let full = |value: f32, len| vec![bf16::from_f32(value).to_bits(); len];
        let x = DeviceBuffer::from_slice(&values).unwrap();
        let bias = DeviceBuffer::from_slice(&full(1.0, m)).unwrap();
        for (accumulate, added) in [(false, 1.0), (true, 3.0)] {
            let mut y = DeviceBuffer::from_slice(&full(2.0, n * m)).unwrap();
            CurrentContext::synchronize().unwrap();
            let slices = GemmSlices {
                bias: Some(&bias),
                accumulate,
                ..GemmSlices::new(&weights, &x, n, Outputs::Bf16(&mut y))
            };
            let (gpu, stream, work) = (lab.gpu, &lab.stream, &mut lab.workspace);
            zipgemm_with(gpu, stream, &plan, &weights, slices, work).unwrap();
            stream.synchronize().unwrap();
            let mut outputs = vec![0; n * m];
            y.copy_to(&mut outputs).unwrap();
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

/// What a call of a decoupled plan says, unless it goes through.
fn refusal(
    gpu: &Gpu,
    lab: &Lab,
    plan: &Plan,
    weights: &DeviceMatrix,
    n: usize,
    workspace: &Workspace,
) -> Option<String> {
    let k = weights.cols();
    let x = Guarded::new(&Kind::Gaussian.activations(n, k), NAN, 0);
    let y = Guarded::new(&vec![0u16; n * weights.rows()], GUARD, 0);
    let operands = GemmOperands::new(weights, x.address(), n, y.address());
    // SAFETY: both have room; nothing else uses the workspace.
    let result = unsafe { zipgemm_raw(gpu, lab.raw(), plan, weights, &operands, workspace) };
    lab.stream.synchronize().unwrap();
    match result {
        Ok(()) => None,
        Err(CudaError::Argument(why)) => {
            assert!(y.values().iter().all(|&y| y == 0), "{why}, but it ran");
            Some(why)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn memory_for_dense_weights_is_checked() {
    for mut lab in Lab::each_with_dense() {
        let (m, k, n) = (100, 200, 70);
        let weights = upload(m, k, &Kind::Gaussian.weights(m, k));
        let plan = Plan::decoupled(lab.gpu, &weights, n).unwrap();
        let needed = weights.dense_workspace_bytes();
        let memory = DeviceBuffer::<u8>::zeroed(needed + 256).unwrap();
        CurrentContext::synchronize().unwrap();
        let at = memory.as_device_ptr().as_raw();
        let workspace = |at, bytes| {
            let workspace = Workspace::new(lab.gpu).unwrap();
            // SAFETY: within `memory`, which only these use, one after the other.
            unsafe { workspace.with_dense_raw(at, bytes) }
        };
        let refused = |workspace: &Workspace, what: &str| {
            let why = refusal(lab.gpu, &lab, &plan, &weights, n, workspace);
            assert!(
                why.as_ref().is_some_and(|why| why.contains(what)),
                "{why:?}"
            );
        };
        refused(&Workspace::new(lab.gpu).unwrap(), "Workspace::with_dense");
        refused(
            &workspace(at, needed - 1),
            "bytes of memory for dense weights",
        );
        refused(&workspace(at + 128, needed), "aligned to 256 bytes");
        let fits = workspace(at + 256, needed);
        assert_eq!(fits.dense_bytes(), needed);
        assert_eq!(refusal(lab.gpu, &lab, &plan, &weights, n, &fits), None);

        // Other numbers of tokens and other weights than the plan's.
        let other = refusal(lab.gpu, &lab, &plan, &weights, n + 1, &fits);
        assert!(other.is_some_and(|why| why.contains("the plan is for")));
        let larger = upload(m, k + 8, &Kind::Zero.weights(m, k + 8));
        let other = refusal(lab.gpu, &lab, &plan, &larger, n, &fits);
        assert!(other.is_some_and(|why| why.contains("the plan is for")));
        drop(fits);

        // The checked call, with none and with too little.
        let x = DeviceBuffer::from_slice(&Kind::Gaussian.activations(n, k)).unwrap();
        let mut y = DeviceBuffer::from_slice(&vec![0u16; n * m]).unwrap();
        let little = DeviceBuffer::<u8>::zeroed(needed - 1).unwrap();
        CurrentContext::synchronize().unwrap();
        lab.workspace = Workspace::new(lab.gpu).unwrap();
        let mut multiply = |lab: &mut Lab| {
            let (gpu, stream, work) = (lab.gpu, &lab.stream, &mut lab.workspace);
            zipgemm(gpu, stream, &plan, &weights, &x, &mut y, work)
        };
        assert!(matches!(multiply(&mut lab), Err(CudaError::Argument(_))));
        lab.workspace = Workspace::new(lab.gpu).unwrap().with_dense(little);
        assert!(matches!(multiply(&mut lab), Err(CudaError::Argument(_))));
    }
}

#[test]
fn memory_of_another_device_is_refused() {
    for lab in Lab::each_with_dense() {
        if Device::num_devices().unwrap() < 2 {
            return;
        }
        let (m, k, n) = (100, 200, 70);
        let weights = upload(m, k, &Kind::Gaussian.weights(m, k));
        let plan = Plan::decoupled(lab.gpu, &weights, n).unwrap();
        let other = Gpu::new(1).unwrap();
        let memory = DeviceBuffer::zeroed(weights.dense_workspace_bytes()).unwrap();
        lab.gpu.make_current().unwrap();
        let workspace = Workspace::new(lab.gpu).unwrap().with_dense(memory);
        let why = refusal(lab.gpu, &lab, &plan, &weights, n, &workspace);
        assert!(why.is_some_and(|why| why.contains("belongs to another device")));
        drop(workspace);
        drop(other);
    }
}
