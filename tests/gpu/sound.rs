//! What the safe calls cannot be made to do. What must not even compile is in `tests/compile_fail`.

use std::{env, process::Command, ptr};

use cudarc::driver::sys;
use half::bf16;
use zipserv::gpu::{
    Buffer, Device, DeviceMatrix, Family, GpuError, Linear, Need, Operand, Operands, Plan,
    PlanOptions, RawOperands, Reader, Stream, Tuning, View, ViewMut, Workspace,
};
use zipserv_bench::{Recording, Timer};

use crate::{
    data::{Kind, Product},
    lab::{Lab, compressed, plan, plan_of, quick, refused, skipped},
};

/// What threads may share, and what they may pass on.
#[test]
fn threads() {
    fn shared<T: Send + Sync>() {}
    fn passed_on<T: Send>() {}
    shared::<Device>();
    shared::<Stream>();
    shared::<Buffer<bf16>>();
    shared::<View<'_, bf16>>();
    shared::<ViewMut<'_, bf16>>();
    shared::<DeviceMatrix>();
    shared::<Workspace>();
    shared::<Plan>();
    shared::<PlanOptions>();
    shared::<Tuning>();
    shared::<Linear>();
    shared::<Reader>();
    shared::<GpuError>();
    passed_on::<Timer>();
    // A recording goes with what it borrows.
    let _: Option<Recording<'_>> = None;
}

/// Operands, a workspace, and a product to make of them.
struct Problem {
    weights: DeviceMatrix,
    plan: Plan,
    x: Buffer<bf16>,
    y: Buffer<bf16>,
    bias: Buffer<bf16>,
    workspace: Workspace,
    stream: Stream,
    product: Product,
}

impl Problem {
    const SIZE: (usize, usize) = (136, 264);

    fn new(device: &Device, n: usize) -> Self {
        let (m, k) = Self::SIZE;
        let bits = Kind::Gaussian.weights(m, k);
        let x = Kind::Gaussian.activations(n, k);
        let buffer = |bits: &[u16]| Buffer::from_slice(device, bytemuck::cast_slice(bits)).unwrap();
        let weights = DeviceMatrix::upload(device, &compressed(m, k, &bits)).unwrap();
        Self {
            plan: plan(&weights, n),
            x: buffer(&x),
            y: Buffer::zeroed(device, n * m).unwrap(),
            bias: Buffer::zeroed(device, m).unwrap(),
            workspace: Workspace::new(device).unwrap(),
            stream: Stream::new(device).unwrap(),
            product: Product::new(&x, &bits, k),
            weights,
        }
    }

    fn run(&mut self) -> Result<(), GpuError> {
        let operands = Operands::new(&self.x, &mut self.y).bias(&self.bias);
        self.plan
            .run(&self.stream, &self.weights, operands, &mut self.workspace)
    }

    fn check(&self) {
        let y = bytemuck::cast_vec(self.y.to_vec(&self.stream).unwrap());
        self.product.check(&y, &self.plan);
    }
}

/// Anything of another GPU is refused, whatever it is.
#[test]
fn everything_belongs_to_one_device() {
    for lab in Lab::each() {
        if Device::count().unwrap() < 2 {
            return skipped(&"there is one device only");
        }
        let other = Device::with_family(1, lab.device.family()).unwrap();
        let foreign = || Problem::new(&other, 3);
        for wrong in [
            Operand::Activations,
            Operand::Outputs,
            Operand::Bias,
            Operand::Workspace,
            Operand::Stream,
        ] {
            let mut problem = Problem::new(lab.device, 3);
            match wrong {
                Operand::Activations => problem.x = foreign().x,
                Operand::Outputs => problem.y = foreign().y,
                Operand::Bias => problem.bias = foreign().bias,
                Operand::Workspace => problem.workspace = foreign().workspace,
                _ => problem.stream = foreign().stream,
            }
            refused!(problem.run(), GpuError::Context { operand } if *operand == wrong);
        }
        // Both are of another device than the stream then.
        let mut problem = Problem::new(lab.device, 3);
        problem.weights = foreign().weights;
        refused!(
            problem.run(),
            GpuError::Context {
                operand: Operand::Stream
            }
        );
        let mut problem = Problem {
            plan: foreign().plan,
            ..Problem::new(lab.device, 3)
        };
        refused!(problem.run(), GpuError::PlanMismatch { .. });

        let mut problem = Problem::new(lab.device, 3);
        let mut there = foreign();
        let (here, stream) = (&mut problem.y, &lab.stream);
        refused!(
            there.y.to_vec(stream),
            GpuError::Context {
                operand: Operand::Stream
            }
        );
        refused!(
            here.copy_from(stream, &there.y),
            GpuError::Context {
                operand: Operand::Data
            }
        );
        refused!(
            here.copy_from_slice(&there.stream, &vec![bf16::ONE; here.len()]),
            GpuError::Context {
                operand: Operand::Stream
            }
        );
        let (m, k) = Problem::SIZE;
        let mut dense = Buffer::zeroed(&other, m * k).unwrap();
        refused!(
            problem.weights.decompress(stream, &mut dense),
            GpuError::Context {
                operand: Operand::Outputs
            }
        );
        refused!(
            there.weights.decompress(stream, &mut dense),
            GpuError::Context {
                operand: Operand::Stream
            }
        );
        let layer = Linear::new(lab.device, &compressed(1, 1, &[0])).unwrap();
        refused!(
            layer
                .with_bias(Buffer::zeroed(&other, 1).unwrap())
                .map(|_| ()),
            GpuError::Context {
                operand: Operand::Bias
            }
        );
        // Both work by themselves.
        for problem in [&mut problem, &mut there] {
            problem.run().unwrap();
            problem.check();
        }
    }
}

