//! What the harness found: rows, their means, the files that keep them, and tables of them. No GPU is
//! needed to read it.

mod benchmarks;
mod diff;
mod engine;
mod experts;
mod file;
mod inputs;
pub mod markdown;
mod measured;
mod report;
mod serving;
mod steps;
mod table;

pub use benchmarks::benchmarks;
pub use diff::diff;
pub use engine::{Engine, EngineRow, EngineStage, ExpertsShape, ModelShape};
pub use experts::{Experts, Layers};
pub use file::{ReportFile, json};
pub use inputs::{Inputs, Peer, Peers, Skipped};
pub use measured::{File, Found, Measured, is_same};
pub use report::{
    DecompressRow, Decoupled, Dispatch, GemmRow, Invariant, InvariantMean, KernelRow, LayerInfo,
    MEMORY_BOUND, Mean, Published, PublishedDecompress, PublishedMean, Report, means,
};
pub use serving::{Figures, Serving, Start};
pub use steps::{Point, Step, StepRow, Steps};
