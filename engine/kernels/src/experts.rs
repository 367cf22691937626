//! The experts of a token: the most probable by its router, and their weights.
//!
//! ```text
//! logits, FP32 --LDG--> powers of those of a lane, in shared memory --> sum over the warp
//! the largest below the last choice, of a lane, then of the warp --> the next choice: a lane keeps one --> store
//! ```
//!
//! A warp has a token: it is bound by the time of one load, and of as many maxima over the warp as experts are chosen.
//! No branch parts the lanes before the end: behind the last expert there are places that are no number, and come last.

use zipserv_gpu::{
    launch::{Launch, MAX_EXPERTS},
    layout::TILE_ROWS,
};

/// Experts that there are, at most.
pub const MOST: usize = MAX_EXPERTS;
/// Rows of a tile of weights: in a stack each expert starts with one.
pub const ROWS: usize = TILE_ROWS;
/// Experts of a token, at most: each is a lane's.
pub const MOST_PER_TOKEN: usize = 32;

/// A warp, and a word for each expert.
pub const LAUNCH: Launch = Launch {
    name: "choose_experts",
    threads: 32,
    min_blocks: 16,
    shared_bytes: 4 * MOST,
    cluster: 1,
};

/// The kernel's one parameter: a block a token.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Rows of FP32, one for each expert.
    pub logits: *const f32,
    /// Numbers of each token's experts, the most probable first; of equal ones the lowest.
    pub experts: *mut u32,
    /// The softmax of their logits over all experts.
    pub weights: *mut f32,
    /// Experts that there are, at most [`MOST`].
    pub count: u32,
    /// Experts that a token takes, at most [`MOST_PER_TOKEN`] and `count`.
    pub per_token: u32,
    /// Whether the weights of a token are divided by their sum.
    pub normalized: bool,
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{grid, math, memory, thread},
        unroll,
    };

    use super::MOST;
    use crate::choose::{key, largest_of_warp, token};

    zipserv_gpu::kernel! {
        /// Chooses the experts of this block's token.
        ///
        /// # Safety
        /// `args` have as many rows as there are blocks, which are launched as [`super::LAUNCH`] has them.
        fn choose_experts(args: super::Args) {
            const { assert!(MOST.is_multiple_of(256)) };
            grid::launch_dependents();
            grid::wait_dependencies();
            let lane = thread::lane();
            let power = |expert: u32| memory::shared() + 4 * expert;
            // SAFETY: ranges are the caller's promise; shared memory has room for the next multiple of 256 experts; all
            // lanes meet where they tell one another something.
            unsafe {
                let row = thread::block() as usize;
                let logits = args.logits.add(row * args.count as usize).cast::<u32>();
                let mut largest = f32::NEG_INFINITY;
                let mut first = 0;
                while first < args.count {
                    let own = first + lane;
                    let from = logits.add(own as usize);
                    let mut values = [0; 8];
                    unroll!(I < 8 => {
                        const AT: usize = 32 * I;
                        let is_there = own + (AT as u32) < args.count;
                        let value = memory::load_written_u32::<AT>(from, is_there);
                        values[I] = if is_there { value } else { f32::NAN.to_bits() };
                    });
                    unroll!(I < 8 => {
                        memory::store_u32(power(own + 32 * I as u32), values[I]);
                        largest = math::max(largest, f32::from_bits(values[I]));
                    });
                    first += 256;
                }
                largest = over_warp(largest, math::max);

                let mut sum = 0.0;
                first = 0;
                while first < args.count {
                    unroll!(I < 4 => {
                        let own = first + lane + 32 * I as u32;
                        let logit = f32::from_bits(memory::load_u32(power(own)));
                        let value = math::exp2((logit - largest) * core::f32::consts::LOG2_E);
                        memory::store_f32(power(own), value);
                        sum += if own < args.count { value } else { 0.0 };
                    });
                    first += 128;
                }
                sum = over_warp(sum, |a, b| a + b);
                thread::sync_warp();

                // A lane keeps the choice of its rank.
                let (mut chosen, mut value, mut all) = (0, 0.0, 0.0);
                let (mut last, mut rank) = (u64::MAX, 0);
                while rank < args.per_token {
                    let mut next = 0;
                    first = 0;
                    while first < args.count {
                        unroll!(I < 4 => {
                            let own = first + lane + 32 * I as u32;
                            let key = key(f32::from_bits(memory::load_u32(power(own))), own);
                            next = if key < last { next.max(key) } else { next };
                        });
                        first += 128;
                    }
                    last = largest_of_warp(next);
                    let expert = token(last);
                    let found = f32::from_bits(memory::load_u32(power(expert)));
                    all += found;
                    chosen = if rank == lane { expert } else { chosen };
                    value = if rank == lane { found } else { value };
                    rank += 1;
                }

                if lane < args.per_token {
                    let to = row * args.per_token as usize + lane as usize;
                    let weight = value / sum;
                    *args.experts.add(to) = chosen;
                    *args.weights.add(to) = match args.normalized {
                        true => weight / (all / sum),
                        false => weight,
                    };
                }
            }
        }
    }

    /// What becomes of the values of all lanes, the same in each of them.
    #[inline(always)]
    fn over_warp(value: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut value = value;
        for distance in [16, 8, 4, 2, 1] {
            let other = thread::shuffle(value.to_bits(), thread::lane() ^ distance);
            value = join(value, f32::from_bits(other));
        }
        value
    }
}
