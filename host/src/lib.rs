//! Lossless compression of BF16 LLM weights, made for fused GPU kernels.
//!
//! A matrix of weights becomes about 11.3 bits a weight and comes back bit for bit:
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
//! # Ok::<(), checkpoint::Error>(())
//! ```
//!
//! - The crate root has the codec, for matrices in memory, and [`PublishedMatrix`], the layout that
//!   it descends from, to compare with.
//! - [`checkpoint`] has `.safetensors` files and the folders that model hubs hand out.
//! - [`synthetic`] makes checkpoints for tests and measurements.
//! - `cuda` and `bench`, with the feature `cuda`, load, launch and time the GPU kernels; one call
//!   multiplies by the compressed weights, whatever the number of tokens.
//! - [`results`] has what `bench` found, also without that feature.
//!
//! Everything parallel runs on the current [rayon](https://docs.rs/rayon) pool. The feature
//! `cli`, on by default, is for the program; a library does without.

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and so must be the host");

#[cfg(feature = "cuda")]
pub mod bench;
pub mod checkpoint;
mod codec;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod results;
pub mod synthetic;

pub use codec::{
    CompressedMatrix, HEADER_BYTES, Histogram, LAYOUT_ID, Matrix, PublishedMatrix, VERSION, Window,
    decode, decode_into, encode,
};
pub use error::Error;
