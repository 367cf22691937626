use cudarc::driver::sys;
use zipserv::gpu::GpuError;

/// An error unless a call of the driver succeeded.
pub fn check(call: &'static str, status: sys::CUresult) -> Result<(), GpuError> {
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        status => Err(GpuError::Driver {
            call,
            code: status as u32,
            name: format!("{status:?}"),
        }),
    }
}
