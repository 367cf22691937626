//! ZipServ's kernels as published, on [their layout](crate): a baseline.
//!
//! They are made of what that paper describes: `cp.async` with double buffering, decode by bit
//! planes and counts straight to the registers of `mma.sync`, block tiles of 64 x 64, and thread
//! blocks that share K. They use nothing that Hopper has and Ampere lacks, and are launched
//! plainly.

mod band;
pub mod decompress;
pub mod gemm;
mod stage;
