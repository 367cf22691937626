//! ZipServ's layout and kernels as published, the baseline: the host's part of `published-kernels`.

mod kernels;
mod matrix;

pub use kernels::{PUBLISHED_MAX_TOKENS, PublishedDeviceMatrix, PublishedKernels, PublishedPlan};
pub use matrix::PublishedMatrix;
