use cudarc::driver::sys::CUdeviceptr;
use zipserv_gpu::args::ReadArgs;

use super::{CudaError, Gpu, RawStream};

const KERNEL: &str = "read";

/// Blocks of `read` for each multiprocessor.
const BLOCKS: u32 = 2;

/// Words that [`read_raw`] leaves: one for each of its threads.
///
/// # Errors
/// [`CudaError::Argument`] when the device's module lacks the kernel.
pub fn read_sink_words(gpu: &Gpu) -> Result<usize, CudaError> {
    Ok((BLOCKS * gpu.multiprocessors()) as usize * gpu.threads(KERNEL)?)
}

/// Reads `bytes` at `data` and keeps nothing but, in [`read_sink_words`] words at `sink`, the
/// exclusive or of what each thread has read. It measures what reading costs at least.
///
/// # Errors
/// [`CudaError::Argument`] when `data` or `bytes` is not a multiple of 16; [`CudaError`] from
/// the driver.
///
/// # Safety
/// The memory is that of `gpu`, readable and writable as said, when the kernel runs.
pub unsafe fn read_raw(
    gpu: &Gpu,
    stream: RawStream,
    data: CUdeviceptr,
    bytes: usize,
    sink: CUdeviceptr,
) -> Result<(), CudaError> {
    if !data.is_multiple_of(16) || !bytes.is_multiple_of(16) {
        return Err(CudaError::Argument(
            "only whole groups of 16 bytes can be read".to_owned(),
        ));
    }
    let args = ReadArgs {
        data: data as *const u8,
        bytes: bytes as u64,
        sink: sink as *mut u32,
    };
    let blocks = BLOCKS * gpu.multiprocessors();
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(KERNEL, blocks, stream, false, args) }
}
