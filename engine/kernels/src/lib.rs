//! The kernels between a decoder's products.
//!
//! ```text
//! tokens --gather--> embeddings --norm--> x, h        h: a token's state, FP32, to which products add
//!
//! for each layer
//!   x --product--> q, k, v --place--> q; keys and values in the cache
//!   q, cache --attend--> a --product--> added to h
//!   h --norm--> x --product, gated--> g --product--> added to h
//!   or --norm--> x --product--> logits --choose_experts--> experts of each token, weights
//!                x --route, grouped products, combine--> y, which the next norm adds to h
//!
//! on several devices, where a product is to be added to h: h, all their products --norm_parts--> x, h
//!
//! h --norm--> x --product--> logits --largest; tally, settle; advance--> the next tokens
//! ```
//!
//! Products, what sorts tokens by expert and adds up, and `gather` are `zipserv`'s. All launches can be dependent ones:
//! each kernel here lets those behind it start at once, and waits for all ahead of it before it reads what any of them
//! writes. So the first weights of a product are on their way while the kernel ahead of it runs.

#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, asm_experimental_arch, stdarch_nvptx)
)]

use zipserv_gpu::launch::Launch;

pub mod attend;
pub mod choose;
pub mod experts;
pub mod norm;
pub mod norm_parts;
pub mod norm_wide;
pub mod place;
pub mod sample;
pub mod sampling;

/// The kernels as PTX, which `builder` makes of this crate.
#[cfg(not(target_arch = "nvptx64"))]
pub mod ptx {
    /// For sm_80 and later.
    pub const SM_80: &str = include_str!("../ptx/engine_sm_80.ptx");
    /// For Hopper.
    pub const SM_90A: &str = include_str!("../ptx/engine_sm_90a.ptx");
}

/// Every kernel's launch.
pub const KERNELS: &[Launch] = &[
    norm::LAUNCH,
    norm_parts::LAUNCH,
    norm_wide::LAUNCH,
    place::LAUNCH,
    place::WIDE,
    attend::DECODE_64,
    attend::DECODE_128,
    attend::PREFILL_64,
    attend::PREFILL_128,
    attend::prompt::LAUNCH_64,
    attend::prompt::LAUNCH_128,
    choose::LARGEST,
    choose::ADVANCE,
    sample::TALLY,
    sample::SETTLE,
    experts::LAUNCH,
];

/// Blocks of so many threads that an SM holds if they take no more registers than a product's block leaves to one of 128
/// threads: 32 each. Some GPUs before Hopper, where kernels only follow one another, hold fewer threads.
const fn blocks_of_32_registers(threads: usize) -> usize {
    let most = if cfg!(zipserv_sm = "80") { 1536 } else { 2048 };
    most / threads
}

/// Quotient and remainder; zero and all where there is nothing to divide by. The operators' code would have a way to panic.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
fn divide(number: u32, by: u32) -> (u32, u32) {
    let quotient = number.checked_div(by).unwrap_or(0);
    (quotient, number - quotient * by)
}

/// Tokens of one sequence that follow one another in the rows of a launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// The row of the first.
    pub row: u32,
    /// How many there are.
    pub tokens: u32,
    /// The sequence's place in the cache.
    pub slot: u32,
    /// The first one's position in the sequence.
    pub position: u32,
}
