//! What the measuring harness, `bench`, found: rows, their means, and the file that keeps them; and
//! what the tuner found. No GPU is needed to read it.

mod report;
mod steps;
mod table;
mod tuning;

pub use report::{
    Ceilings, DecompressRow, Decoupled, Dispatch, Figure, GemmRow, Invariant, InvariantMean,
    KernelRow, LayerInfo, MEMORY_BOUND, Mean, Published, PublishedDecompress, PublishedMean,
    Report, ReportFile, means,
};
pub use steps::{Point, Step, StepRow, Steps};
pub use tuning::{
    TUNING_VERSION, TunedLaunch, TunedRow, TuningError, TuningKey, TuningMean, TuningTable,
};
