//! Attention of queries to a sequence's keys and values, for the heads that share them (GQA) at once.
//!
//! ```text
//!  16 rows of queries, a row a token and head --LDG--> A fragments, kept
//!  16 keys --LDG--> B fragments --mma--> scores --mask, running maximum, exp2--> A fragments --+
//!  16 values --LDG--> pairs of rows joined --> B fragments --------------------------mma------> sums, scaled as the
//!                                                                                               maximum rises
//! ```
//!
//! Softmax without a matrix of scores is that of FlashAttention (Dao et al., 2022), and the split of keys that of
//! Flash-Decoding. No shared memory stands between memory and tensor cores: the order of features in a sum does not
//! matter, so a lane takes 16 bytes of a key where `mma` would have pieces of 4, for queries likewise; and that of outputs
//! is free, so a lane takes eight neighbouring features of values.
//!
//! For decoding, the warps of a block have different keys, as blocks have; all are merged in a fixed order. For prompts,
//! each warp has 16 rows of its own and all keys before them. What a sequence gets does not depend on others, but for
//! decoding on the number of splits.
//!
//! Hopper has kernels of its own for prompts, [`prompt`].
//!
//! Budget: some 130 instructions a warp for 16 keys of 128 features, 8 KB, where 132 SMs at 4.6 TB/s leave 1,800 issue slots.

use zipserv_gpu::launch::Launch;

use crate::Chunk;

pub mod prompt;

/// Warps of a block.
pub const WARPS: usize = 4;
/// Rows of queries that a warp multiplies at once: of a token that decodes, the heads that share keys.
pub const ROWS: usize = 16;

/// Splits of keys, at most: their maxima and weights fit in what a block has for its warps.
pub const MOST_SPLITS: u32 = 128;

/// FP32 words of what rows of a split come to: sums, then maxima, then weights.
pub const fn partial_words(features: usize) -> usize {
    ROWS * features + 2 * ROWS
}

const fn launch(name: &'static str, shared_bytes: usize) -> Launch {
    Launch {
        name,
        threads: 32 * WARPS,
        min_blocks: 2,
        shared_bytes,
        cluster: 1,
    }
}

const fn decode(name: &'static str, features: usize) -> Launch {
    launch(name, 4 * WARPS * partial_words(features))
}

/// For tokens that decode, with heads of 64 features: what warps come to.
pub const DECODE_64: Launch = decode("attend_decode_64", 64);
/// With heads of 128.
pub const DECODE_128: Launch = decode("attend_decode_128", 128);
/// For prompts, but on Hopper, with heads of 64 features.
pub const PREFILL_64: Launch = launch("attend_prefill_64", 0);
/// With heads of 128.
pub const PREFILL_128: Launch = launch("attend_prefill_128", 0);

