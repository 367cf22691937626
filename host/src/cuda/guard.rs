//! What the safe calls ask the driver before they launch. No question waits, and all may be
//! asked while a stream is captured.

use std::ptr;

use cudarc::driver::sys::{self, CUdeviceptr};

use super::{CudaError, Gpu, RawStream, check};

/// Whether the calling thread's context is that of `gpu`, as cuBLASLt wants it.
pub fn current_context(gpu: &Gpu) -> Result<(), CudaError> {
    let mut context = ptr::null_mut();
    // SAFETY: writes the context.
    check("cuCtxGetCurrent", unsafe {
        sys::cuCtxGetCurrent(&mut context)
    })?;
    if gpu.is_context(context) {
        return Ok(());
    }
    let wrong = "cuBLASLt wants the device's context to be the current one; see Gpu::make_current";
    Err(CudaError::Argument(wrong.to_owned()))
}

/// Whether the stream and the memory belong to `gpu`.
pub fn same_device(
    gpu: &Gpu,
    stream: RawStream,
    memory: &[(&str, CUdeviceptr)],
) -> Result<(), CudaError> {
    let other = |what: &str| CudaError::Argument(format!("{what} belongs to another device"));
    let mut context = ptr::null_mut();
    // SAFETY: a live stream; writes the context.
    check("cuStreamGetCtx", unsafe {
        sys::cuStreamGetCtx(stream, &mut context)
    })?;
    if !gpu.is_context(context) {
        return Err(other("the stream"));
    }
    for &(what, address) in memory {
        // Empty buffers have no memory.
        if address == 0 {
            continue;
        }
        let mut ordinal = -1i32;
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        // SAFETY: writes an `int`.
        check("cuPointerGetAttribute", unsafe {
            sys::cuPointerGetAttribute((&raw mut ordinal).cast(), attribute, address)
        })?;
        if u32::try_from(ordinal) != Ok(gpu.ordinal()) {
            return Err(other(what));
        }
    }
    Ok(())
}
