use std::fs;

use cudarc::driver::sys;

use super::{CudaError, check};

/// The driver's version, where the system tells, and the newest CUDA version that it runs.
///
/// # Errors
/// [`CudaError`] from the driver.
pub fn driver() -> Result<String, CudaError> {
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
