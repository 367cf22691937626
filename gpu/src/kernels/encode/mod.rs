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

use crate::args::EncodeArgs;

/// One weight.
///
/// # Safety
/// There is one in this row and column.
#[inline(always)]
unsafe fn weight(args: &EncodeArgs, row: u64, col: u64) -> u16 {
    // SAFETY: the caller's promise.
    unsafe { *args.weights.add((row * args.stride + col) as usize) }
}
