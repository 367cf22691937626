//! The largest of a sequence's logits, the first of those that are equal, and the step to the next token.
//!
//! ```text
//! logits, FP32 --LDG--> a key each: the value in order, then the token --> largest of threads, warps, blocks
//! the largest key of a sequence --advance--> its next token, position and output
//! ```

use zipserv_gpu::launch::Launch;

/// Threads of a block of `largest`.
pub const THREADS: usize = 256;
/// Blocks of a sequence.
pub const BLOCKS: usize = 32;

/// No shared memory.
pub const LARGEST: Launch = Launch {
    name: "largest",
    threads: THREADS,
    min_blocks: 4,
    shared_bytes: 0,
    cluster: 1,
};

/// A thread for each sequence.
pub const ADVANCE: Launch = Launch {
    name: "advance",
    threads: 128,
    min_blocks: 1,
    shared_bytes: 0,
    cluster: 1,
};

/// The parameter of `largest`: [`BLOCKS`] blocks a sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LargestArgs {
    /// Rows of FP32.
    pub logits: *const f32,
    /// The largest key of each sequence; starts as zero.
    pub keys: *mut u64,
    /// Logits of a row.
    pub vocabulary: u32,
}

/// The parameter of `advance`: one block.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdvanceArgs {
    /// The largest key of each sequence, which becomes zero again.
    pub keys: *mut u64,
    /// The token of each sequence.
    pub tokens: *mut u32,
    /// Its position.
    pub positions: *mut u32,
    /// All tokens: a row for each step, of `sequences`.
    pub output: *mut u32,
    /// The step, which is counted up.
    pub step: *mut u32,
    /// Sequences, at most a thread for each.
    pub sequences: u32,
    /// Rows of output; what is chosen after them is written nowhere.
    pub steps: u32,
}

/// Where a logit is in the order of all: the larger, the larger. NaN is 0, which no number is.
pub const fn order(logit: f32) -> u32 {
    // Both zeros are the same.
    let bits = (logit + 0.0).to_bits();
    // Without their sign, negative numbers are in the reverse order.
    let flipped = (bits.cast_signed() >> 31).cast_unsigned() | 0x8000_0000;
    if logit.is_nan() { 0 } else { bits ^ flipped }
}

/// The logit of an order.
pub const fn logit(order: u32) -> f32 {
    let is_negative = order & 0x8000_0000 == 0;
    f32::from_bits(if is_negative {
        !order
    } else {
        order ^ 0x8000_0000
    })
}

/// The key of a logit: the larger, the larger is the logit, or of equal ones the earlier. NaN comes after all numbers.
pub const fn key(logit: f32, token: u32) -> u64 {
    (order(logit) as u64) << 32 | (u32::MAX - token) as u64
}

/// The token of a key.
pub const fn token(key: u64) -> u32 {
    u32::MAX - key as u32
}

/// The largest key of the lanes of a warp, which all run this.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
pub fn largest_of_warp(key: u64) -> u64 {
    use zipserv_gpu::arch::thread;

    let mut largest = key;
    for distance in [16, 8, 4, 2, 1] {
        let other = thread::lane() ^ distance;
        let low = thread::shuffle(largest as u32, other);
        let high = thread::shuffle((largest >> 32) as u32, other);
        largest = largest.max(u64::from(high) << 32 | u64::from(low));
    }
    largest
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{grid, memory, thread},
        unroll,
    };

    use super::{BLOCKS, THREADS, key, largest_of_warp, token};

    zipserv_gpu::kernel! {
        /// Finds the largest of a part of a sequence's logits.
        ///
        /// # Safety
        /// `args` have as many rows as there are blocks for.
        fn largest(args: super::LargestArgs) {
            grid::launch_dependents();
            grid::wait_dependencies();
            // SAFETY: ranges are the caller's promise; all threads meet at the block's barrier.
            unsafe {
                let sequence = thread::block() as usize / BLOCKS;
                let part = thread::block() as usize % BLOCKS;
                let row = args.logits.add(sequence * args.vocabulary as usize);
                const STRIDE: u32 = (BLOCKS * THREADS) as u32;
                let mut largest = 0;
                let mut at = (part * THREADS) as u32 + thread::thread() as u32;
                while at < args.vocabulary {
                    let mut logits = [0; 8];
                    unroll!(I < 8 => {
                        let at = at + I as u32 * STRIDE;
                        if at < args.vocabulary {
                            logits[I] = memory::observe_u32(row.add(at as usize).cast());
                        }
                    });
                    unroll!(I < 8 => {
                        let at = at + I as u32 * STRIDE;
                        let logit = f32::from_bits(logits[I]);
                        // So that of no number at all comes no token.
                        if at < args.vocabulary && !logit.is_nan() {
                            largest = largest.max(key(logit, at));
                        }
                    });
                    at += 8 * STRIDE;
                }
                largest = largest_of_warp(largest);
                if thread::lane() == 0 {
                    memory::max_global_u64(args.keys.add(sequence), largest);
                }
            }
        }
    }

    zipserv_gpu::kernel! {
        /// Goes on to the next token of each sequence.
        ///
        /// # Safety
        /// `args` have as many sequences as they say, at most as there are threads in the one block.
        fn advance(args: super::AdvanceArgs) {
            grid::launch_dependents();
            grid::wait_dependencies();
            // SAFETY: ranges are the caller's promise; all threads meet at the barrier.
            unsafe {
                let step = memory::observe_u32(args.step);
                thread::sync_block();
                let own = thread::thread() as u32;
                if own == 0 {
                    *args.step = step + 1;
                }
                if own < args.sequences {
                    let own = own as usize;
                    let key = args.keys.add(own);
                    let next = token(u64::from(memory::observe_u32(key.cast())));
                    *key = 0;
                    *args.tokens.add(own) = next;
                    *args.positions.add(own) = memory::observe_u32(args.positions.add(own)) + 1;
                    if step < args.steps {
                        *args.output.add(step as usize * args.sequences as usize + own) = next;
                    }
                }
            }
        }
    }
}
