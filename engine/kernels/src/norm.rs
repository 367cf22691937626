//! x = h g / sqrt(mean(h^2) + e): RMSNorm of a token's state, to which something may be added first.
//!
//! ```text
//! gains --LDG, before the wait-+
//! h, FP32, or zero -+          |
//! addend, BF16 -----+--> h ----+--> squares --block's sum--> x, BF16 --> store; h, where something is added
//! ```
//!
//! A block has a token, a thread four features at a time. Bound by the time of one load, a sum over the block, one store.

use zipserv_gpu::launch::Launch;

/// Threads of a block.
pub const THREADS: usize = 512;
/// Features of a thread, four at a time, at most.
const FOURS: usize = 8;
/// Features, at most; a multiple of 4.
pub const MOST_FEATURES: usize = 4 * FOURS * THREADS;

/// A sum for each warp.
pub const LAUNCH: Launch = Launch {
    name: "norm",
    threads: THREADS,
    min_blocks: 1,
    shared_bytes: 4 * THREADS / 32,
    cluster: 1,
};

/// The kernel's one parameter: a block a row.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Outputs, rows of BF16, aligned to 8 bytes.
    pub x: *mut u16,
    /// States, rows of FP32, aligned to 16 bytes.
    pub h: *mut f32,
    /// What is added to states first, rows of BF16, aligned to 8 bytes; null if nothing.
    pub added: *const u16,
    /// BF16, aligned to 8 bytes.
    pub gains: *const u16,
    /// The row of states of each output's; its own if null.
    pub rows: *const u32,
    /// Whether states start, from zero; else they are there.
    pub starts: bool,
    /// Features, at most [`MOST_FEATURES`], a multiple of 4.
    pub features: u32,
    /// What is added to the mean.
    pub epsilon: f32,
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{grid, math, memory, mma, thread},
        unroll,
    };

    use super::{FOURS, THREADS};

    zipserv_gpu::kernel! {
        /// Norms the row of this block.
        ///
        /// # Safety
        /// `args` have as many rows as there are blocks, which are launched as [`super::LAUNCH`] has them.
        fn norm(args: super::Args) {
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
                let mean = sum_of_block(sum) / args.features as f32;
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

    /// The sum over the threads of the block, in the same order always.
    #[inline(always)]
    unsafe fn sum_of_block(value: f32) -> f32 {
        let shared = memory::shared();
        let mut sum = value;
        // All lanes ask for their warp: it is a shuffle.
        let (lane, warp) = (thread::lane(), thread::warp());
        let add = |sum: f32, distance: u32| {
            sum + f32::from_bits(thread::shuffle(sum.to_bits(), lane ^ distance))
        };
        for distance in [16, 8, 4, 2, 1] {
            sum = add(sum, distance);
        }
        // SAFETY: a word for each warp; all threads meet in between.
        unsafe {
            if lane == 0 {
                memory::store_f32(shared + 4 * warp, sum);
            }
            thread::sync_block();
            sum = f32::from_bits(memory::load_u32(
                shared + 4 * (lane % (THREADS as u32 / 32)),
            ));
        }
        for distance in [8, 4, 2, 1] {
            sum = add(sum, distance);
        }
        sum
    }
}
