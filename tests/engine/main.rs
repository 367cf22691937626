//! The engine without a GPU: operators against plain arithmetic, and models as a whole.

mod config;
mod memory;
mod model;
mod ops;
mod perplexity;
mod support;
mod weights;
