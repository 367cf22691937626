//! Kernels of one's own on zipserv's layout, as `docs/KERNELS.md` explains. The builder compiles
//! them to files of their own, apart from zipserv's.

#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, asm_experimental_arch, stdarch_nvptx)
)]

use zipserv_gpu::launch::Launch;

pub mod matvec;

/// Every kernel's launch.
pub const KERNELS: &[Launch] = &[matvec::LAUNCH];
