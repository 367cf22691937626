//! For authors of tuners: the launches that a kernel can have, and tables of those that were found to be
//! the fastest.
//!
//! [`Candidates`] are launches worth a try, [`Plan::tuned`](super::Plan::tuned) makes a plan of one, and
//! [`Plan::launch`](super::Plan::launch) tells that of any plan. A [`TuningTable`] keeps the fastest;
//! [`Tuning`](super::Tuning) checks one for a device, and
//! [`PlanOptions::tuning`](super::PlanOptions::tuning) takes plans from it.

pub use super::{
    plan::candidates::Candidates,
    table::{
        TUNING_VERSION, TunedLaunch, TunedRow, TuningError, TuningKey, TuningMean, TuningTable,
    },
};
