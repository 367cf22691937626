//! Dense BF16 to compressed weights, byte for byte what the CPU writes.
//!
//! ```text
//! dense --encode_histogram--> counts of exponents --encode_window--> base, number of patches --> the host
//! dense --encode_counts--> patches of each tile --encode_offsets--> index of each tile's first
//! dense --encode_tiles--> dense part, patches
//! all of it --encode_checksum--> CRC-32 --encode_header--> header
//! ```
//!
//! The number of patches says how much memory the result takes, so the host waits for the second kernel. All else
//! follows in the stream. No kernel lets the one behind it start early, so whatever reads the weights next, launched
//! plainly, finds all of them.
//!
//! Bytes moved: the dense weights three times, the result twice.

pub mod checksum;
pub mod histogram;
pub mod tiles;

use crate::{arch::thread, args::EncodeArgs};

/// The sum of a value over the lanes of a warp.
#[inline(always)]
fn warp_sum(mut value: u32) -> u32 {
    let lane = thread::lane();
    for distance in [16, 8, 4, 2, 1] {
        value += thread::shuffle(value, lane ^ distance);
    }
    value
}

/// The sum of a value over the lanes before this one.
#[inline(always)]
fn warp_sum_before(value: u32) -> u32 {
    let lane = thread::lane();
    let mut sum = value;
    for distance in [1, 2, 4, 8, 16] {
        let other = thread::shuffle(sum, lane.wrapping_sub(distance) % 32);
        sum += if lane >= distance { other } else { 0 };
    }
    sum - value
}

/// One weight.
///
/// # Safety
/// There is one in this row and column.
#[inline(always)]
unsafe fn weight(args: &EncodeArgs, row: u64, col: u64) -> u16 {
    // SAFETY: the caller's promise.
    unsafe { *args.weights.add((row * args.stride + col) as usize) }
}
