use cudarc::driver::sys::CUdeviceptr;
use zipserv_gpu::{args::DecompressArgs, launch::KERNELS, layout::tile_grid};

use super::{CudaError, DeviceMatrix, Gpu, RawStream};

/// Restores `matrix` to dense row-major BF16 at `weights`, bit for bit.
///
/// # Errors
/// [`CudaError`] from the driver.
///
/// # Safety
/// `weights` has room for `rows * cols` BF16 in memory of `gpu` when the kernel runs.
pub unsafe fn decompress(
    gpu: &Gpu,
    stream: RawStream,
    matrix: &DeviceMatrix,
    weights: CUdeviceptr,
) -> Result<(), CudaError> {
    let (tile_rows, tile_cols) = tile_grid(matrix.rows(), matrix.cols());
    let warps = KERNELS[0].threads / 32;
    let args = DecompressArgs {
        weights: weights as *mut u16,
        dense: matrix.dense.as_device_ptr().as_raw() as *const u8,
        offsets: matrix.offsets.as_device_ptr().as_raw() as *const u32,
        patches: matrix.patches.as_device_ptr().as_raw() as *const u16,
        m: matrix.rows,
        k: matrix.cols,
        base: u32::from(matrix.base),
    };
    let blocks = (tile_rows * tile_cols).div_ceil(warps) as u32;
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(KERNELS[0].name, blocks, stream, false, args) }
}
