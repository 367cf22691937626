//! The GPU side: upload a [`CompressedMatrix`](crate::CompressedMatrix), multiply by it, restore
//! it.
//!
//! `cust` holds context, module and memory. Launches go through the driver's own call, which
//! cust does not wrap, because they may ask for programmatic dependent launch. [`zipgemm`] and
//! [`decompress`] take buffers and streams of cust and check them; [`zipgemm_raw`] and
//! [`decompress_raw`] take raw device pointers and a raw stream, for callers of cudarc or candle.
//! [`zipgemm_with`] is [`zipgemm`] with an epilogue (bias, FP32 outputs, accumulation) and with
//! strides.
//!
//! [`Plan::batch_invariant`] is for outputs whose bits do not depend on the other tokens of the call.
//!
//! One call multiplies any number of tokens up to [`MAX_TOKENS`]; [`zipgemm_plan`] chooses its
//! kernel. With memory for dense weights ([`Workspace::with_dense`]), [`zipgemm_plan_within`] also
//! weighs decompression followed by cuBLASLt, which is faster for very many tokens:
//!
//! ```no_run
//! use cust::{
//!     memory::{CopyDestination, DeviceBuffer},
//!     stream::{Stream, StreamFlags},
//! };
//! use zipserv::{
//!     Matrix,
//!     cuda::{DeviceMatrix, Gpu, Workspace, zipgemm, zipgemm_plan_within},
//!     encode,
//! };
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let one = half::bf16::ONE.to_bits();
//!     let (m, k, n) = (4096, 4096, 200);
//!     let compressed = encode(&Matrix::from_bits(m, k, &vec![one; m * k])?)?;
//!
//!     let gpu = Gpu::new(0)?;
//!     let stream = Stream::new(StreamFlags::DEFAULT, None)?;
//!     let weights = DeviceMatrix::upload(&compressed)?;
//!     // As much as the largest matrix wants; without it, products never leave the compressed form.
//!     let dense = unsafe { DeviceBuffer::uninitialized(weights.dense_workspace_bytes())? };
//!     let mut workspace = Workspace::new(&gpu)?.with_dense(dense);
//!     let x = DeviceBuffer::from_slice(&vec![one; n * k])?;
//!     let mut y = DeviceBuffer::from_slice(&vec![0u16; n * m])?;
//!
//!     let plan = zipgemm_plan_within(&gpu, &weights, n, workspace.dense_bytes())?;
//!     println!("{plan}");
//!     zipgemm(&gpu, &stream, &plan, &weights, &x, &mut y, &mut workspace)?;
//!     stream.synchronize()?;
//!
//!     let mut outputs = vec![0u16; n * m];
//!     y.copy_to(&mut outputs)?;
//!     Ok(())
//! }
//! ```
//!
//! [`zipgemm_plan_tuned`] takes launches that `zipserv tune` found on the same device, from a
//! [`Tuning`] that the caller loads.
//!
//! The [front page](crate) has a program for fused plans alone, and the repository's folder `examples`
//! those for cust, cudarc and candle.

#[cfg(feature = "bench")]
pub(crate) mod candidates;
pub(crate) mod cublaslt;
mod decode;
mod decompress;
mod decoupled;
mod dispatch;
mod driver;
mod gemm;
mod gpu;
mod guard;
mod invariant;
mod matrix;
mod operands;
mod plan;
mod prefill;
mod published;
mod read;
mod tuning;
mod workspace;

pub use decompress::{decompress, decompress_raw};
pub use driver::driver;
pub use gemm::{zipgemm, zipgemm_raw, zipgemm_with};
pub use gpu::{Family, Gpu};
pub use matrix::DeviceMatrix;
pub use operands::{GemmOperands, GemmSlices, OutputType, Outputs};
pub use plan::{MAX_TOKENS, Plan, zipgemm_plan, zipgemm_plan_within};
pub use published::{
    PUBLISHED_MAX_TOKENS, PublishedDeviceMatrix, PublishedPlan, published_decompress_raw,
    published_gemm_raw,
};
pub use read::{read_raw, read_sink_words};
pub use tuning::{Tuning, zipgemm_plan_tuned};
pub use workspace::Workspace;

use cudarc::driver::sys;

use crate::results::TuningError;

/// A stream of the CUDA driver, as cust's `Stream::as_inner` or cudarc's `cu_stream` give it.
pub type RawStream = sys::CUstream;

/// What can go wrong on the GPU side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver or the device said no.
    #[error("CUDA: {0}")]
    Cuda(#[from] cust::error::CudaError),
    /// A driver call failed.
    #[error("CUDA driver: {call} returned {status:?}")]
    Driver {
        /// The call.
        call: &'static str,
        /// Its status.
        status: sys::CUresult,
    },
    /// A call of cuBLASLt failed.
    #[error("cuBLASLt: {call} returned {status:?}")]
    CublasLt {
        /// The call.
        call: &'static str,
        /// Its status.
        status: cudarc::cublaslt::sys::cublasStatus_t,
    },
    /// No kernel for the device.
    #[error("{name} has compute capability {major}.{minor}; the kernels need 8.0 or later")]
    Unsupported {
        /// The device.
        name: String,
        /// Major compute capability.
        major: i32,
        /// Minor compute capability.
        minor: i32,
    },
    /// A table of tuned launches is refused.
    #[error(transparent)]
    Tuning(#[from] TuningError),
    /// An argument does not fit.
    #[error("{0}")]
    Argument(String),
}

pub(crate) fn check(call: &'static str, status: sys::CUresult) -> Result<(), CudaError> {
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        status => Err(CudaError::Driver { call, status }),
    }
}

/// Waits for the copies of the default stream, which need not be there when the calls that make
/// them return. Waiting for the whole device would break graphs that other threads record.
fn settle() -> Result<(), CudaError> {
    // SAFETY: the default stream of the current context.
    check("cuStreamSynchronize", unsafe {
        sys::cuStreamSynchronize(std::ptr::null_mut())
    })
}