/// A stream of another context of the same device is refused.
#[test]
fn streams_of_other_contexts_are_refused() {
    for lab in Lab::each() {
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        let success = sys::CUresult::CUDA_SUCCESS;
        // SAFETY: the calls write the handles, and the new context is the current one until it is
        // popped.
        unsafe {
            let ordinal = lab.device.ordinal() as i32;
            assert_eq!(sys::cuCtxCreate_v2(&mut context, 0, ordinal), success);
            assert_eq!(sys::cuStreamCreate(&mut stream, 1), success);
        }
        // Which context is current makes no difference, and is left as it is.
        let mut problem = Problem::new(lab.device, 3);
        problem.run().unwrap();
        problem.check();
        // SAFETY: the stream lives.
        let foreign = unsafe { Stream::from_raw(lab.device, stream.cast()) };
        refused!(
            foreign,
            GpuError::Context {
                operand: Operand::Stream
            }
        );
        let mut current = ptr::null_mut();
        // SAFETY: the calls write the handles; nothing uses stream and context any more.
        unsafe {
            assert_eq!(sys::cuCtxGetCurrent(&mut current), success);
            assert_eq!(current, context);
            assert_eq!(sys::cuStreamDestroy_v2(stream), success);
            assert_eq!(sys::cuCtxDestroy_v2(context), success);
        }
        // A stream of others in the device's own context is as good as any.
        // SAFETY: the lab's stream lives longer.
        problem.stream = unsafe { Stream::from_raw(lab.device, lab.raw()).unwrap() };
        problem.workspace = Workspace::new(lab.device).unwrap();
        problem.run().unwrap();
        problem.check();
    }
}

/// A plan is for one opening of a device, whose kernels it names; all else may be shared by several.
#[test]
fn plans_belong_to_one_opening() {
    for lab in Lab::each() {
        for family in [lab.device.family(), Family::Portable] {
            let other = Device::with_family(0, family).unwrap();
            let there = Problem::new(&other, 3);
            let mut problem = Problem {
                plan: there.plan,
                ..Problem::new(lab.device, 3)
            };
            refused!(problem.run(), GpuError::PlanMismatch { .. });

            let Problem {
                x, y, bias, stream, ..
            } = there;
            let mut problem = Problem {
                x,
                y,
                bias,
                stream,
                ..Problem::new(lab.device, 3)
            };
            problem.run().unwrap();
            problem.check();
        }
    }
}

/// A workspace that was made for fewer kernels, or a smaller device, is refused by launches that need
/// more than it has.
#[test]
fn workspaces_have_room_or_are_refused() {
    let Some(lab) = Lab::hopper() else {
        return;
    };
    let portable = Device::with_family(0, Family::Portable).unwrap();
    let mut problem = Problem::new(lab.device, 300);
    problem.plan = plan_of(&problem.weights, 300, "prefill_n256");
    problem.workspace = Workspace::new(&portable).unwrap();
    refused!(
        problem.run(),
        GpuError::WorkspaceTooSmall { needed, got: 0, .. } if *needed > 0
    );
    problem.workspace = Workspace::new(lab.device).unwrap();
    problem.run().unwrap();
    problem.check();
}

