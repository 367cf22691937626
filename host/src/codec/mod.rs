//! The codec: a matrix of BF16 weights to its compressed form and back, on the CPU.
//!
//! ```text
//! Matrix --histogram--> window --encode--> CompressedMatrix --decode--> the same bytes
//! ```
//!
//! All of it runs in parallel over *strips* (rows of tiles) on the current rayon pool.

mod compressed;
mod concat;
mod decode;
mod encode;
mod experts;
mod histogram;
mod matrix;
mod memory;
mod part;
pub(crate) mod planes;
mod slice;
mod strips;

pub(crate) use compressed::combine_crcs;
pub use compressed::{CompressedMatrix, HEADER_BYTES, LAYOUT_ID, MatrixHeader, VERSION};
use concat::concat;
pub use decode::{decode, decode_into, decode_rows};
pub(crate) use decode::{decode_strip, decode_strips};
pub use encode::encode;
pub(crate) use encode::{Encoder, TileBuffer};
pub use experts::ExpertStack;
pub use histogram::{Histogram, Window};
pub use matrix::Matrix;
pub(crate) use memory::{try_zeroed, zeroed};
pub(crate) use part::{Part, PartError, Parts};
pub use planes::{Element, Planes};
pub(crate) use strips::Strips;
