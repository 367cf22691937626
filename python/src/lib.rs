//! zipserv for Python: the native half of the package `zipserv`.
//!
//! - `files` has the library's functions for files and folders, with progress and Ctrl-C.
//! - `matrix` has the codec, on bytes in the memory of the host.
//! - `gpu` launches kernels on addresses and streams, as PyTorch holds them.
//!
//! What the functions promise to users is said in Python; here they take what Python has checked.

mod error;
mod files;
mod gpu;
mod matrix;
mod program;
mod report;

/// The module `zipserv._native`.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::files::{compress, convert, decompress, inspect, verify};
    #[pymodule_export]
    use crate::gpu::{
        Measured, combine, device_count, gated_linear, gather, gpu_decompress, gpu_encode,
        grouped_linear, grouped_scratch, linear, measure, route, routing, scratch_bytes,
    };
    #[pymodule_export]
    use crate::matrix::{
        Encoded, capacity, copy_checked, decode, decode_rows, encode, is_planes, shape, store,
        unpack,
    };
    #[pymodule_export]
    use crate::program::run;
    #[pymodule_export]
    use crate::report::{Report, Stack, Tensor, Verdict};

    /// Tokens of one launch at most.
    #[pymodule_export]
    const MAX_TOKENS: usize = zipserv::gpu::MAX_TOKENS;
    /// Version of the package.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
