//! The same as [`norm`](crate::norm), by blocks that no product's block can join.
//!
//! ```text
//! gains --LDG, before the wait-+
//! h, FP32, or zero -+          |
//! addend, BF16 -----+--> h ----+--> squares --block's sum--> x, BF16 --> store; h, where something is added
//! ```
//!
//! For 17 to 64 rows of a step: 32 sequences took 4.51 ms a step so, and 4.60 with `norm`, which is faster for fewer rows
//! and for prompts. Squares are added in another order. A block has a token, a thread four features at a time, all of them
//! in registers. Bound by the time of one load, a sum over the block, one store.

use zipserv_gpu::launch::Launch;

pub use crate::norm::Args;

/// Threads of a block.
pub const THREADS: usize = 512;
/// A sum for each warp.
pub const LAUNCH: Launch = Launch {
    name: "norm_wide",
    threads: THREADS,
    min_blocks: 1,
    shared_bytes: 4 * THREADS / 32,
    cluster: 1,
};

/// Whether it is for so many rows.
pub const fn suits(rows: usize) -> bool {
    rows > 16 && rows <= 64
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{grid, math, memory, mma, thread},
        unroll,
    };

    use super::THREADS;
    use crate::norm::{MOST_FEATURES, device::sum_of_block};

    /// Features of a thread, four at a time, at most.
    const FOURS: usize = MOST_FEATURES / (4 * THREADS);

    const WARPS: u32 = THREADS as u32 / 32;

    zipserv_gpu::kernel! {
        /// Norms the row of this block.
        ///
        /// # Safety
        /// `args` have as many rows as there are blocks, which are launched as [`super::LAUNCH`] has them.
        fn norm_wide(args: super::Args) {
            // SAFETY: ranges are the caller's promise; all threads meet at the block's barriers.
            unsafe {
                grid::launch_dependents();
                let own = thread::thread() as usize;
                let fours = args.features as usize / 4;
                let mut gains = [[0u32; 2]; FOURS];
                unroll!(I < 8 => {
                    let at = own + I * THREADS;
                    if at < fours {
                        let from = args.gains.add(4 * at).cast::<u32>();
                        gains[I] = [memory::load_global_u32(from), memory::load_global_u32(from.add(1))];
                    }
                });
                grid::wait_dependencies();
                let row = thread::block() as usize;
                let state = match args.rows.is_null() {
                    true => row,
                    false => memory::observe_u32(args.rows.add(row)) as usize,
                };
                let h = args.h.add(state * args.features as usize);
                let mut values = [[0f32; 4]; FOURS];
                let mut sum = 0.0;
                unroll!(I < 8 => {
                    let at = own + I * THREADS;
                    if at < fours {
                        if !args.starts {
                            values[I] = memory::observe_u32x4(h.add(4 * at)).map(f32::from_bits);
                        }
                        if !args.added.is_null() {
                            let from = args.added.add(state * args.features as usize + 4 * at).cast::<u32>();
                            let [a, b] = math::from_bf16_pair(memory::observe_u32(from));
                            let [c, d] = math::from_bf16_pair(memory::observe_u32(from.add(1)));
                            let added = [a, b, c, d];
                            unroll!(E < 4 => { values[I][E] += added[E]; });
                        }
                    }
                });
                unroll!(I < 8 => {
                    unroll!(E < 4 => { sum += values[I][E] * values[I][E]; });
                });
                let mean = sum_of_block::<WARPS>(sum) / args.features as f32;
                let scale = math::rsqrt(mean + args.epsilon);
                unroll!(I < 8 => {
                    let at = own + I * THREADS;
                    if at < fours {
                        if !args.added.is_null() {
                            memory::leave_u32x4(h.add(4 * at), values[I].map(f32::to_bits));
                        }
                        let mut pairs = [0; 2];
                        unroll!(J < 2 => {
                            let gain = math::from_bf16_pair(gains[I][J]);
                            let [a, b] = [values[I][2 * J], values[I][2 * J + 1]];
                            pairs[J] = mma::to_bf16_pair(a * scale * gain[0], b * scale * gain[1]);
                        });
                        let to = args.x.add(row * args.features as usize + 4 * at);
                        memory::store_global_u32x2(to.cast(), pairs);
                    }
                });
            }
        }
    }
}