/// A workspace follows its stream, also when nobody else has that any more.
#[test]
fn a_workspace_keeps_its_stream() {
    for lab in Lab::each() {
        let mut problem = Problem::new(lab.device, 40);
        problem.run().unwrap();
        let clone = problem.stream.clone();
        problem.stream = clone;
        problem.run().unwrap();
        // Were the first one gone, a new one could have its handle.
        for _ in 0..10 {
            problem.stream = Stream::new(lab.device).unwrap();
            refused!(problem.run(), GpuError::WorkspaceInUse);
        }
        problem.workspace = Workspace::new(lab.device).unwrap();
        problem.run().unwrap();
        problem.check();
    }
}

/// Outputs over anything else that a raw call uses.
#[test]
fn overlapping_operands_are_refused() {
    for mut lab in Lab::each() {
        let n = 3;
        let problem = Problem::new(lab.device, n);
        let (weights, (m, k)) = (&problem.weights, Problem::SIZE);
        let dense = Buffer::<u8>::zeroed(lab.device, 4096).unwrap();
        let dense_at = dense.address();
        lab.workspace = Workspace::new(lab.device).unwrap().with_dense(dense);
        let [x, y] = [problem.x.address(), problem.y.address()];
        let right = RawOperands::new(weights, x, n, y);
        let at = |y| RawOperands { y, ..right };
        let with_bias = |bias| RawOperands {
            bias: Some(bias),
            ..right
        };
        let (stored, ..) = weights.addresses();
        let stored = stored as u64;
        for (wrong, which) in [
            (at(x), Operand::Activations),
            (with_bias(y), Operand::Bias),
            (with_bias(y + 2 * (n * m) as u64 - 2), Operand::Bias),
            (at(stored), Operand::Weights),
            (at(dense_at), Operand::Workspace),
        ] {
            // SAFETY: refused before anything is launched.
            let result = unsafe { lab.try_launch(&problem.plan, weights, &wrong) };
            refused!(result, GpuError::Overlap { operand } if *operand == which);
        }
        // By one value; what lies behind an operand may be another one.
        for y in [
            x + 2 * (n * k) as u64 - 2,
            x - 2 * (n * m) as u64 + 2,
            stored + weights.device_bytes() as u64 - 2,
            dense_at + 4094,
        ] {
            // SAFETY: as above.
            let result = unsafe { lab.try_launch(&problem.plan, weights, &at(y)) };
            refused!(result, GpuError::Overlap { .. });
        }
        let layer = Linear::from(lab.upload(m, k, &Kind::Zero.weights(m, k)));
        // SAFETY: as above.
        let result = unsafe { layer.forward_raw(lab.raw(), &at(x), &lab.workspace) };
        refused!(
            result,
            GpuError::Overlap {
                operand: Operand::Activations
            }
        );
        // As it is, it is right.
        // SAFETY: all have room.
        unsafe { lab.launch(&problem.plan, weights, &right) };
        let y = bytemuck::cast_vec(problem.y.to_vec(&lab.stream).unwrap());
        problem.product.check(&y, &problem.plan);
    }
}

/// Parts of one buffer that do not overlap: two halves, and columns of one tensor.
#[test]
fn parts_of_one_buffer() {
    for mut lab in Lab::each() {
        let (m, k) = Problem::SIZE;
        for n in [3, 70] {
            let problem = Problem::new(lab.device, n);
            let (weights, plan) = (&problem.weights, &problem.plan);
            let values: Vec<bf16> = problem.x.to_vec(&lab.stream).unwrap();
            let (stream, work) = (&lab.stream, &mut lab.workspace);

            let mut all = Buffer::zeroed(lab.device, n * (k + m)).unwrap();
            let mut start = values.clone();
            start.resize(n * (k + m), bf16::NAN);
            all.copy_from_slice(stream, &start).unwrap();
            let (x, y) = all.slice_mut(..).split_at(n * k);
            plan.run(stream, weights, Operands::new(x.as_view(), y), work)
                .unwrap();
            let y: Vec<bf16> = all.slice(n * k..).to_vec(stream).unwrap();
            problem.product.check(bytemuck::cast_slice(&y), plan);

            let columns = |x: &[bf16]| [x, &vec![bf16::NAN; m]].concat();
            let rows: Vec<bf16> = values.chunks(k).flat_map(columns).collect();
            all.copy_from_slice(stream, &rows).unwrap();
            let operands = RawOperands {
                x_stride: k + m,
                y_stride: k + m,
                ..RawOperands::new(weights, all.address(), n, all.address() + 2 * k as u64)
            };
            // SAFETY: rows of outputs lie between those of activations.
            unsafe {
                plan.run_raw(stream.raw(), weights, &operands, work)
                    .unwrap()
            };
            let all = all.to_vec(stream).unwrap();
            let parts = all.chunks(k + m).map(|row| row.split_at(k));
            let (x, y): (Vec<&[bf16]>, Vec<&[bf16]>) = parts.unzip();
            assert!(x.concat() == values, "activations were written");
            problem
                .product
                .check(bytemuck::cast_slice(&y.concat()), plan);
        }
    }
}

