use cudarc::driver::sys::CUdeviceptr;
use cust::{memory::DeviceSlice, stream::Stream};
use zipserv_gpu::{args::DecompressArgs, layout::tile_grid};

use super::{CudaError, DeviceMatrix, Gpu, RawStream, guard};

const KERNEL: &str = "decompress";

/// Restores `matrix` to dense row-major BF16 in `weights`, bit for bit.
///
/// The call returns at once; the result is there when `stream` has come so far. It can be
/// captured into a CUDA graph.
///
/// # Errors
/// [`CudaError::Argument`] when the length does not fit or something belongs to another device;
/// [`CudaError`] from the driver.
pub fn decompress(
    gpu: &Gpu,
    stream: &Stream,
    matrix: &DeviceMatrix,
    weights: &mut DeviceSlice<u16>,
) -> Result<(), CudaError> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    if weights.len() != rows * cols {
        let len = weights.len();
        return Err(CudaError::Argument(format!(
            "a matrix of {rows} x {cols} does not fit {len} weights"
        )));
    }
    let stream = stream.as_inner().cast();
    let weights = weights.as_device_ptr().as_raw();
    let dense = matrix.dense.as_device_ptr().as_raw();
    guard::same_device(
        gpu,
        stream,
        &[("the matrix", dense), ("the output", weights)],
    )?;
    // SAFETY: length and device are right; the output is borrowed alone, and memory that is freed
    // waits for kernels that use it.
    unsafe { decompress_raw(gpu, stream, matrix, weights) }
}

/// [`decompress`] on the caller's own pointer and stream, as cudarc and candle hold them.
///
/// # Errors
/// [`CudaError`] from the driver; [`CudaError::Argument`] when `weights` is not aligned to BF16.
///
/// # Safety
/// `weights` has room for `rows * cols` BF16 in memory of `gpu` when the kernel runs.
pub unsafe fn decompress_raw(
    gpu: &Gpu,
    stream: RawStream,
    matrix: &DeviceMatrix,
    weights: CUdeviceptr,
) -> Result<(), CudaError> {
    if !weights.is_multiple_of(2) {
        return Err(CudaError::Argument(
            "weights must be aligned to 2 bytes".to_owned(),
        ));
    }
    let (tile_rows, tile_cols) = tile_grid(matrix.rows(), matrix.cols());
    let tiles = tile_rows * tile_cols;
    if tiles == 0 {
        return Ok(());
    }
    let (dense, offsets, patches) = matrix.addresses();
    let args = DecompressArgs {
        weights: weights as *mut u16,
        dense,
        offsets,
        patches,
        m: matrix.rows,
        k: matrix.cols,
        base: u32::from(matrix.base),
    };
    // One warp a tile.
    let blocks = tiles.div_ceil(gpu.threads(KERNEL)? / 32) as u32;
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(KERNEL, blocks, stream, false, args) }
}
