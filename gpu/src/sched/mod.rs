//! Who does what, and when: pure integer code, the same on the GPU and the host, which tests it.
//!
//! [`work`] deals the k-tiles of all output tiles out to thread blocks, [`schedule`] output tiles to
//! clusters; both give [work tiles](work::WorkTile). [`pipeline`] is where a warp is in a ring of stages.

pub mod pipeline;
pub mod schedule;
pub mod work;
