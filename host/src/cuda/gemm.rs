use cudarc::driver::sys::{self, CUdeviceptr};
use cust::{memory::DeviceSlice, stream::Stream};

use super::{
    CudaError, DeviceMatrix, Gpu, Plan, RawStream, Workspace, check,
    decode::zipgemm_decode_raw,
    guard,
    plan::{Kind, check_tokens, choose},
    prefill::{self, zipgemm_prefill_raw},
};

/// Y[N, M] = X[N, K] W[M, K]^T: tokens of BF16 activations in `x`, row after row, times the
/// transposed weights, into BF16 in `y`. Sums are FP32, in an order that depends on the plan, and
/// on whether `x` is aligned, so that the same inputs give the same bits.
///
/// The number of tokens, N, is `x.len() / K`, and at most [`MAX_TOKENS`](super::MAX_TOKENS); the
/// plan is for as many. The call returns at once; the result is there when `stream` has come so
/// far. Nothing is allocated and nothing waits, so the call can be captured into a CUDA graph. The
/// first call binds `workspace` to `stream`.
///
/// On Hopper, more than 32 tokens are fast where K is a multiple of 8 and `x` is aligned to 16
/// bytes, as allocations are. Other activations, and more than 64 tokens on other GPUs, go through
/// the kernels for few tokens in slices of up to 64, one launch after another in the stream: that
/// is right, but slow, for each slice reads all weights. The call looks at the address and falls
/// back by itself, whatever the plan.
///
/// # Errors
/// [`CudaError::Argument`] when lengths do not fit, something belongs to another device, the
/// plan is for other problems, or the workspace for another stream; [`CudaError`] from the
/// driver.
#[allow(clippy::too_many_arguments)]
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
    let stream = stream.as_inner().cast();
    let (x, y) = (x.as_device_ptr().as_raw(), y.as_device_ptr().as_raw());
    let partials = workspace.partials.as_device_ptr().as_raw();
    guard::same_device(
        gpu,
        stream,
        &[
            ("the weights", weights.dense.as_device_ptr().as_raw()),
            ("the activations", x),
            ("the output", y),
            ("the workspace", partials),
        ],
    )?;
    workspace.claim(stream)?;
    // SAFETY: lengths and device are right; `y` is borrowed alone, and memory that is freed waits
    // for kernels that use it; the workspace serves this stream only; weights are written by
    // `DeviceMatrix`, which waits until they are.
    unsafe { zipgemm_raw(gpu, stream, plan, weights, x, n, y, workspace) }
}

/// [`zipgemm`] on the caller's own pointers and stream, as cudarc and candle hold them.
///
/// # Errors
/// [`CudaError::Argument`] when the plan does not fit or a pointer is not aligned to BF16;
/// [`CudaError`] from the driver.
///
/// # Safety
/// `x` holds `n * K` BF16 and `y` has room for `n * M`, in memory of `gpu`, when the kernel
/// runs, and they do not overlap; no other kernel uses `workspace` at the same time; no earlier
/// kernel of the stream that may still run writes the weights.
#[allow(clippy::too_many_arguments)]
pub unsafe fn zipgemm_raw(
    gpu: &Gpu,
    stream: RawStream,
    plan: &Plan,
    weights: &DeviceMatrix,
    x: CUdeviceptr,
    n: usize,
    y: CUdeviceptr,
    workspace: &Workspace,
) -> Result<(), CudaError> {
    check_tokens(n)?;
    if !x.is_multiple_of(2) || !y.is_multiple_of(2) {
        let wrong = "activations and outputs must be aligned to 2 bytes";
        return Err(CudaError::Argument(wrong.to_owned()));
    }
    if weights.rows() * weights.cols() == 0 {
        // Without inputs, or without outputs, there is nothing to add up.
        // SAFETY: the caller's promise.
        return check("cuMemsetD16Async", unsafe {
            sys::cuMemsetD16Async(y, 0, n * weights.rows(), stream)
        });
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
                x,
                n,
                y,
                workspace,
            ),
            Kind::Prefill(many) if prefill::can_read(weights, x) => zipgemm_prefill_raw(
                gpu,
                stream,
                many,
                plan.dependent,
                weights,
                x,
                n,
                y,
                workspace,
            ),
            Kind::Prefill(_) => {
                let slices = choose(gpu, weights, n, false)?;
                let slices = slices.with_dependent(plan.is_dependent());
                zipgemm_raw(gpu, stream, &slices, weights, x, n, y, workspace)
            }
        }
    }
}