/// The kernels' one parameter.
///
/// For decoding, there is a block for each split, of each head of keys, of each token. For prompts, for each so many rows of
/// queries, of each head of keys, of each chunk: [`ROWS`] times [`WARPS`], or [`prompt::ROWS`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Rows of queries, BF16, aligned to 16 bytes.
    pub q: *const u16,
    /// Outputs, rows of all heads, BF16, aligned to 16 bytes.
    pub y: *mut u16,
    /// The layer's keys, as `place` leaves them.
    pub keys: *const u16,
    /// The layer's values.
    pub values: *const u16,
    /// The place of each token's sequence, for decoding.
    pub slots: *const u32,
    /// The position of each token, for decoding.
    pub positions: *const u32,
    /// Tokens of a prompt.
    pub chunks: *const Chunk,
    /// [`partial_words`] for each block, for decoding.
    pub partials: *mut f32,
    /// For each head of keys of each token; 0, also when the kernel ends.
    pub counters: *mut u32,
    /// BF16 from the start of a row of queries to that of the next.
    pub q_stride: u32,
    /// Heads of queries.
    pub heads: u32,
    /// Heads of keys, each for at most [`ROWS`] of queries.
    pub kv_heads: u32,
    /// Positions that a sequence has room for.
    pub context: u32,
    /// Positions that a token looks back at, its own among them; all if 0.
    pub window: u32,
    /// Splits of the keys, at most, for decoding, no more than [`MOST_SPLITS`]; blocks of rows of a chunk, for prompts.
    pub splits: u32,
    /// What scores are multiplied by, times log2(e).
    pub scale: f32,
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{grid, math, memory, mma, thread},
        unroll,
    };

    use super::{Args, ROWS, WARPS, partial_words};
    use crate::{Chunk, divide};

    /// Keys of a step.
    const KEYS: u32 = 16;

    macro_rules! entries {
        ($($decode:ident $prefill:ident $features:literal)*) => {$(
            zipserv_gpu::kernel! {
                /// Attention of tokens that decode.
                ///
                /// # Safety
                /// `args` describe queries and a cache that has all keys up to each token's own; blocks are launched as
                /// they say.
                fn $decode(args: super::Args) {
                    // SAFETY: the caller's promise.
                    unsafe { decode::<$features>(&args) }
                }
            }

            zipserv_gpu::kernel! {
                /// Attention of prompts.
                ///
                /// # Safety
                /// As for those that decode.
                #[cfg(zipserv_sm = "80")]
                fn $prefill(args: super::Args) {
                    // SAFETY: the caller's promise.
                    unsafe { prefill::<$features>(&args) }
                }
            }
        )*};
    }

    entries! {
        attend_decode_64 attend_prefill_64 64
        attend_decode_128 attend_prefill_128 128
    }

    /// A warp's rows, and what they come to. Arrays have room for 128 features.
    struct Rows<'a, const D: usize> {
        args: &'a Args,
        keys: *const u16,
        values: *const u16,
        /// A fragments of queries.
        q: [[u32; 4]; 8],
        /// For rows `g` and `g + 8`: the first key that they look at, and the one behind the last.
        seen: [[u32; 2]; 2],
        /// Of scores, before they are scaled.
        maxima: [f32; 2],
        /// Of this lane's keys.
        weights: [f32; 2],
        /// For each half of 64 features and each `j`, of row `g + 8i` and feature `8 (2t + c) + j`: `[2i + c]`.
        sums: [[[f32; 4]; 8]; 2],
    }

    /// The keys of a step, or the values: 16 bytes each.
    type Tile = [[[u32; 4]; 4]; 2];

    impl<'a, const D: usize> Rows<'a, D> {
        /// Rows of a chunk, for a head of keys.
        #[inline(always)]
        fn new(args: &'a Args, chunk: &Chunk, kv_head: u32) -> Self {
            let head = (chunk.slot * args.kv_heads + kv_head) as usize;
            let cache = head * args.context as usize * D;
            Self {
                args,
                keys: args.keys.wrapping_add(cache),
                values: args.values.wrapping_add(cache),
                q: [[0; 4]; 8],
                seen: [[0; 2]; 2],
                maxima: [f32::NEG_INFINITY; 2],
                weights: [0.0; 2],
                sums: [[[0.0; 4]; 8]; 2],
            }
        }

        /// Loads queries: of rows from `first` on.
        #[inline(always)]
        unsafe fn load_queries(&mut self, chunk: &Chunk, kv_head: u32, first: u32) {
            let args = self.args;
            let (g, t) = (thread::lane() / 4, thread::lane() % 4);
            let (group, _) = divide(args.heads, args.kv_heads);
            unroll!(I < 2 => {
                let row = first + g + 8 * I as u32;
                let (token, head) = divide(row, group);
                let head = kv_head * group + head;
                if token < chunk.tokens {
                    let end = chunk.position + token + 1;
                    let start = if args.window == 0 { 0 } else { end.saturating_sub(args.window) };
                    self.seen[I] = [start, end];
                    let at = (chunk.row + token) as usize * args.q_stride as usize + head as usize * D;
                    unroll!(C < 4 => {
                        if C < D / 32 {
                            let from = args.q.wrapping_add(at + 32 * C + 8 * t as usize);
                            // SAFETY: the row exists.
                            let [a, b, c, d] = unsafe { memory::load_written_u32x4(from) };
                            self.q[2 * C][I] = a;
                            self.q[2 * C][2 + I] = b;
                            self.q[2 * C + 1][I] = c;
                            self.q[2 * C + 1][2 + I] = d;
                        }
                    });
                }
            });
        }

        /// Starts to load keys from `first` on. Past `end` it is the last one again.
        #[inline(always)]
        unsafe fn load_keys(&self, first: u32, end: u32) -> Tile {
            let (g, t) = (thread::lane() / 4, thread::lane() % 4);
            let mut tile = [[[0; 4]; 4]; 2];
            unroll!(N < 2 => {
                let key = (first + 8 * N as u32 + g).min(end - 1);
                unroll!(C < 4 => {
                    if C < D / 32 {
                        let at = key as usize * D + 32 * C + 8 * t as usize;
                        // SAFETY: the key exists.
                        tile[N][C] = unsafe { memory::load_written_u32x4(self.keys.wrapping_add(at)) };
                    }
                });
            });
            tile
        }

        /// Starts to load values from `first` on, likewise.
        #[inline(always)]
        unsafe fn load_values(&self, first: u32, end: u32) -> Tile {
            let (g, t) = (thread::lane() / 4, thread::lane() % 4);
            let mut tile = [[[0; 4]; 4]; 2];
            unroll!(K < 4 => {
                let key = first + 2 * t + (K % 2 + K / 2 * 8) as u32;
                let key = key.min(end - 1);
                unroll!(H < 2 => {
                    if H < D / 64 {
                        let at = key as usize * D + 64 * H + 8 * g as usize;
                        // SAFETY: the key exists.
                        tile[H][K] = unsafe { memory::load_written_u32x4(self.values.wrapping_add(at)) };
                    }
                });
            });
            tile
        }

        /// Starts to load the first 16 keys and values from `from` to below `end`.
        #[inline(always)]
        unsafe fn load(&self, from: u32, end: u32) -> [Tile; 2] {
            // SAFETY: the keys exist.
            unsafe { [self.load_keys(from, end), self.load_values(from, end)] }
        }

        /// Adds what the keys from `from` to below `end`, at least one, have for these rows, 16 keys in every `step`. The
        /// first are there.
        #[inline(always)]
        unsafe fn attend(&mut self, from: u32, end: u32, step: u32, [keys, values]: [Tile; 2]) {
            let (mut first, mut keys, mut values) = (from, keys, values);
            // SAFETY: the keys exist.
            unsafe {
                loop {
                    let mut scores = self.scores(&keys);
                    let next = first + step;
                    if next < end {
                        keys = self.load_keys(next, end);
                    }
                    self.weigh(&mut scores, first, end);
                    self.add(&scores, &values);
                    if next >= end {
                        break;
                    }
                    first = next;
                    values = self.load_values(first, end);
                }
            }
        }

        /// Scores of 16 keys: of row `g + 8i` and key `8n + 2t + j`, `[n][2i + j]`.
        #[inline(always)]
        fn scores(&self, keys: &Tile) -> [[f32; 4]; 2] {
            let mut scores = [[0.0; 4]; 2];
            unroll!(C < 4 => {
                if C < D / 32 {
                    unroll!(N < 2 => {
                        let [a, b, c, d] = keys[N][C];
                        mma::mma_16x8x16(&mut scores[N], self.q[2 * C], [a, b]);
                        mma::mma_16x8x16(&mut scores[N], self.q[2 * C + 1], [c, d]);
                    });
                }
            });
            scores
        }

        /// Makes weights of scores, relative to the largest so far.
        #[inline(always)]
        fn weigh(&mut self, scores: &mut [[f32; 4]; 2], first: u32, end: u32) {
            let lane = thread::lane();
            unroll!(I < 2 => {
                let [start, stop] = self.seen[I];
                let mut largest = self.maxima[I];
                unroll!(N < 2 => {
                    unroll!(J < 2 => {
                        let key = first + 8 * N as u32 + 2 * (lane % 4) + J as u32;
                        if key < start || key >= stop || key >= end {
                            scores[N][2 * I + J] = f32::NEG_INFINITY;
                        }
                        largest = math::max(largest, scores[N][2 * I + J]);
                    });
                });
                for distance in [1, 2] {
                    let other = thread::shuffle(largest.to_bits(), lane ^ distance);
                    largest = math::max(largest, f32::from_bits(other));
                }
                // Where nothing is seen yet, all weights are zero whatever they are relative to.
                let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
                let scale = self.args.scale;
                let old = math::exp2((self.maxima[I] - base) * scale);
                self.maxima[I] = largest;
                self.weights[I] *= old;
                unroll!(N < 2 => {
                    unroll!(J < 2 => {
                        let weight = math::exp2((scores[N][2 * I + J] - base) * scale);
                        self.weights[I] += weight;
                        scores[N][2 * I + J] = weight;
                    });
                });
                unroll!(H < 2 => {
                    if H < D / 64 {
                        unroll!(J < 8 => {
                            self.sums[H][J][2 * I] *= old;
                            self.sums[H][J][2 * I + 1] *= old;
                        });
                    }
                });
            });
        }

        /// Adds 16 values times their weights.
        #[inline(always)]
        fn add(&mut self, weights: &[[f32; 4]; 2], values: &Tile) {
            let pair =
                |n: usize, i: usize| mma::to_bf16_pair(weights[n][2 * i], weights[n][2 * i + 1]);
            let a = [pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)];
            unroll!(H < 2 => {
                if H < D / 64 {
                    unroll!(J < 4 => {
                        let [first, second, third, fourth] = values[H];
                        let low = [
                            math::join_halves::<false>(first[J], second[J]),
                            math::join_halves::<false>(third[J], fourth[J]),
                        ];
                        let high = [
                            math::join_halves::<true>(first[J], second[J]),
                            math::join_halves::<true>(third[J], fourth[J]),
                        ];
                        mma::mma_16x8x16(&mut self.sums[H][2 * J], a, low);
                        mma::mma_16x8x16(&mut self.sums[H][2 * J + 1], a, high);
                    });
                }
            });
        }

        /// The sums of eight neighbouring features.
        #[inline(always)]
        fn eight(&self, half: usize, at: usize) -> [f32; 8] {
            let mut eight = [0.0; 8];
            unroll!(J < 8 => { eight[J] = self.sums[half][J][at]; });
            eight
        }
    }

    /// A warp a block's rows, over all keys.
    #[cfg(zipserv_sm = "80")]
    #[inline(always)]
    unsafe fn prefill<const D: usize>(args: &Args) {
        grid::launch_dependents();
        grid::wait_dependencies();
        // SAFETY: ranges are the caller's promise.
        unsafe {
            let block = thread::block() as u32;
            // The last rows see the most keys, and come first.
            let (head, part) = divide(block, args.splits);
            let part = args.splits - 1 - part;
            let (chunk, kv_head) = divide(head, args.kv_heads);
            let chunk = *args.chunks.add(chunk as usize);
            let (group, _) = divide(args.heads, args.kv_heads);
            let first = (part * WARPS as u32 + thread::warp()) * ROWS as u32;
            let all = chunk.tokens * group;
            if first >= all {
                return;
            }
            let mut rows = Rows::<D>::new(args, &chunk, kv_head);
            rows.load_queries(&chunk, kv_head, first);
            let (last, _) = divide((first + ROWS as u32 - 1).min(all - 1), group);
            let start = match args.window {
                0 => 0,
                window => (chunk.position + divide(first, group).0 + 1).saturating_sub(window),
            };
            let (from, end) = (start / KEYS * KEYS, chunk.position + last + 1);
            let loaded = rows.load(from, end);
            rows.attend(from, end, KEYS, loaded);
            let totals = all_keys(rows.weights);
            let (g, t) = (thread::lane() / 4, thread::lane() % 4);
            unroll!(I < 2 => {
                let row = first + g + 8 * I as u32;
                let (token, head) = divide(row, group);
                let head = kv_head * group + head;
                if row < all {
                    let total = totals[I];
                    let at = ((chunk.row + token) * args.heads + head) as usize * D;
                    unroll!(H < 2 => {
                        if H < D / 64 {
                            unroll!(C < 2 => {
                                let [a, b, c, d, e, f, g, h] = rows.eight(H, 2 * I + C).map(|sum| sum / total);
                                let pairs = [(a, b), (c, d), (e, f), (g, h)];
                                let pairs = pairs.map(|(first, second)| mma::to_bf16_pair(first, second));
                                let feature = 64 * H + 8 * (2 * t as usize + C);
                                memory::store_global_u32x4(args.y.add(at + feature).cast(), pairs);
                            });
                        }
                    });
                }
            });
        }
    }

    /// A warp and a block some keys, of the heads of one token.
    #[inline(always)]
    unsafe fn decode<const D: usize>(args: &Args) {
        grid::launch_dependents();
        // SAFETY: ranges are the caller's promise; all threads of a block take the same ways around its barriers. Places,
        // and keys and values of earlier positions, are older than the product two kernels ahead, which lets none behind
        // it start before all ahead of it has ended.
        unsafe {
            let block = thread::block() as u32;
            let (head, split) = divide(block, args.splits);
            let (token, kv_head) = divide(head, args.kv_heads);
            let chunk = Chunk {
                row: token,
                tokens: 1,
                slot: memory::observe_u32(args.slots.add(token as usize)),
                position: memory::observe_u32(args.positions.add(token as usize)),
            };
            let end = chunk.position + 1;
            let start = match args.window {
                0 => 0,
                window => end.saturating_sub(window) / KEYS * KEYS,
            };
            const BLOCK_KEYS: u32 = KEYS * WARPS as u32;
            // Keys of a split: whole steps of a block.
            let steps = (end - start).div_ceil(BLOCK_KEYS);
            let each = BLOCK_KEYS * divide(steps + args.splits - 1, args.splits).0.max(1);
            let (active, _) = divide(end - start + each - 1, each);
            if split >= active {
                return;
            }
            let from = start + split * each;
            let warp = thread::warp();
            let mut rows = Rows::<D>::new(args, &chunk, kv_head);
            let (first, stop) = (from + warp * KEYS, end.min(from + each));
            let is_there = first + KEYS <= chunk.position;
            let mut loaded = [[[[0; 4]; 4]; 2]; 2];
            if first < stop && is_there {
                loaded = rows.load(first, stop);
            }
            grid::wait_dependencies();
            if first < stop {
                rows.load_queries(&chunk, kv_head, 0);
                if !is_there {
                    loaded = rows.load(first, stop);
                }
                rows.attend(first, stop, BLOCK_KEYS, loaded);
            }

            let words = partial_words(D) as u32;
            let shared = memory::shared();
            let own = shared + 4 * warp * words;
            let totals = all_keys(rows.weights);
            let (g, t) = (thread::lane() / 4, thread::lane() % 4);
            unroll!(I < 2 => {
                let row = g + 8 * I as u32;
                unroll!(H < 2 => {
                    if H < D / 64 {
                        unroll!(C < 2 => {
                            let [a, b, c, d, e, f, g, h] = rows.eight(H, 2 * I + C).map(f32::to_bits);
                            let feature = (64 * H) as u32 + 8 * (2 * t + C as u32);
                            let to = own + 4 * (row * D as u32 + feature);
                            memory::store_u32x4(to, [a, b, c, d]);
                            memory::store_u32x4(to + 16, [e, f, g, h]);
                        });
                    }
                });
                if t == 0 {
                    let to = own + 4 * (ROWS * D) as u32 + 4 * row;
                    memory::store_f32(to, rows.maxima[I]);
                    memory::store_f32(to + 4 * ROWS as u32, totals[I]);
                }
            });
            thread::sync_block();

            let (group, _) = divide(args.heads, args.kv_heads);
            let partial = args.partials.wrapping_add(block as usize * words as usize);
            let y = args
                .y
                .add((token * args.heads + kv_head * group) as usize * D);
            let fours = group * (D / 4) as u32;
            let mut at = thread::thread() as u32;
            while at < fours {
                let row = at / (D / 4) as u32;
                let of_row = shared + 4 * ((ROWS * D) as u32 + row);
                let merged = merge::<WARPS>(
                    WARPS as u32,
                    args.scale,
                    |warp| load_f32(of_row + 4 * warp * words),
                    |warp| load_f32(of_row + 4 * (warp * words + ROWS as u32)),
                    |warp| memory::load_u32x4(shared + 4 * (warp * words + 4 * at)),
                );
                if active == 1 {
                    merged.store(y, at);
                } else {
                    // The block's own.
                    memory::leave_u32x4(
                        partial.wrapping_add(4 * at as usize),
                        merged.sums.map(f32::to_bits),
                    );
                    if at % (D / 4) as u32 == 0 {
                        *partial.wrapping_add(ROWS * D + row as usize) = merged.maximum;
                        *partial.wrapping_add(ROWS * D + ROWS + row as usize) = merged.weight;
                    }
                }
                at += (32 * WARPS) as u32;
            }
            if active == 1 {
                return;
            }

            // The last block of a head merges what all have.
            thread::sync_block();
            let counter = args.counters.add(head as usize);
            if thread::thread() == 0 {
                memory::store_u32(shared, memory::count_block(counter));
            }
            thread::sync_block();
            if memory::load_u32(shared) + 1 != active {
                return;
            }
            let of_head = args
                .partials
                .wrapping_add((block - split) as usize * words as usize);
            // All maxima and weights first, side by side: a loop would wait for each.
            let maxima = shared + 16;
            let weights = maxima + 4 * active * group;
            let mut at = thread::thread() as u32;
            while at < active * group {
                let (part, row) = divide(at, group);
                let of_row = of_head.wrapping_add((part * words + row) as usize + ROWS * D);
                let maximum = memory::observe_u32(of_row.cast());
                let weight = memory::observe_u32(of_row.wrapping_add(ROWS).cast());
                memory::store_u32(maxima + 4 * at, maximum);
                memory::store_u32(weights + 4 * at, weight);
                at += (32 * WARPS) as u32;
            }
            thread::sync_block();
            let mut at = thread::thread() as u32;
            while at < fours {
                let row = at / (D / 4) as u32;
                let merged = merge::<8>(
                    active,
                    args.scale,
                    |part| load_f32(maxima + 4 * (part * group + row)),
                    |part| load_f32(weights + 4 * (part * group + row)),
                    |part| {
                        memory::observe_u32x4(
                            of_head.wrapping_add((part * words + 4 * at) as usize),
                        )
                    },
                );
                merged.store(y, at);
                at += (32 * WARPS) as u32;
            }
            if thread::thread() == 0 {
                *counter = 0;
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f32(shared: u32) -> f32 {
        // SAFETY: the caller's promise.
        f32::from_bits(unsafe { memory::load_u32(shared) })
    }

    /// What parts come to together, of four neighbouring features of a row.
    struct Merged {
        sums: [f32; 4],
        maximum: f32,
        weight: f32,
    }

    impl Merged {
        /// Stores outputs: the `at`-th four of a head's rows.
        #[inline(always)]
        unsafe fn store(&self, y: *mut u16, at: u32) {
            let [a, b, c, d] = self.sums.map(|sum| sum / self.weight);
            let pairs = [mma::to_bf16_pair(a, b), mma::to_bf16_pair(c, d)];
            // SAFETY: the caller's promise.
            unsafe { memory::store_global_u32x2(y.add(4 * at as usize).cast(), pairs) };
        }
    }

    /// Merges what parts have of four features, in their order: the maximum and weight of the row, and the sums, of which
    /// `AT_ONCE`, at most 8, are loaded at a time.
    #[inline(always)]
    unsafe fn merge<const AT_ONCE: usize>(
        parts: u32,
        scale: f32,
        maximum_of: impl Fn(u32) -> f32,
        weight_of: impl Fn(u32) -> f32,
        sums_of: impl Fn(u32) -> [u32; 4],
    ) -> Merged {
        let mut merged = Merged {
            sums: [0.0; 4],
            maximum: f32::NEG_INFINITY,
            weight: 0.0,
        };
        for part in 0..parts {
            merged.maximum = math::max(merged.maximum, maximum_of(part));
        }
        let base = match merged.maximum == f32::NEG_INFINITY {
            true => 0.0,
            false => merged.maximum,
        };
        let mut first = 0;
        while first < parts {
            // Loads of several are in flight at a time.
            let mut loaded = [[0; 4]; 8];
            unroll!(I < 8 => {
                if I < AT_ONCE {
                    loaded[I] = sums_of((first + I as u32).min(parts - 1));
                }
            });
            unroll!(I < 8 => {
                let part = first + I as u32;
                if I < AT_ONCE && part < parts {
                    let factor = math::exp2((maximum_of(part) - base) * scale);
                    merged.weight += factor * weight_of(part);
                    unroll!(J < 4 => { merged.sums[J] += factor * f32::from_bits(loaded[I][J]); });
                }
            });
            first += AT_ONCE as u32;
        }
        merged
    }

    /// The weights of all keys for two rows, of which each lane has those of its keys, in all lanes of a row.
    #[inline(always)]
    pub(super) fn all_keys(mut weights: [f32; 2]) -> [f32; 2] {
        unroll!(I < 2 => {
            for distance in [1, 2] {
                let other = thread::shuffle(weights[I].to_bits(), thread::lane() ^ distance);
                weights[I] += f32::from_bits(other);
            }
        });
        weights
    }
}
