use cudarc::driver::sys;
use cust::{memory::DeviceSlice, stream::Stream};

use super::{
    CudaError, DeviceMatrix, GemmOperands, GemmSlices, Gpu, OutputType, Outputs, Plan, RawStream,
    Workspace, check,
    decode::zipgemm_decode_raw,
    decoupled::zipgemm_decoupled_raw,
    guard,
    invariant::zipgemm_invariant_raw,
    plan::{Kind, choose},
    prefill::{self, zipgemm_prefill_raw},
};

/// Y[N, M] = X[N, K] W[M, K]^T: tokens of BF16 activations in `x`, row after row, times the
/// transposed weights, into BF16 in `y`. Sums are FP32, in an order that depends on the plan, and
/// on whether rows of `x` are aligned, so that the same inputs give the same bits.
/// [`zipgemm_with`] does more: a bias, FP32 outputs, addition to what the outputs hold, and rows
/// apart.
///
/// The number of tokens, N, is `x.len() / K`, and at most [`MAX_TOKENS`](super::MAX_TOKENS); the
/// plan is for as many. The call returns at once; the result is there when `stream` has come so
/// far. Nothing is allocated and nothing waits, so the call can be captured into a CUDA graph. The
/// first call binds `workspace` to `stream`.
///
/// On Hopper, more than 8 tokens mostly take kernels that want K to be a multiple of 8, and all rows of
/// activations aligned to 16 bytes, as allocations and multiples of 8 activations are. Other
/// activations, and more than 64 tokens on other GPUs, go through the kernels for few tokens in
/// slices of up to 64, one launch after another in the stream: that is right, but slow, for each
/// slice reads all weights. The call looks at address and stride and falls back by itself,
/// whatever the plan, unless that is decoupled: such plans, which
/// [`zipgemm_plan_within`](super::zipgemm_plan_within) makes, take all activations the same way,
/// decompress the weights to memory of the workspace, and leave the rest to cuBLASLt. Its sums are
/// FP32 as well, and the same inputs give the same bits on the same device and library. Only a bias
/// on BF16 outputs, for which cuBLASLt rounds twice, takes the fused kernel there too.
/// [Batch-invariant](Plan::batch_invariant) plans never fall back: they refuse rows of activations
/// that are not aligned.
///
/// # Errors
/// [`CudaError::Argument`] when lengths do not fit, something belongs to another device, the
/// plan is for other problems, or the workspace for another stream or, if the plan is decoupled,
/// too small, or rows of activations are not aligned and the plan is batch-invariant; [`CudaError`]
/// from the driver and from cuBLASLt.
pub fn zipgemm(
    gpu: &Gpu,
    stream: &Stream,
    plan: &Plan,
    weights: &DeviceMatrix,
    x: &DeviceSlice<u16>,
    y: &mut DeviceSlice<u16>,
    workspace: &mut Workspace,
) -> Result<(), CudaError> {
    let (m, k) = (weights.rows(), weights.cols());
    let n = x.len().checked_div(k).unwrap_or(0);
    if n == 0 || x.len() != n * k || Some(y.len()) != n.checked_mul(m) {
        return Err(CudaError::Argument(format!(
            "{} activations and {} outputs do not fit weights of {m} x {k}",
            x.len(),
            y.len()
        )));
    }
    let slices = GemmSlices::new(weights, x, n, Outputs::Bf16(y));
    zipgemm_with(gpu, stream, plan, weights, slices, workspace)
}

/// [`zipgemm`] with all that [`GemmSlices`] can ask for.
///
/// # Errors
/// As [`zipgemm`]; [`CudaError::Argument`] also when a stride is less than a row or its rows more
/// than 4 GiB apart, when the bias does not have M values, and for a bias to weights without
/// input features.
pub fn zipgemm_with(
    gpu: &Gpu,
    stream: &Stream,
    plan: &Plan,
    weights: &DeviceMatrix,
    slices: GemmSlices,
    workspace: &mut Workspace,
) -> Result<(), CudaError> {
    let operands = slices.checked(weights.rows(), weights.cols())?;
    let stream = stream.as_inner().cast();
    let partials = workspace.partials.as_device_ptr().as_raw();
    guard::same_device(
        gpu,
        stream,
        &[
            ("the weights", weights.dense.as_device_ptr().as_raw()),
            ("the activations", operands.x),
            ("the output", operands.y),
            ("the bias", operands.bias.unwrap_or(0)),
            ("the workspace", partials),
        ],
    )?;
    workspace.claim(stream)?;
    // SAFETY: lengths and device are right; `y` is borrowed alone, and memory that is freed waits
    // for kernels that use it; the workspace serves this stream only; weights are written by
    // `DeviceMatrix`, which waits until they are.
    unsafe { zipgemm_raw(gpu, stream, plan, weights, &operands, workspace) }
}

