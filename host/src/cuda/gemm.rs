use cudarc::driver::sys::CUdeviceptr;
use cust::memory::DeviceBuffer;
use zipserv_gpu::{
    args::GemmArgs,
    launch::{GEMMS, Gemm},
    layout::{TILE_COLS, TILE_ROWS},
};

use super::{CudaError, DeviceMatrix, Gpu, RawStream};

/// What a call of [`zipgemm`] launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The kernel.
    pub kernel: &'static str,
    /// Its shape.
    pub shape: Gemm,
    /// Thread blocks.
    pub blocks: u32,
    /// Whether it overlaps the end of the kernel before it (programmatic dependent launch).
    pub dependent: bool,
}

/// Memory through which [`zipgemm`]'s thread blocks hand over partial sums. One serves any
/// number of calls that follow one another in a stream.
pub struct Workspace {
    partials: DeviceBuffer<u32>,
}

impl Workspace {
    /// Room for every kernel and as many thread blocks as fit on `gpu`.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let blocks = BLOCKS_PER_MULTIPROCESSOR * gpu.multiprocessors() as usize;
        let partials = GEMMS.iter().map(|(_, shape)| shape.partial_bytes());
        let words = blocks * partials.max().unwrap_or(0) / 4;
        Ok(Self {
            partials: DeviceBuffer::from_slice(&vec![Gemm::EMPTY; words])?,
        })
    }
}

/// The most blocks that a multiprocessor is given.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

/// The kernel and launch that [`zipgemm`] would choose for `n` tokens.
pub fn zipgemm_plan(gpu: &Gpu, weights: &DeviceMatrix, n: usize) -> Option<Plan> {
    let (kernel, shape) = GEMMS
        .iter()
        .filter(|(name, shape)| gpu.has(name) && n <= 8 * shape.n_tiles)
        .min_by_key(|(_, shape)| shape.n_tiles)?;
    let row_blocks = weights.rows().div_ceil(TILE_ROWS * shape.strips);
    let units = row_blocks * weights.cols().div_ceil(TILE_COLS);
    Some(Plan {
        kernel,
        shape: *shape,
        blocks: (gpu.multiprocessors() as usize).min(units) as u32,
        dependent: true,
    })
}

/// Y[N, M] = X[N, K] W[M, K]^T: `n` tokens of BF16 activations at `x`, row after row, times the
/// transposed weights, into BF16 at `y`. Sums are FP32, in an order that depends on the plan
/// alone.
///
/// Nothing is allocated and nothing waits, so the call can be captured into a CUDA graph.
///
/// # Errors
/// [`CudaError::Argument`] when the plan does not fit; [`CudaError`] from the driver.
///
/// # Safety
/// `x` holds `n * K` BF16 and `y` has room for `n * M`, in memory of `gpu`, when the kernel
/// runs; no other kernel uses `workspace` at the same time; no earlier kernel of the stream
/// that may still run writes the weights.
#[allow(clippy::too_many_arguments)]
pub unsafe fn zipgemm(
    gpu: &Gpu,
    stream: RawStream,
    plan: &Plan,
    weights: &DeviceMatrix,
    x: CUdeviceptr,
    n: usize,
    y: CUdeviceptr,
    workspace: &Workspace,
) -> Result<(), CudaError> {
    if n > 8 * plan.shape.n_tiles {
        return Err(CudaError::Argument(format!(
            "{n} tokens are too many for {}",
            plan.kernel
        )));
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
    // SAFETY: the caller's promise; the plan names a kernel that takes these arguments.
    unsafe { gpu.launch(plan.kernel, plan.blocks, stream, plan.dependent, args) }
}
