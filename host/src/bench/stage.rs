use std::cell::OnceCell;

use cudarc::driver::sys::{self, CUdeviceptr};
use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer, DeviceSlice},
    stream::{Stream, StreamFlags},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    Algorithm, Cublas, Problem, Recording, Timer,
    check::Reference,
    cublas,
    operands::{Copies, Layout, Operands, Rotation},
};
use crate::{
    cuda::{
        CudaError, GemmOperands, Gpu, Plan, PublishedPlan, RawStream, Workspace, check,
        decompress_raw, published_decompress_raw, published_gemm_raw, read_raw, read_sink_words,
        zipgemm_raw,
    },
    results::Ceilings,
};

/// Where launches are recorded and replayed: one stream, workspace, timer and cuBLAS.
pub struct Stage<'g> {
    gpu: &'g Gpu,
    workspace: Workspace,
    timer: Timer,
    /// Loaded when it is first asked for: `decompress` does without.
    cublas: OnceCell<Cublas>,
    raw: RawStream,
    // Last, for what is above uses it.
    _stream: Stream,
}

impl<'g> Stage<'g> {
    pub fn new(gpu: &'g Gpu) -> Result<Self, CudaError> {
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
        let raw = stream.as_inner().cast();
        Ok(Self {
            gpu,
            workspace: Workspace::new(gpu)?,
            // SAFETY: the stream is dropped after the timer.
            timer: unsafe { Timer::new(raw)? },
            cublas: OnceCell::new(),
            raw,
            _stream: stream,
        })
    }

    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    pub fn cublas(&self) -> Result<&Cublas, CudaError> {
        if self.cublas.get().is_none() {
            let _ = self.cublas.set(Cublas::new(self.raw)?);
        }
        Ok(self.cublas.get().expect("just set"))
    }

