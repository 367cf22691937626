use cudarc::driver::sys;

use super::{
    buffer::same_context,
    driver::{RawStream, check},
    error::{GpuError, Operand},
    matrix::DeviceMatrix,
    operands::{Operands, OutputType, RawOperands},
    plan::decoupled::rounds_twice,
    plan::{Kind, Plan, choose, run_decoupled, run_invariant, run_mma, run_wgmma, wgmma},
    stream::Stream,
    workspace::Workspace,
};

impl Plan {
    /// Y[N, M] = X[N, K] W[M, K]^T: tokens of BF16 activations, row after row, times the transposed
    /// weights, with all that [`Operands`] can ask for. Sums are FP32, in an order that depends on
    /// the plan, and on whether rows of activations are aligned, so that the same inputs give the
    /// same bits.
    ///
    /// The call returns at once; the result is there when `stream` has come so far. Nothing is
    /// allocated and nothing waits, so the call can be captured into a CUDA graph. The first call
    /// binds `workspace` to `stream`.
    ///
    /// On Hopper, more than 8 tokens mostly take kernels that want K to be a multiple of 8, and all
    /// rows of activations aligned to 16 bytes, as allocations and multiples of 8 activations are.
    /// Other activations, and more than 64 tokens on other GPUs, go through the kernels for few
    /// tokens in slices of up to 64, one launch after another in the stream: that is right, but slow,
    /// for each slice reads all weights. The call looks at address and stride and falls back by
    /// itself, whatever the plan, unless that is [decoupled](super::PlanOptions::decoupled): such
    /// plans take all activations the same way, decompress the weights to memory of the workspace,
    /// and leave the rest to cuBLASLt. Its sums are FP32 as well, and the same inputs give the same
    /// bits on the same device and library. Only a bias on BF16 outputs, for which cuBLASLt rounds
    /// twice, takes the fused kernel there too.
    /// [Batch-invariant](super::PlanOptions::batch_invariant) plans never fall back: they refuse rows
    /// of activations that are not aligned.
    ///
    /// # Errors
    /// Nothing is launched when operands do not fit the weights ([`GpuError::Length`],
    /// [`GpuError::Stride`], [`GpuError::Tokens`], [`GpuError::EmptyBias`]), are not aligned
    /// ([`GpuError::Alignment`]), overlap ([`GpuError::Overlap`]) or belong to another device or
    /// context ([`GpuError::Context`]); when the plan is for others ([`GpuError::PlanMismatch`]); when
    /// the workspace serves another stream or is too small ([`GpuError::WorkspaceInUse`],
    /// [`GpuError::WorkspaceTooSmall`], [`GpuError::Missing`]). [`GpuError::Driver`] and
    /// [`GpuError::Cublas`] come from the libraries.
    pub fn run(
        &self,
        stream: &Stream,
        weights: &DeviceMatrix,
        operands: Operands<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), GpuError> {
        let device = weights.device();
        same_context(device, stream.device(), Operand::Stream)?;
        let operands = operands.checked(weights)?;
        workspace.claim(stream)?;
        // SAFETY: lengths and context are right; outputs are borrowed alone, and memory that is freed
        // waits for kernels that use it; the workspace serves this stream only; weights are written
        // by `DeviceMatrix`, which waits until they are.
        unsafe { self.run_raw(stream.raw(), weights, &operands, workspace) }
    }

