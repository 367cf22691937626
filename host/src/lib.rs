//! Lossless compression of BF16 LLM weights, made for fused GPU kernels.
//!
//! A matrix of weights becomes about 11.2 bits a weight and comes back bit for bit:
//!
//! ```
//! use zipserv::{CompressedMatrix, Matrix, decode, encode};
//!
//! fn main() -> Result<(), zipserv::Error> {
//!     let weights: Vec<half::bf16> = (0..4096 * 64)
//!         .map(|i| half::bf16::from_f32(0.02 * (i as f32).sin()))
//!         .collect();
//!     let compressed = encode(&Matrix::from_bf16(4096, 64, &weights)?)?;
//!     println!("{:.2} bits a weight", compressed.bits_per_weight());
//!
//!     // `as_bytes` is the stored form; reading it back checks all of it.
//!     let read = CompressedMatrix::from_bytes(compressed.as_bytes())?;
//!     assert_eq!(decode(&read), weights);
//!     Ok(())
//! }
//! ```
//!
//! So does a file or a folder of them:
//!
//! ```no_run
//! use zipserv::checkpoint::{self, Options};
//!
//! let options = Options::default();
//! checkpoint::compress("model.safetensors", "small.safetensors", &options)?;
//! checkpoint::decompress("small.safetensors", "restored.safetensors", &options)?;
//!
//! // A loader takes tensor by tensor, and each GPU its part of a matrix.
//! let small = checkpoint::open("small.safetensors")?;
//! let up = small.matrix("model.layers.0.mlp.up_proj.weight")?;
//! let part = up.slice(0..up.rows(), 0..512)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! And a GPU multiplies straight from the compressed form, with the feature `cuda`:
//!
#![cfg_attr(feature = "cuda", doc = "```no_run")]
#![cfg_attr(not(feature = "cuda"), doc = "```ignore")]
//! use half::bf16;
//! use zipserv::{
//!     Matrix, encode,
//!     gpu::{Buffer, Device, Linear, Stream, Workspace},
//! };
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (m, k, n) = (4096, 4096, 200);
//!     let compressed = encode(&Matrix::from_bf16(m, k, &vec![bf16::ONE; m * k])?)?;
//!
//!     let device = Device::new(0)?; // "no NVIDIA driver found" where there is none
//!     let stream = Stream::new(&device)?;
//!     let mut workspace = Workspace::new(&device)?;
//!     let layer = Linear::new(&device, &compressed)?;
//!     let x = Buffer::from_slice(&device, &vec![bf16::ONE; n * k])?;
//!     let mut y = Buffer::<bf16>::zeroed(&device, n * m)?;
//!     layer.forward(&stream, &x, n, &mut y, &mut workspace)?;
//!
//!     // Every output is a sum of K ones.
//!     assert_eq!(y.to_vec(&stream)?[0].to_f32(), k as f32);
//!     Ok(())
//! }
//! ```
//!
//! - The crate root has the codec, for matrices in memory.
//! - [`checkpoint`] has `.safetensors` files and the folders that model hubs hand out.
//! - `synthetic`, with the feature of that name, makes checkpoints for tests and measurements.
//! - `gpu`, with the feature `cuda`, loads and launches the GPU kernels; one call multiplies by the
//!   compressed weights, whatever the number of tokens. The driver is loaded when it is first used;
//!   nothing is linked. With the feature `cust`, `gpu::cust` lends that crate's buffers to it.
//!
//! Everything parallel runs on the current [rayon](https://docs.rs/rayon) pool. The program `zipserv`
//! is the package `zipserv-cli`; `zipserv-bench` measures the kernels beside cuBLAS.

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and so must be the host");

pub mod checkpoint;
mod codec;
mod error;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(feature = "synthetic")]
pub mod synthetic;

pub use codec::{
    CompressedMatrix, Element, ExpertStack, HEADER_BYTES, Histogram, LAYOUT_ID, Matrix,
    MatrixHeader, Planes, VERSION, Window, decode, decode_into, decode_rows, encode,
};
pub use error::Error;
