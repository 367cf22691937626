//! The GPU side: upload a [`CompressedMatrix`](crate::CompressedMatrix), multiply by it, restore it.
//!
//! The driver is loaded when it is first used, so programs start where there is none, and
//! [`Device::new`] says so. A [`Device`] is a value that everything on it keeps alive; [`Stream`],
//! [`Buffer`], [`DeviceMatrix`] and [`Workspace`] are this crate's own, or borrowed from cudarc,
//! candle, cust or PyTorch by their `unsafe` constructors.
//!
//! [`Linear`] is a layer: one call multiplies any number of tokens up to [`MAX_TOKENS`]. Under it are
//! [`Plan`], which chooses a kernel once for a shape and a number of tokens, by [`PlanOptions`], and
//! [`Plan::run`], which multiplies, with an epilogue and strides if [`Operands`] ask for them.
//! [`Plan::run_raw`] and [`Linear::forward_raw`] take raw device pointers and a raw stream.
//! [`CustomKernels`] launches kernels of one's own on compressed weights. [`tuning`] and [`cublaslt`]
//! are for those who look for faster launches, and measure them beside dense products.
//!
//! ```no_run
//! use half::bf16;
//! use zipserv::{
//!     Matrix, encode,
//!     gpu::{Buffer, Device, DeviceMatrix, Operands, Plan, PlanOptions, Stream, Workspace},
//! };
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (m, k, n) = (4096, 4096, 200);
//!     let compressed = encode(&Matrix::from_bf16(m, k, &vec![bf16::ONE; m * k])?)?;
//!
//!     let device = Device::new(0)?;
//!     let stream = Stream::new(&device)?;
//!     let weights = DeviceMatrix::upload(&device, &compressed)?;
//!     // As much as the largest matrix wants; without it, products never leave the compressed form.
//!     let dense = Buffer::uninitialized(&device, weights.dense_workspace_bytes())?;
//!     let mut workspace = Workspace::new(&device)?.with_dense(dense);
//!     let x = Buffer::from_slice(&device, &vec![bf16::ONE; n * k])?;
//!     let bias = Buffer::from_slice(&device, &vec![bf16::ONE; m])?;
//!     let mut y = Buffer::<f32>::zeroed(&device, n * m)?;
//!
//!     let options = PlanOptions::default().dense_workspace(workspace.dense_bytes());
//!     let plan = Plan::new(&weights, n, &options)?;
//!     println!("{plan}");
//!     let operands = Operands::new(&x, &mut y).bias(&bias);
//!     plan.run(&stream, &weights, operands, &mut workspace)?;
//!     assert_eq!(y.to_vec(&stream)?[0], (k + 1) as f32);
//!     Ok(())
//! }
//! ```
//!
//! With the feature `cust`, the module `cust` lends that crate's buffers and streams to all of this.
//! The repository's folder `examples` has programs for this crate's own buffers, cust, cudarc and
//! candle.

mod buffer;
pub mod cublaslt;
#[cfg(feature = "cust")]
pub mod cust;
mod custom;
mod decompress;
mod device;
mod driver;
mod encode;
mod error;
mod experts;
mod family;
mod gated;
mod gather;
mod gemm;
mod graph;
mod kernels;
mod linear;
mod matrix;
mod operands;
mod plan;
mod read;
mod stream;
mod table;
mod tensor_map;
pub mod tuning;
mod workspace;

pub use buffer::{Buffer, View, ViewMut};
pub use custom::CustomKernels;
pub use device::{Device, Entered};
pub use driver::{RawStream, driver};
pub use encode::{ENCODE_SCRATCH_BYTES, Measured, RawDense};
pub use error::{GpuError, Need, Operand};
pub use experts::{
    ExpertInputs, GroupedLinear, GroupedPlan, RawExperts, RawGrouped, RawRouting, Routing,
};
pub use family::Family;
pub use gated::{GatedPlan, RawGated};
pub use graph::Graph;
pub use linear::Linear;
pub use matrix::DeviceMatrix;
pub use operands::{MAX_TOKENS, Operands, OutputType, Outputs, RawOperands};
pub use plan::{Plan, PlanOptions, Tuning};
pub use read::Reader;
pub use stream::Stream;
pub use workspace::Workspace;
