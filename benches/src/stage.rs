use std::cell::OnceCell;

use cudarc::driver::sys;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use zipserv::gpu::{Buffer, Device, GpuError, Plan, RawOperands, Reader, Stream, Workspace};

use super::{
    Recording, Timer,
    check::Reference,
    cublas::{self, Algorithm, Cublas, Problem},
    driver::check,
    operands::{Copies, Layout, Operands, Rotation},
    published::{PublishedKernels, PublishedPlan},
};

/// Where launches are recorded and replayed: one stream, workspace, timer and cuBLAS.
pub struct Stage {
    workspace: Workspace,
    timer: Timer,
    /// Loaded when it is first asked for: `decompress` does without.
    cublas: OnceCell<Cublas>,
    /// Likewise.
    published: OnceCell<PublishedKernels>,
    stream: Stream,
}

impl Stage {
    pub fn new(device: &Device) -> Result<Self, GpuError> {
        let stream = Stream::new(device)?;
        Ok(Self {
            workspace: Workspace::new(device)?,
            timer: Timer::new(&stream)?,
            cublas: OnceCell::new(),
            published: OnceCell::new(),
            stream,
        })
    }

    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    pub fn published(&self) -> Result<&PublishedKernels, GpuError> {
        if self.published.get().is_none() {
            let _ = self
                .published
                .set(PublishedKernels::new(self.stream.device())?);
        }
        Ok(self.published.get().expect("just set"))
    }

    pub fn cublas(&self) -> Result<&Cublas, GpuError> {
        if self.cublas.get().is_none() {
            let _ = self.cublas.set(Cublas::new(&self.stream)?);
        }
        Ok(self.cublas.get().expect("just set"))
    }

    /// Records `launch` for each launch, with the copy of its operands that it is to use.
    fn rotate<'a>(
        &self,
        rotation: Rotation,
        mut launch: impl FnMut(usize) -> Result<(), GpuError> + 'a,
    ) -> Result<Recording<'a>, GpuError> {
        let Rotation { copies, launches } = rotation;
        let record = move || (0..launches).try_for_each(|i| launch(i % copies));
        // SAFETY: what the stage's launches use is borrowed, and never taken away.
        unsafe { self.timer.record(launches, record) }
    }

    /// A plan over the layer's copies.
    pub fn zipgemm<'a>(
        &'a self,
        operands: &'a Operands,
        plan: Plan,
        n: usize,
        x: &'a Copies,
        y: &'a Copies,
    ) -> Result<Recording<'a>, GpuError> {
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
    ) -> Result<Recording<'a>, GpuError> {
        self.rotate(operands.rotation(n), move |copy| {
            let weights = &operands.compressed[copy];
            let at = RawOperands::new(weights, x.at(copy), n, y.at(copy));
            // SAFETY: copies have the problem's sizes; one stream uses the workspace.
            unsafe { plan.run_raw(self.stream.raw(), weights, &at, workspace) }
        })
    }

    /// What the outputs of `n` tokens, the copies `x` of `bits`, should be.
    pub fn reference(
        &self,
        operands: &Operands,
        x: &Copies,
        bits: &[u16],
        n: usize,
    ) -> Result<Reference, GpuError> {
        let (m, k) = (operands.info.rows, operands.info.cols);
        let y = Buffer::<f32>::zeroed(self.stream.device(), n * m)?;
        let problem = Problem {
            f32_out: true,
            ..operands.problem(n)
        };
        let at = cublas::Operands {
            x: x.at(0),
            w: operands.dense[0].address(),
            y: y.address(),
        };
        // SAFETY: the operands have the problem's sizes.
        unsafe { self.cublas()?.gemm(problem, at)? };
        let fp32 = y.to_vec(&self.stream)?;
        let reference = Reference::new(fp32, bits, &operands.bits, k);
        if reference.is_sound() {
            Ok(reference)
        } else {
            let wrong = format!("cuBLAS's FP32 outputs are wrong: {m} x {k}, {n} tokens");
            Err(GpuError::Config(wrong))
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
    ) -> Result<Recording<'a>, GpuError> {
        let problem = operands.problem(n);
        let cublas = self.cublas()?;
        self.rotate(operands.rotation(n), move |copy| {
            let at = cublas::Operands {
                x: x.at(copy),
                w: operands.dense[copy].address(),
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
    ) -> Result<Recording<'a>, GpuError> {
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
    ) -> Result<Recording<'a>, GpuError> {
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
        to: u64,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe {
            match layout {
                Layout::Ours => operands.compressed[copy].decompress_raw(self.stream.raw(), to),
                Layout::Published => {
                    let published = self.published()?;
                    published.decompress(&self.stream, &operands.published[copy], to)
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
    ) -> Result<Recording<'a>, GpuError> {
        let kernels = self.published()?;
        self.rotate(operands.rotation(n), move |copy| {
            let (x, y) = (x.at(copy), y.at(copy));
            let weights = &operands.published[copy];
            // SAFETY: copies have the problem's sizes; one stream is used.
            unsafe { kernels.multiply(&self.stream, &plan, weights, x, n, y) }
        })
    }

    /// Measures the read ceiling, TB/s of a kernel that only reads, on far more memory than the cache
    /// holds.
    pub fn read_tbs(&self, replays: usize) -> Result<f64, GpuError> {
        // So much that it makes no difference that some blocks read a chunk less than others.
        const BYTES: usize = 4 << 30;
        const LAUNCHES: usize = 2;
        let from = noise(&self.stream, BYTES)?;
        let mut reader = Reader::new(self.stream.device())?;
        // SAFETY: it has the size, and lives until the last replay.
        let read = unsafe {
            self.timer.record(LAUNCHES, || {
                (0..LAUNCHES).try_for_each(|_| reader.read(&self.stream, from.slice(..)))
            })?
        };
        let times = self.timer.medians(&[read], replays)?;
        Ok(BYTES as f64 / times[0] / 1e6)
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
) -> Result<(), GpuError> {
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
fn noise(stream: &Stream, bytes: usize) -> Result<Buffer<u8>, GpuError> {
    const PIECE: usize = 16 << 20;
    let mut piece = vec![0; PIECE];
    SmallRng::seed_from_u64(0).fill(piece.as_mut_slice());
    let piece = Buffer::from_slice(stream.device(), &piece)?;
    let noise = Buffer::uninitialized(stream.device(), bytes)?;
    let _current = stream.device().enter()?;
    for from in (0..bytes).step_by(PIECE) {
        let (to, bytes) = (noise.address() + from as u64, PIECE.min(bytes - from));
        // SAFETY: within both.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to, piece.address(), bytes, stream.raw().cast())
        })?;
    }
    stream.synchronize()?;
    Ok(noise)
}
