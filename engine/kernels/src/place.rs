//! Puts queries, keys and values where attention finds them: normed, where a model does so, and turned by their position
//! (RoPE, Su et al., 2021, in the order of halves that checkpoints have).
//!
//! ```text
//! q, k, v of a token, BF16 --LDG, a warp a head--> FP32 --norm--> turned --> q: where it was; k, v: the cache
//! ```
//!
//! A lane has two features of each half of a head of 128, one of each of a head of 64. Bound by the launch.

use zipserv_gpu::launch::Launch;

use crate::blocks_of_32_registers;

/// Heads of a block, a warp each.
pub const HEADS: usize = 4;

/// No shared memory; registers as [`norm`](crate::norm) has them, for the same reason.
pub const LAUNCH: Launch = Launch {
    name: "place",
    threads: 32 * HEADS,
    min_blocks: blocks_of_32_registers(32 * HEADS),
    shared_bytes: 0,
    cluster: 1,
};

/// Heads of a block that no product's block can join.
pub const WIDE_HEADS: usize = 8;

/// The same by such blocks, where [`norm_wide`](crate::norm_wide) norms.
pub const WIDE: Launch = Launch {
    name: "place_wide",
    threads: 32 * WIDE_HEADS,
    min_blocks: 4,
    shared_bytes: 0,
    cluster: 1,
};

/// The kernels' one parameter: blocks for the heads of a token, so many each, and so on for all tokens.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Rows of queries, keys and values, head after head, BF16.
    pub qkv: *mut u16,
    /// The layer's keys: for each place of a sequence and head, `context` rows of `features`.
    pub keys: *mut u16,
    /// The layer's values, likewise.
    pub values: *mut u16,
    /// Gains of queries, `features` BF16; null if they are not normed.
    pub q_gains: *const u16,
    /// Gains of keys.
    pub k_gains: *const u16,
    /// Cosine and sine for each position and each of the first half of the features, FP32.
    pub angles: *const [f32; 2],
    /// The place of each token's sequence.
    pub slots: *const u32,
    /// The position of each token in its sequence.
    pub positions: *const u32,
    /// Heads of queries.
    pub heads: u32,
    /// Heads of keys, and of values.
    pub kv_heads: u32,
    /// Features of a head: 64 or 128.
    pub features: u32,
    /// Positions that a sequence has room for.
    pub context: u32,
    /// What is added to the mean of squares.
    pub epsilon: f32,
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{grid, math, memory, mma, thread},
        unroll,
    };

    use super::{Args, HEADS, WIDE_HEADS};
    use crate::divide;

    zipserv_gpu::kernel! {
        /// Places a head of a token with each warp.
        ///
        /// # Safety
        /// `args` describe as many tokens as there are blocks for, each of another position or sequence.
        fn place(args: super::Args) {
            // SAFETY: the caller's promise.
            unsafe { place_heads::<HEADS>(&args) }
        }
    }

    zipserv_gpu::kernel! {
        /// Likewise, with more warps a block.
        ///
        /// # Safety
        /// As of the other.
        fn place_wide(args: super::Args) {
            // SAFETY: the caller's promise.
            unsafe { place_heads::<WIDE_HEADS>(&args) }
        }
    }

    #[inline(always)]
    unsafe fn place_heads<const HEADS: usize>(args: &Args) {
        grid::launch_dependents();
        // SAFETY: ranges are the caller's promise. Places are older than the product ahead, which lets none behind it
        // start before all ahead of it has ended.
        unsafe {
            let all = args.heads + 2 * args.kv_heads;
            let blocks = all.div_ceil(HEADS as u32);
            let (token, part) = divide(thread::block() as u32, blocks);
            let head = part * HEADS as u32 + thread::warp();
            if head >= all {
                return;
            }
            let (features, half) = (args.features as usize, args.features as usize / 2);
            let each = features / 64;
            let row = args.qkv.add((token * all + head) as usize * features);
            let slot = memory::observe_u32(args.slots.add(token as usize));
            let position = memory::observe_u32(args.positions.add(token as usize));
            let lane = thread::lane() as usize;
            let is_query = head < args.heads;
            let is_value = head >= args.heads + args.kv_heads;
            let mut turns = [[0f32; 2]; 2];
            unroll!(E < 2 => {
                if E < each && !is_value {
                    let at = args.angles.add(position as usize * half + each * lane + E).cast::<u32>();
                    turns[E] = [at, at.add(1)].map(|at| f32::from_bits(memory::load_global_u32(at)));
                }
            });
            grid::wait_dependencies();
            // The features of the first half, and those that they are turned with.
            let mut values = [[0f32; 2]; 2];
            unroll!(E < 2 => {
                if E < each {
                    let at = row.add(each * lane + E);
                    values[E] = [at, at.add(half)].map(|at| {
                        f32::from_bits(memory::load_written_u16::<0>(at, true) << 16)
                    });
                }
            });
            let gains = match is_query {
                true => args.q_gains,
                false => args.k_gains,
            };
            if !is_value && !gains.is_null() {
                let mut sum = 0.0;
                unroll!(E < 2 => { sum += values[E][0] * values[E][0] + values[E][1] * values[E][1]; });
                for distance in [16, 8, 4, 2, 1] {
                    let other = thread::shuffle(sum.to_bits(), thread::lane() ^ distance);
                    sum += f32::from_bits(other);
                }
                let scale = math::rsqrt(sum / args.features as f32 + args.epsilon);
                unroll!(E < 2 => {
                    if E < each {
                        let gain = |at| f32::from_bits(u32::from(memory::load_global_u16(gains.add(at))) << 16);
                        let at = each * lane + E;
                        values[E][0] *= scale * gain(at);
                        values[E][1] *= scale * gain(at + half);
                    }
                });
            }
            if !is_value {
                unroll!(E < 2 => {
                    if E < each {
                        let [cos, sin] = turns[E];
                        let [a, b] = values[E];
                        values[E] = [a * cos - b * sin, b * cos + a * sin];
                    }
                });
            }
            let to = if is_query {
                row
            } else {
                let (_, kv_head) = divide(head - args.heads, args.kv_heads);
                let rows = (slot * args.kv_heads + kv_head) as usize * args.context as usize;
                let cache = if is_value { args.values } else { args.keys };
                cache.add((rows + position as usize) * features)
            };
            unroll!(E < 2 => {
                if E < each {
                    let pair = mma::to_bf16_pair(values[E][0], values[E][1]);
                    let to = to.add(each * lane + E);
                    *to = pair as u16;
                    *to.add(half) = (pair >> 16) as u16;
                }
            });
        }
    }
}