/// [`zipgemm_with`] on the caller's own pointers and stream, as cudarc and candle hold them.
///
/// # Errors
/// [`CudaError::Argument`] when the plan does not fit, a stride is less than a row or its rows more
/// than 4 GiB apart, a pointer is not aligned to its type, or weights without input features are
/// to have a bias; for a batch-invariant plan also when rows of activations are not aligned to 16
/// bytes; for a decoupled plan also when the workspace's memory for dense weights is
/// missing, too small, misaligned or of another device, and when the current context is not that
/// of `gpu`; [`CudaError`] from the driver and from cuBLASLt.
///
/// # Safety
/// When the kernel runs, `x` holds its `n` rows, `y` has room for its own and `bias` holds M BF16,
/// in memory of `gpu`; `y` overlaps neither of the others; no other kernel uses `workspace` at the
/// same time; no earlier kernel of the stream that may still run writes the weights.
pub unsafe fn zipgemm_raw(
    gpu: &Gpu,
    stream: RawStream,
    plan: &Plan,
    weights: &DeviceMatrix,
    operands: &GemmOperands,
    workspace: &Workspace,
) -> Result<(), CudaError> {
    operands.check(weights.rows(), weights.cols())?;
    if weights.rows() == 0 {
        return Ok(());
    }
    if weights.cols() == 0 {
        // SAFETY: the caller's promise.
        return unsafe { write_empty_sums(stream, weights, operands) };
    }
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match &plan.kind {
            Kind::Decode(few) => zipgemm_decode_raw(
                gpu,
                stream,
                few,
                plan.dependent,
                weights,
                operands,
                workspace,
            ),
            Kind::Prefill(many) if prefill::can_read(operands.x, operands.x_stride) => {
                zipgemm_prefill_raw(
                    gpu,
                    stream,
                    many,
                    plan.dependent,
                    weights,
                    operands,
                    workspace,
                )
            }
            Kind::Invariant(groups) => zipgemm_invariant_raw(
                gpu,
                stream,
                groups,
                plan.dependent,
                weights,
                operands,
                workspace,
            ),
            Kind::Decoupled(plan) => {
                zipgemm_decoupled_raw(gpu, stream, plan, weights, operands, workspace)
            }
            Kind::Prefill(_) => {
                zipgemm_fused_raw(gpu, stream, plan.dependent, weights, operands, workspace)
            }
        }
    }
}

/// [`zipgemm_raw`] for operands that a plan's own way does not take: with the fused kernel that is
/// chosen for them.
///
/// # Errors
/// As [`zipgemm_raw`].
///
/// # Safety
/// As [`zipgemm_raw`].
pub(super) unsafe fn zipgemm_fused_raw(
    gpu: &Gpu,
    stream: RawStream,
    dependent: bool,
    weights: &DeviceMatrix,
    operands: &GemmOperands,
    workspace: &Workspace,
) -> Result<(), CudaError> {
    let &GemmOperands { x, x_stride, n, .. } = operands;
    let many = prefill::can_read(0, weights.cols()) && prefill::can_read(x, x_stride);
    let plan = choose(gpu, weights, n, many)?.with_dependent(dependent);
    // SAFETY: the caller's promise, passed on.
    unsafe { zipgemm_raw(gpu, stream, &plan, weights, operands, workspace) }
}

/// The outputs of weights without input features: zeros, or what they were.
///
/// # Safety
/// As [`zipgemm_raw`].
unsafe fn write_empty_sums(
    stream: RawStream,
    weights: &DeviceMatrix,
    operands: &GemmOperands,
) -> Result<(), CudaError> {
    if operands.bias.is_some() {
        let wrong = "weights without input features take no bias";
        return Err(CudaError::Argument(wrong.to_owned()));
    }
    if operands.accumulate {
        return Ok(());
    }
    let (y, pitch) = (operands.y, operands.y_pitch());
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