    /// [`run`](Self::run) on the caller's own pointers and stream, as cudarc, candle and PyTorch hold
    /// them.
    ///
    /// # Errors
    /// As [`run`](Self::run), but what pointers do not tell.
    ///
    /// # Safety
    /// - When the kernel runs, `x` holds its `n` rows, `y` has room for its own and `bias` holds M
    ///   BF16, in memory of the context of the weights' device, which `stream` is of too.
    /// - `y` overlaps neither of the others, the weights, nor the workspace. (The call refuses what it
    ///   can see of that.)
    /// - No other kernel uses `workspace` at the same time.
    /// - Weights, workspace and device live until the kernel has run.
    ///
    /// A plan's launch is [dependent](Plan::is_pdl) on Hopper: it may start before the kernel ahead of
    /// it in the stream has finished, and reads the weights then, so no kernel of the stream that may
    /// still run writes the weights. All else it reads and writes only after that kernel has finished
    /// and its writes are visible. It lets the kernel behind it start before its outputs are written: a
    /// kernel of others that is launched with programmatic stream serialization must wait
    /// (`griddepcontrol.wait`, `cudaGridDependencySynchronize`) before it touches `y` or `workspace`;
    /// one that is launched plainly waits by itself.
    pub unsafe fn run_raw(
        &self,
        stream: RawStream,
        weights: &DeviceMatrix,
        operands: &RawOperands,
        workspace: &Workspace,
    ) -> Result<(), GpuError> {
        let (m, k) = (weights.rows(), weights.cols());
        self.check_device(weights.device())?;
        weights.check_context(workspace.device())?;
        operands.check(m, k)?;
        operands.check_overlap(m, k)?;
        operands.check_apart(weights, workspace)?;
        if m == 0 {
            return Ok(());
        }
        let _current = weights.device().enter()?;
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if k == 0 {
                return write_empty_sums(stream, weights, operands);
            }
            match &self.kind {
                Kind::Mma(plan) => {
                    run_mma(stream, plan, self.pdl, weights, operands, false, workspace)
                }
                Kind::Wgmma(plan) if wgmma::can_read(operands.x, operands.x_stride) => {
                    run_wgmma(stream, plan, self.pdl, weights, operands, false, workspace)
                }
                Kind::Invariant(plan) => {
                    run_invariant(stream, plan, self.pdl, weights, operands, workspace)
                }
                Kind::Decoupled(plan) => {
                    let dense = plan.memory(weights, operands, workspace)?;
                    match rounds_twice(operands) {
                        true => self.run_fused(stream, weights, operands, workspace),
                        false => run_decoupled(stream, plan, weights, operands, dense),
                    }
                }
                Kind::Wgmma(_) => self.run_fused(stream, weights, operands, workspace),
            }
        }
    }

    /// The same for operands that the plan's own way does not take: with the fused kernel that is
    /// chosen for them.
    ///
    /// # Safety
    /// As [`run_raw`](Self::run_raw).
    unsafe fn run_fused(
        &self,
        stream: RawStream,
        weights: &DeviceMatrix,
        operands: &RawOperands,
        workspace: &Workspace,
    ) -> Result<(), GpuError> {
        let &RawOperands { x, x_stride, n, .. } = operands;
        let many = wgmma::can_read(0, weights.cols()) && wgmma::can_read(x, x_stride);
        let plan = choose(weights, n, many)?.with_pdl(self.pdl);
        // SAFETY: the caller's promise, passed on.
        unsafe { plan.run_raw(stream, weights, operands, workspace) }
    }
}

/// The outputs of weights without input features: zeros, or what they were.
///
/// # Safety
/// As [`Plan::run_raw`].
unsafe fn write_empty_sums(
    stream: RawStream,
    weights: &DeviceMatrix,
    operands: &RawOperands,
) -> Result<(), GpuError> {
    if operands.accumulate {
        return Ok(());
    }
    let (y, pitch, stream) = (operands.y, operands.y_pitch(), stream.cast());
    let (m, n) = (weights.rows(), operands.n);
    // SAFETY: the caller's promise.
    unsafe {
        match operands.output {
            OutputType::Bf16 => check(
                "cuMemsetD2D16Async",
                sys::cuMemsetD2D16Async(y, pitch, 0, m, n, stream),
            ),
            OutputType::F32 => check(
                "cuMemsetD2D32Async",
                sys::cuMemsetD2D32Async(y, pitch, 0, m, n, stream),
            ),
        }
    }
}