    /// Records `launch` for each launch, with the copy of its operands that it is to use.
    fn rotate<'a>(
        &self,
        rotation: Rotation,
        mut launch: impl FnMut(usize) -> Result<(), CudaError> + 'a,
    ) -> Result<Recording<'a>, CudaError> {
        let Rotation { copies, launches } = rotation;
        self.timer.record(launches, move || {
            (0..launches).try_for_each(|i| launch(i % copies))
        })
    }

    /// A plan over the layer's copies.
    pub fn zipgemm<'a>(
        &'a self,
        operands: &'a Operands,
        plan: Plan,
        n: usize,
        x: &'a Copies,
        y: &'a Copies,
    ) -> Result<Recording<'a>, CudaError> {
        self.zipgemm_with(operands, plan, n, x, y, &self.workspace)
    }

    /// The same with a workspace that may have memory for dense weights. Nothing else uses it.
    pub fn zipgemm_with<'a>(
        &'a self,
        operands: &'a Operands,
        plan: Plan,
        n: usize,
        x: &'a Copies,
        y: &'a Copies,
        workspace: &'a Workspace,
    ) -> Result<Recording<'a>, CudaError> {
        self.rotate(operands.rotation(n), move |copy| {
            let weights = &operands.compressed[copy];
            let at = GemmOperands::new(weights, x.at(copy), n, y.at(copy));
            // SAFETY: copies have the problem's sizes; one stream uses the workspace.
            unsafe { zipgemm_raw(self.gpu, self.raw, &plan, weights, &at, workspace) }
        })
    }

    /// What the outputs of `n` tokens, the copies `x` of `bits`, should be.
    pub fn reference(
        &self,
        operands: &Operands,
        x: &Copies,
        bits: &[u16],
        n: usize,
    ) -> Result<Reference, CudaError> {
        let (m, k) = (operands.info.rows, operands.info.cols);
        let y = DeviceBuffer::<f32>::zeroed(n * m)?;
        CurrentContext::synchronize()?;
        let problem = Problem {
            f32_out: true,
            ..operands.problem(n)
        };
        let at = cublas::Operands {
            x: x.at(0),
            w: operands.dense[0].as_device_ptr().as_raw(),
            y: y.as_device_ptr().as_raw(),
        };
        // SAFETY: the operands have the problem's sizes.
        unsafe { self.cublas()?.gemm(problem, at)? };
        CurrentContext::synchronize()?;
        let mut fp32 = vec![0.0; n * m];
        y.copy_to(&mut fp32)?;
        let reference = Reference::new(fp32, bits, &operands.bits, k);
        if reference.is_sound() {
            Ok(reference)
        } else {
            let wrong = format!("cuBLAS's FP32 outputs are wrong: {m} x {k}, {n} tokens");
            Err(CudaError::Argument(wrong))
        }
    }

    /// cuBLAS's own choice for the layer's copies, or one of cuBLASLt's.
    pub fn cublas_gemm<'a>(
        &'a self,
        operands: &'a Operands,
        algorithm: Option<&'a Algorithm>,
        n: usize,
        x: &'a Copies,
        y: &'a Copies,
    ) -> Result<Recording<'a>, CudaError> {
        let problem = operands.problem(n);
        let cublas = self.cublas()?;
        self.rotate(operands.rotation(n), move |copy| {
            let at = cublas::Operands {
                x: x.at(copy),
                w: operands.dense[copy].as_device_ptr().as_raw(),
                y: y.at(copy),
            };
            // SAFETY: copies have the problem's sizes.
            unsafe { multiply(cublas, algorithm, problem, at) }
        })
    }

    /// The same with weights that are restored from a layout to `dense`, its one copy, before each
    /// multiplication. Both count as one launch.
    pub fn decoupled<'a>(
        &'a self,
        operands: &'a Operands,
        (layout, dense): (Layout, &'a Copies),
        algorithm: Option<&'a Algorithm>,
        n: usize,
        x: &'a Copies,
        y: &'a Copies,
    ) -> Result<Recording<'a>, CudaError> {
        let problem = operands.problem(n);
        let cublas = self.cublas()?;
        self.rotate(operands.rotation(n), move |copy| {
            let at = cublas::Operands {
                x: x.at(copy),
                w: dense.at(0),
                y: y.at(copy),
            };
            // SAFETY: `dense` has the matrix's size, and copies have the problem's. One follows
            // the other in the stream.
            unsafe {
                self.restore(operands, layout, copy, at.w)?;
                multiply(cublas, algorithm, problem, at)
            }
        })
    }

    /// Restoring the layer's copies from a layout to `outputs`.
    pub fn decompress<'a>(
        &'a self,
        operands: &'a Operands,
        layout: Layout,
        outputs: &'a Copies,
    ) -> Result<Recording<'a>, CudaError> {
        self.rotate(operands.rotation(0), move |copy| {
            // SAFETY: an output has the matrix's size.
            unsafe { self.restore(operands, layout, copy, outputs.at(copy)) }
        })
    }

    /// # Safety
    /// `to` has the matrix's size.
    unsafe fn restore(
        &self,
        operands: &Operands,
        layout: Layout,
        copy: usize,
        to: CUdeviceptr,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe {
            match layout {
                Layout::Ours => decompress_raw(self.gpu, self.raw, &operands.compressed[copy], to),
                Layout::Published => {
                    published_decompress_raw(self.gpu, self.raw, &operands.published[copy], to)
                }
            }
        }
    }

    /// A plan of ZipServ's kernels as published over the layer's copies in that layout.
    pub fn published_gemm<'a>(
        &'a self,
        operands: &'a Operands,
        plan: PublishedPlan,
        n: usize,
        x: &'a Copies,
        y: &'a Copies,
    ) -> Result<Recording<'a>, CudaError> {
        self.rotate(operands.rotation(n), move |copy| {
            let (weights, workspace) = (&operands.published[copy], &self.workspace);
            let (x, y) = (x.at(copy), y.at(copy));
            // SAFETY: copies have the problem's sizes; one stream uses the workspace.
            unsafe { published_gemm_raw(self.gpu, self.raw, &plan, weights, x, n, y, workspace) }
        })
    }

    /// Copying the layer's dense weights to `outputs`.
    pub fn copy<'a>(
        &'a self,
        operands: &'a Operands,
        outputs: &'a Copies,
    ) -> Result<Recording<'a>, CudaError> {
        self.rotate(operands.rotation(0), move |copy| {
            let from = operands.dense[copy].as_device_ptr().as_raw();
            // SAFETY: an output has the matrix's size.
            unsafe { self.copy_bytes(outputs.at(copy), from, operands.info.bf16_bytes()) }
        })
    }

    unsafe fn copy_bytes(
        &self,
        to: CUdeviceptr,
        from: CUdeviceptr,
        bytes: usize,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw)
        })
    }

    /// Measures what memory gives at most, on far more of it than the cache holds.
    pub fn ceilings(&self, replays: usize) -> Result<Ceilings, CudaError> {
        // So much that it makes no difference that some blocks read a chunk less than others.
        const BYTES: usize = 4 << 30;
        const LAUNCHES: usize = 2;
        let from = noise(BYTES)?;
        let to = DeviceBuffer::<u8>::zeroed(BYTES)?;
        let sink = DeviceBuffer::<u32>::zeroed(read_sink_words(self.gpu)?)?;
        CurrentContext::synchronize()?;
        let address = |buffer: &DeviceSlice<u8>| buffer.as_device_ptr().as_raw();
        let copy = self.timer.record(LAUNCHES, || {
            // SAFETY: both have the size.
            (0..LAUNCHES)
                .try_for_each(|_| unsafe { self.copy_bytes(address(&to), address(&from), BYTES) })
        })?;
        let read = self.timer.record(LAUNCHES, || {
            let (from, sink) = (address(&from), sink.as_device_ptr().as_raw());
            // SAFETY: the sizes are as said.
            (0..LAUNCHES)
                .try_for_each(|_| unsafe { read_raw(self.gpu, self.raw, from, BYTES, sink) })
        })?;
        let times = self.timer.medians(&[copy, read], replays)?;
        Ok(Ceilings {
            copy: 2.0 * BYTES as f64 / times[0] / 1e6,
            read: BYTES as f64 / times[1] / 1e6,
        })
    }
}

/// By cuBLAS's own choice, or by one of cuBLASLt's for the problem.
///
/// # Safety
/// The operands are as large as the problem says.
unsafe fn multiply(
    cublas: &Cublas,
    algorithm: Option<&Algorithm>,
    problem: Problem,
    at: cublas::Operands,
) -> Result<(), CudaError> {
    // SAFETY: the caller's promise.
    unsafe {
        match algorithm {
            Some(algorithm) => cublas.matmul(algorithm, at)?,
            None => cublas.gemm(problem, at)?,
        }
    }
    Ok(())
}

/// Random bytes: zeros would cost memory less power than weights do.
fn noise(bytes: usize) -> Result<DeviceBuffer<u8>, CudaError> {
    const PIECE: usize = 16 << 20;
    let mut piece = vec![0; PIECE.min(bytes)];
    SmallRng::seed_from_u64(0).fill(piece.as_mut_slice());
    // SAFETY: written whole below.
    let noise = unsafe { DeviceBuffer::uninitialized(bytes)? };
    let mut from = 0;
    while from < bytes {
        let to = bytes.min(from + PIECE);
        noise.index(from..to).copy_from(&piece[..to - from])?;
        from = to;
    }
    Ok(noise)
}