/// Memory is freed when all kernels that use it have run.
#[test]
fn freed_memory_waits_for_kernels() {
    for lab in Lab::each() {
        let (size, n, launches) = if quick() {
            (256, 8, 3)
        } else {
            (4096, 64, 1000)
        };
        let bits = vec![0x3F80; size * size];
        let matrix = compressed(size, size, &bits);
        for gone in [
            Operand::Activations,
            Operand::Outputs,
            Operand::Bias,
            Operand::Weights,
            Operand::Workspace,
            Operand::Stream,
        ] {
            let weights = DeviceMatrix::upload(lab.device, &matrix).unwrap();
            let plan = plan(&weights, n);
            let x = Buffer::<bf16>::zeroed(lab.device, n * size).unwrap();
            let bias = Buffer::<bf16>::zeroed(lab.device, size).unwrap();
            let mut y = Buffer::<bf16>::zeroed(lab.device, n * size).unwrap();
            let mut workspace = Workspace::new(lab.device).unwrap();
            let stream = Stream::new(lab.device).unwrap();
            let mut launch = || {
                let operands = Operands::new(&x, &mut y).bias(&bias);
                plan.run(&stream, &weights, operands, &mut workspace)
                    .unwrap();
            };
            // The kernel is loaded when the chain begins.
            launch();
            stream.synchronize().unwrap();
            assert!(stream.is_idle().unwrap());
            (0..launches).for_each(|_| launch());
            // A sanitizer may let launches wait.
            let long = quick() || !stream.is_idle().unwrap();
            assert!(long, "the chain is too short to tell");
            match gone {
                Operand::Activations => drop(x),
                Operand::Outputs => drop(y),
                Operand::Bias => drop(bias),
                Operand::Weights => drop(weights),
                Operand::Workspace => drop(workspace),
                _ => {
                    // SAFETY: the workspace's clone outlives it.
                    let same = unsafe { Stream::from_raw(lab.device, stream.raw()).unwrap() };
                    drop(stream);
                    assert!(quick() || !same.is_idle().unwrap(), "nothing waits yet");
                    drop(workspace);
                    lab.device.synchronize().unwrap();
                    continue;
                }
            }
            assert!(stream.is_idle().unwrap(), "{gone} went before its kernels");
        }
    }
}

/// Whether this process is the child of a test.
const ALONE: &str = "ZIPSERV_TEST_ALONE";

/// What belongs to a device keeps it, and its context, alive. In a process of its own, in which
/// nothing else holds the context.
#[test]
fn the_device_goes_first() {
    if env::var_os(ALONE).is_some() {
        let device = Device::new(0).unwrap();
        let mut problem = Problem::new(&device, 40);
        drop(device);
        problem.run().unwrap();
        problem.check();
        // Others come and go.
        let other = Problem::new(&Device::new(0).unwrap(), 3);
        problem.run().unwrap();
        problem.check();
        drop(problem);
        other.check_zeros();
        // The stream goes last, and the context with it.
        let Problem { stream, .. } = other;
        stream.synchronize().unwrap();
        drop(stream);
        // From the start again.
        let mut problem = Problem::new(&Device::new(0).unwrap(), 3);
        problem.run().unwrap();
        problem.check();
    } else if let Some(_lab) = Lab::each().next() {
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "sound::the_device_goes_first", "--nocapture"]);
        let output = child.env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }
}

impl Problem {
    /// Fails unless nothing was multiplied.
    fn check_zeros(&self) {
        let y = self.y.to_vec(&self.stream).unwrap();
        assert!(y.iter().all(|&y| y == bf16::ZERO));
    }
}

/// A failed call leaves the workspace unbound, and errors name what is wrong in words.
#[test]
fn a_refused_call_changes_nothing() {
    for lab in Lab::each() {
        let mut problem = Problem::new(lab.device, 3);
        let short = Buffer::zeroed(lab.device, 1).unwrap();
        let y = std::mem::replace(&mut problem.y, short);
        let error = problem.run().unwrap_err();
        assert_eq!(error.to_string(), "the outputs must have 408 values, not 1");
        refused!(
            Err::<(), _>(error),
            GpuError::Length {
                operand: Operand::Outputs,
                expected: Need::Exactly(408),
                got: 1
            }
        );
        problem.y = y;
        // Another stream may be the first one.
        problem.stream = Stream::new(lab.device).unwrap();
        problem.run().unwrap();
        problem.check();
    }
}
