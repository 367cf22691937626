//! The CUDA driver, loaded when it is first used.

use std::{ffi::c_void, fs, sync::OnceLock};

use cudarc::driver::sys;

use super::error::GpuError;

/// A `CUstream` of the driver: what cudarc's `CudaStream::cu_stream` and cust's `Stream::as_inner`
/// give after a `cast`, and PyTorch's `cuda_stream` as a number.
pub type RawStream = *mut c_void;

/// Loads the driver and initializes it, once.
///
/// # Errors
/// [`GpuError::NoDriver`] where there is none; [`GpuError::NoDevice`] where it has no device;
/// [`GpuError::Driver`] when it cannot be used.
pub fn initialize() -> Result<(), GpuError> {
    static THERE: OnceLock<bool> = OnceLock::new();
    // cudarc's first call would panic. (It tells by itself only where no other crate has made it
    // link to the driver.)
    let load = || {
        // SAFETY: loading NVIDIA's library, as its first call would.
        ["libcuda.so.1", "libcuda.so", "nvcuda.dll"]
            .into_iter()
            .any(|name| unsafe { libloading::Library::new(name) }.is_ok())
    };
    if !*THERE.get_or_init(load) {
        return Err(GpuError::NoDriver);
    }
    // SAFETY: any thread may call it, any number of times.
    match unsafe { sys::cuInit(0) } {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(GpuError::NoDevice {
            ordinal: 0,
            count: 0,
        }),
        status => check("cuInit", status),
    }
}

/// An error unless a call succeeded.
pub(crate) fn check(call: &'static str, status: sys::CUresult) -> Result<(), GpuError> {
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        status => Err(GpuError::Driver {
            call,
            code: status as u32,
            name: format!("{status:?}"),
        }),
    }
}

/// The driver's version, where the system tells, and the newest CUDA version that it runs.
///
/// # Errors
/// As [`Device::new`](super::Device::new).
pub fn driver() -> Result<String, GpuError> {
    initialize()?;
    let mut version = 0;
    // SAFETY: writes an `int`.
    check("cuDriverGetVersion", unsafe {
        sys::cuDriverGetVersion(&mut version)
    })?;
    let cuda = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
    let text = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    // The first of its words that looks like one, as in `580.95.05`.
    let number =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    Ok(match text.split_whitespace().find(number) {
        Some(driver) => format!("{driver} ({cuda})"),
        None => cuda,
    })
}
