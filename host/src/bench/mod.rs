//! The measuring harness: kernels beside cuBLAS, in one run.
//!
//! Every figure is a median over replays of a CUDA graph whose launches rotate over copies of
//! their operands, more of them than the L2 cache holds, so that weights come from memory as
//! they do when a model runs. The output that is checked is that of the launches timed.

mod cublas;
mod layers;
mod timer;

pub use cublas::{Algorithm, Cublas, CublasError, Operands, Problem};
pub use layers::{Layer, MODELS, Model, layers};
pub use timer::Timer;
