//! Tensors of any dtype as byte planes: the first bytes of all elements, then the second ones, and so on, each plane
//! through an entropy coder. `docs/FORMAT.md` has the stored form.
//!
//! What shrinks in trained weights of any float type are the exponents, which splitting brings together: the idea of
//! ZipNN (Hershcovitch et al., 2024) and, before it, of Blosc's shuffle. A tensor is cut into chunks that are coded
//! each by itself, so that both ways run in parallel and in little memory.
//!
//! ```text
//! bytes --Recipe::choose, on a sample--> Recipe --encode_chunk--> Table and planes --Planes::decode_chunk--> bytes
//! ```

mod coder;
mod decode;
mod encode;
mod split;
mod table;

pub use decode::Planes;
pub(crate) use decode::Unpacker;
pub(crate) use encode::{EncodedChunk, Packer, Recipe, sample};
pub use split::Element;
pub(crate) use table::Table;
