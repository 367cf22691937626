//! Lossless compression of BF16 LLM weights, made for fused GPU kernels.

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and so must be the host");

#[cfg(feature = "cuda")]
pub mod bench;
pub mod checkpoint;
mod codec;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod synthetic;

pub use codec::{
    CompressedMatrix, HEADER_BYTES, Histogram, LAYOUT_ID, Matrix, VERSION, Window, decode,
    decode_into, encode,
};
pub use error::Error;
