//! The measuring harness: kernels beside cuBLAS, in one run.
//!
//! Every figure is a median over replays of a CUDA graph whose launches rotate over copies of
//! their operands, so many that each comes from memory, as weights do when a model runs. Graphs
//! of cuBLAS and of our kernels are replayed in turn. The outputs that are checked are those of
//! the launches timed, all of them. What is found is in [`results`].
//!
//! The program of this package prints it, keeps it and shows it; `zipserv tune` takes its tuner from here.

mod check;
mod compare;
mod config;
mod cublas;
mod data;
mod driver;
mod iterations;
mod layers;
mod measure;
mod operands;
mod platform;
pub mod published;
pub mod results;
mod run;
mod stage;
mod steps;
mod timer;
mod tune;

pub use compare::{Comparison, ComparisonRow, Quartiles, compare};
pub use config::{Config, Shape, TOKENS};
pub use iterations::{Iterate, iterate_decompress, iterate_gemm};
pub use layers::{Layer, MODELS, Model, layers};
pub use platform::date;
pub use run::{Progress, run};
pub use steps::steps;
pub use timer::{Recording, Timer};
pub use tune::{TUNED_TOKENS, Tried, problems, tune};
