use cudarc::driver::sys::{self, CUdeviceptr};
use cust::{memory::DeviceSlice, stream::Stream};
use zipserv_gpu::args::GemmArgs;

use super::{
    CudaError, DeviceMatrix, Family, Gpu, Plan, RawStream, Workspace, check, guard, plan::columns,
};

/// Y[N, M] = X[N, K] W[M, K]^T: tokens of BF16 activations in `x`, row after row, times the
/// transposed weights, into BF16 in `y`. Sums are FP32, in an order that depends on the plan
/// alone, so that the same inputs give the same bits.
///
/// The number of tokens is `x.len() / K`. The call returns at once; the result is there when
/// `stream` has come so far. Nothing is allocated and nothing waits, so the call can be captured
/// into a CUDA graph. The first call binds `workspace` to `stream`.
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
    let shape = plan.shape();
    let columns = columns(&shape, weights);
    let wrong = if n == 0 || n > plan.tokens() {
        Some(format!(
            "{} takes 1 to {} tokens, not {n}",
            plan.kernel(),
            plan.tokens()
        ))
    } else if plan.blocks() as usize > columns.max(1) {
        Some(format!(
            "the plan is for a larger matrix: {columns} tile columns here"
        ))
    } else if plan.blocks() as usize * shape.partial_bytes() > workspace.bytes() {
        Some(format!("{} blocks do not fit the workspace", plan.blocks()))
    } else if plan.is_dependent() && gpu.family() != Family::Hopper {
        Some("the portable kernels cannot be launched dependently".to_owned())
    } else if !x.is_multiple_of(2) || !y.is_multiple_of(2) {
        Some("activations and outputs must be aligned to 2 bytes".to_owned())
    } else {
        None
    };
    if let Some(wrong) = wrong {
        return Err(CudaError::Argument(wrong));
    }
    if columns == 0 {
        // Without inputs, or without outputs, there is nothing to add up.
        let values = n * weights.rows();
        // SAFETY: the caller's promise.
        return check("cuMemsetD16Async", unsafe {
            sys::cuMemsetD16Async(y, 0, values, stream)
        });
    }
    let args = GemmArgs {
        y: y as *mut u16,
        x: x as *const u16,
        dense: weights.dense.as_device_ptr().as_raw() as *const u8,
        offsets: weights.offsets.as_device_ptr().as_raw() as *const u32,
        patches: weights.patches.as_device_ptr().as_raw() as *const u16,
        partials: workspace.partials.as_device_ptr().as_raw() as *mut f32,
        m: weights.rows,
        n: n as u32,
        k: weights.cols,
        base: u32::from(weights.base),
    };
    // SAFETY: the caller's promise; a plan names a kernel that takes these arguments.
    unsafe {
        gpu.launch(
            plan.kernel(),
            plan.blocks(),
            stream,
            plan.is_dependent(),
            args,
        )
    }
}
