//! The layout of compressed weights and everything that runs on the GPU.
//!
//! The crate is `no_std` and has no dependencies. [`layout`] says where each weight of a
//! matrix is stored, [`decode`] turns a lane's words back into BF16 pairs; both are pure
//! integer code, so the CPU codec in `zipserv` calls the very functions that the kernels
//! inline. [`sched`] says which thread block does what. `docs/FORMAT.md` describes the same layout in
//! prose.

#![no_std]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch, stdarch_nvptx))]
#![cfg_attr(
    all(zipserv_entries, any(zipserv_sm = "80", zipserv_sm = "90a")),
    feature(abi_ptx)
)]

pub mod args;
pub mod format;
pub mod launch;
#[cfg(not(target_arch = "nvptx64"))]
pub mod ptx;
pub mod sched;

#[cfg(target_arch = "nvptx64")]
pub mod arch;
#[cfg(target_arch = "nvptx64")]
#[macro_use]
mod backend;
// Only in PTX of this crate's own: kernels that others build on it stand alone in theirs.
#[cfg(zipserv_entries)]
pub mod entry;
#[cfg(target_arch = "nvptx64")]
pub mod kernels;

pub use format::{decode, integer, layout};
pub use launch::KERNELS;
