//! The engine without a GPU: operators against plain arithmetic, models as a whole, and what makes text of them.

mod bytes;
mod config;
mod generate;
#[cfg(feature = "cuda")]
mod gpu;
mod memory;
mod model;
#[cfg(feature = "cuda")]
mod norms;
mod ops;
mod perplexity;
#[cfg(feature = "cuda")]
mod sample;
mod sampling;
mod support;
mod text;
mod weights;
