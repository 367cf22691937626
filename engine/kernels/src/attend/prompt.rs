//! Attention of prompts on Hopper: as for other GPUs, but by `wgmma`, from shared memory.
//!
//! ```text
//!  four warps that copy             two warpgroups, 64 rows of queries each
//!
//!  128 keys, in chunks      full    queries x keys --> scores --mask, running maximum, exp2--> A fragments --+
//!  of 16 bytes             ------->                                                                           |
//!                           empty   A fragments x values --> sums, scaled as the maximum rises <--------------+
//!  128 values, likewise    <-------
//! ```
//!
//! The scheme is that of FlashAttention-3 (Shah et al., 2024): a warpgroup starts to multiply a tile's scores and the sums
//! of the tile before, and makes weights of the scores while sums are under way; its arithmetic runs beside the other's
//! products, too. Tiles lie in *panels* of 64 features, rows of 128 bytes in the 128-byte swizzle, keys and values alike:
//! for scores a panel's rows are the N of the product, for sums its K, so the tensor cores transpose values as they read
//! them.
//!
//! What lies behind the last key that a block sees becomes zeros on its way to shared memory, whatever the cache holds
//! there. Only tiles are masked that some row of a warpgroup does not see in full. Blocks with the most keys come first.
//!
//! Budget of a tile of 128 keys of 128 features, for both warpgroups: 2,048 cycles of the tensor cores; 1,056 of the units
//! for exp2; some 480 instructions a warp, of two for each scheduler; 64 KB from the L2 cache. Shared memory is read for
//! 1,280 cycles, and written for 512. Registers of a thread that multiplies: 64 of sums, 64 of scores, 32 of weights.
//! Shared memory: 32 KB of queries, where outputs pass on their way out, and two stages of 64 KB.

use zipserv_gpu::launch::Launch;

/// Rows of queries of a block.
pub const ROWS: usize = 64 * GROUPS;

/// Warpgroups that multiply.
const GROUPS: usize = 2;
/// Keys of a tile.
const KEYS: usize = 128;
/// Tiles of keys, and of values, in shared memory.
const STAGES: usize = 2;
/// Threads of a warpgroup.
const GROUP_THREADS: usize = 128;

/// Bytes of so many rows of features.
const fn bytes(rows: usize, features: usize) -> usize {
    rows * 2 * features
}

/// Where barriers are, behind queries, keys and values.
const fn barriers_at(features: usize) -> usize {
    bytes(ROWS + 2 * STAGES * KEYS, features)
}

const fn launch(name: &'static str, features: usize) -> Launch {
    Launch {
        name,
        threads: GROUP_THREADS * (GROUPS + 1),
        min_blocks: 1,
        // *Full* and *empty*, of each stage of keys and of values.
        shared_bytes: barriers_at(features) + 8 * 2 * 2 * STAGES,
        cluster: 1,
    }
}

/// With heads of 64 features.
pub const LAUNCH_64: Launch = launch("attend_prompt_64", 64);
/// With heads of 128.
pub const LAUNCH_128: Launch = launch("attend_prompt_128", 128);

#[cfg(all(target_arch = "nvptx64", zipserv_sm = "90a"))]
mod device {
    use zipserv_gpu::{
        arch::{barrier, copy, grid, math, memory, mma, thread, wgmma, wgmma::Accumulator},
        sched::pipeline::PipelineState,
        unroll,
    };

    use super::{GROUP_THREADS, GROUPS, KEYS, ROWS, STAGES, barriers_at, bytes};
    use crate::{
        Chunk,
        attend::{Args, device::all_keys},
        divide,
    };

    /// Features of a panel.
    const PANEL: usize = 64;
    /// Bytes of a panel's row.
    const LINE: usize = bytes(1, PANEL);

    /// Registers of a thread that multiplies, and of one that copies; `.maxntid` gives each 168.
    const REGISTERS: (u32, u32) = (232, 40);
    const _: () = assert!(REGISTERS.0 * GROUPS as u32 + REGISTERS.1 <= 168 * (GROUPS as u32 + 1));

    /// Warps that multiply.
    const WARPS: u32 = (GROUPS * GROUP_THREADS / 32) as u32;

    macro_rules! entries {
        ($($name:ident $features:literal)*) => {$(
            zipserv_gpu::kernel! {
                /// Attention of prompts.
                ///
                /// # Safety
                /// As for other GPUs.
                fn $name(args: crate::attend::Args) {
                    // SAFETY: the caller's promise.
                    unsafe { prompt::<$features, { $features / 2 }>(&args) }
                }
            }
        )*};
    }

    entries! {
        attend_prompt_64 64
        attend_prompt_128 128
    }

    /// This thread's part of the scores of 64 rows, see [`Accumulator`].
    type Scores = [f32; KEYS / 2];
    /// A fragments of weights, for each 16 keys.
    type Weights = [[u32; 4]; KEYS / 16];

    #[inline(always)]
    unsafe fn prompt<const D: usize, const SUMS: usize>(args: &Args)
    where
        [f32; SUMS]: Accumulator,
    {
        grid::launch_dependents();
        // SAFETY: ranges are the caller's promise; all threads of a block take the same way up to the roles.
        unsafe {
            let shared = memory::shared();
            if thread::thread() == 0 {
                unroll!(S < 2 * STAGES => {
                    let full = shared + (barriers_at(D) + 16 * S) as u32;
                    barrier::init(full, GROUP_THREADS as u32);
                    barrier::init(full + 8, WARPS);
                });
            }
            thread::sync_block();
            grid::wait_dependencies();
            let block = Block::<D>::new(args, shared);
            if block.first >= block.all {
                return;
            }
            if block.warp < WARPS {
                thread::grow_registers::<{ REGISTERS.0 }>();
                block.attend::<SUMS>();
            } else {
                thread::shrink_registers::<{ REGISTERS.1 }>();
                block.copy();
            }
        }
    }

    /// A thread's view of its block.
    struct Block<'a, const D: usize> {
        args: &'a Args,
        chunk: Chunk,
        /// The head of keys.
        head: u32,
        /// Heads of queries that it has.
        group: u32,
        /// The chunk's rows, and the block's first.
        all: u32,
        first: u32,
        /// The first key of its first tile, and the one behind its last key.
        start: u32,
        end: u32,
        shared: u32,
        warp: u32,
    }

    impl<'a, const D: usize> Block<'a, D> {
        /// Chunks of 16 bytes of a row.
        const CHUNKS: u32 = D as u32 / 8;
        /// Rows of which all threads of a warpgroup together copy the chunks: so many further on, a chunk lies in the same
        /// place of its row.
        const ROWS_AT_ONCE: usize = 8 * GROUP_THREADS / D;

        /// Rows from `first` on may not be there.
        #[inline(always)]
        unsafe fn new(args: &'a Args, shared: u32) -> Self {
            // SAFETY: the caller's promise.
            let (block, blocks) = unsafe { (thread::block() as u32, thread::blocks() as u32) };
            // The last rows of all heads see the most keys, and come first.
            let (heads, _) = divide(blocks, args.splits);
            let (part, head) = divide(block, heads);
            let part = args.splits - 1 - part;
            let (chunk, head) = divide(head, args.kv_heads);
            // SAFETY: the caller's promise.
            let chunk = unsafe { *args.chunks.add(chunk as usize) };
            let (group, _) = divide(args.heads, args.kv_heads);
            let (first, all) = (part * ROWS as u32, chunk.tokens * group);
            let mut this = Self {
                args,
                chunk,
                head,
                group,
                all,
                first,
                start: 0,
                end: 0,
                shared,
                warp: thread::warp(),
            };
            let last = (first + ROWS as u32 - 1).min(all - 1);
            this.start = this.seen(first)[0] / KEYS as u32 * KEYS as u32;
            this.end = this.seen(last)[1];
            this
        }

        /// Token of the chunk, and head of queries, of a row.
        #[inline(always)]
        fn place(&self, row: u32) -> (u32, u32) {
            let (token, head) = divide(row, self.group);
            (token, self.head * self.group + head)
        }

        /// The first key that a row sees, and the one behind the last.
        #[inline(always)]
        fn seen(&self, row: u32) -> [u32; 2] {
            let end = self.chunk.position + self.place(row).0 + 1;
            let start = match self.args.window {
                0 => 0,
                window => end.saturating_sub(window),
            };
            [start, end]
        }

        /// The queries of a warpgroup.
        #[inline(always)]
        fn queries(&self, group: u32) -> u32 {
            self.shared + group * bytes(64, D) as u32
        }

        #[inline(always)]
        fn keys(&self, stage: u32) -> u32 {
            self.shared + bytes(ROWS, D) as u32 + stage * bytes(KEYS, D) as u32
        }

        #[inline(always)]
        fn values(&self, stage: u32) -> u32 {
            self.keys(STAGES as u32 + stage)
        }

        #[inline(always)]
        fn keys_full(&self, stage: u32) -> u32 {
            self.shared + barriers_at(D) as u32 + 16 * stage
        }

        #[inline(always)]
        fn values_full(&self, stage: u32) -> u32 {
            self.keys_full(STAGES as u32 + stage)
        }

        /// Where a chunk of 16 bytes of a row lies in panels of so many rows.
        #[inline(always)]
        fn at(rows: usize, row: u32, chunk: u32) -> u32 {
            let panel = (rows * LINE) as u32 * (chunk / 8);
            panel + LINE as u32 * row + ((chunk % 8 ^ row % 8) << 4)
        }

        /// Copies all tiles that the block's rows see.
        #[inline(always)]
        unsafe fn copy(&self) {
            // SAFETY: every thread has an index.
            let thread = unsafe { thread::thread() } as u32 % GROUP_THREADS as u32;
            let (row, chunk) = (thread / Self::CHUNKS, thread % Self::CHUNKS);
            let head = (self.chunk.slot * self.args.kv_heads + self.head) as usize;
            let own = (self.start + row) as usize * D + 8 * chunk as usize;
            let mut from = head * self.args.context as usize * D + own;
            let to = Self::at(KEYS, row, chunk);
            let mut ring = PipelineState::<STAGES>::PRODUCER;
            let mut key = self.start;
            while key < self.end {
                // Of this thread's rows, those before this one are there.
                let left = self.end.saturating_sub(key + row);
                let push = |tile: u32, of: *const u16, full: u32| {
                    // SAFETY: the keys exist.
                    unsafe { Self::push(tile + to, of.wrapping_add(from), left, full, ring.parity) }
                };
                push(
                    self.keys(ring.stage),
                    self.args.keys,
                    self.keys_full(ring.stage),
                );
                push(
                    self.values(ring.stage),
                    self.args.values,
                    self.values_full(ring.stage),
                );
                ring.advance();
                from += KEYS * D;
                key += KEYS as u32;
            }
            // None is on its way when the thread ends.
            copy::commit_chunks();
            copy::wait_chunks::<0>();
        }

        /// Fills this thread's part of a stage when it is empty, of which `full` tells when it has landed.
        #[inline(always)]
        unsafe fn push(to: u32, from: *const u16, left: u32, full: u32, parity: u32) {
            // SAFETY: the caller's promise; what is not there is not read.
            unsafe {
                barrier::wait(full + 8, parity);
                unroll!(A < 2 => {
                    unroll!(B < 8 => {
                        let row = (8 * A + B) * Self::ROWS_AT_ONCE;
                        if row < KEYS {
                            let there = if (row as u32) < left { 16 } else { 0 };
                            let from = from.wrapping_add(row * D).cast();
                            copy::chunk(to + (row * LINE) as u32, from, there);
                        }
                    });
                });
                copy::arrive_after_chunks(full);
            }
        }

        /// Starts to copy a warpgroup's queries; rows that are not there become zeros.
        #[inline(always)]
        unsafe fn load_queries(&self, group: u32, first: u32) {
            // SAFETY: every thread has an index.
            let thread = unsafe { thread::thread() } as u32 % GROUP_THREADS as u32;
            let chunk = thread % Self::CHUNKS;
            unroll!(P < 8 => {
                if P < D / 16 {
                    let row = thread / Self::CHUNKS + (P * Self::ROWS_AT_ONCE) as u32;
                    let to = self.queries(group) + Self::at(64, row, chunk);
                    let (token, head) = self.place(first + row);
                    let at = (self.chunk.row + token) as usize * self.args.q_stride as usize;
                    let from = at + head as usize * D + 8 * chunk as usize;
                    let there = if first + row < self.all { 16 } else { 0 };
                    // SAFETY: what is not there is not read.
                    unsafe { copy::chunk(to, self.args.q.wrapping_add(from).cast(), there) };
                }
            });
            copy::commit_chunks();
        }

        /// Attends for the rows of a warpgroup.
        #[inline(always)]
        unsafe fn attend<const SUMS: usize>(&self)
        where
            [f32; SUMS]: Accumulator,
        {
            let group = self.warp / 4;
            let first = self.first + 64 * group;
            let lane = thread::lane();
            // SAFETY: `prompt`'s; stages are full while they are read.
            unsafe {
                self.load_queries(group, first);
                let last = (first + 63).min(self.all - 1);
                let [_, end] = self.seen(last);
                let mut rows = Rows::new(self, first);
                let mut sums = [0.0; SUMS];
                let mut ring = PipelineState::<STAGES>::CONSUMER;
                let mut key = self.start;
                copy::wait_chunks::<0>();
                copy::show_chunks();
                thread::sync_threads::<{ GROUP_THREADS as u32 }>(1 + group);

                let queries = self.queries(group);
                barrier::wait(self.keys_full(ring.stage), ring.parity);
                copy::show_chunks();
                let mut scores = Scores::undefined();
                self.start_scores(&mut scores, queries, &ring);
                scores.settle::<0>();
                self.release(self.keys_full(ring.stage), lane);
                let mut factors = rows.weigh(&mut scores, key);
                let mut weights = fragments(&scores);
                let mut before = ring;
                ring.advance();
                key += KEYS as u32;
                self.pop(&before, &ring, key < end);
                while key < end {
                    let mut scores = Scores::undefined();
                    self.start_scores(&mut scores, queries, &ring);
                    scale(&mut sums, factors);
                    self.start_sums(&mut sums, &weights, &before);
                    scores.settle::<1>();
                    self.release(self.keys_full(ring.stage), lane);
                    factors = rows.weigh(&mut scores, key);
                    scores.pin();
                    let values = self.values_full(before.stage);
                    before = ring;
                    ring.advance();
                    key += KEYS as u32;
                    // Here, for the assembler puts the wait for sums ahead of all that weighs, but not of a loop.
                    self.pop(&before, &ring, key < end);
                    sums.settle::<0>();
                    self.release(values, lane);
                    weights = fragments(&scores);
                }
                // The block's last tile may be the other warpgroup's alone: none waits for its release.
                scale(&mut sums, factors);
                self.start_sums(&mut sums, &weights, &before);
                sums.settle::<0>();
                let totals = all_keys(rows.weights);
                scale(&mut sums, totals.map(|total| 1.0 / total));
                self.store(group, first, &sums);
            }
        }

        /// Waits for the values of a tile and, if there are `more`, for the keys of the next.
        #[inline(always)]
        unsafe fn pop(
            &self,
            tile: &PipelineState<STAGES>,
            next: &PipelineState<STAGES>,
            more: bool,
        ) {
            // SAFETY: `attend`'s.
            unsafe {
                if more {
                    barrier::wait(self.keys_full(next.stage), next.parity);
                }
                barrier::wait(self.values_full(tile.stage), tile.parity);
            }
            copy::show_chunks();
        }

        /// Starts to multiply queries by a tile of keys.
        #[inline(always)]
        unsafe fn start_scores(
            &self,
            scores: &mut Scores,
            queries: u32,
            ring: &PipelineState<STAGES>,
        ) {
            // SAFETY: `attend`'s.
            unsafe {
                scores.fence();
                unroll!(P < D / PANEL => {
                    let queries = wgmma::swizzled_rows(queries + (P * 64 * LINE) as u32);
                    let keys = wgmma::swizzled_rows(self.keys(ring.stage) + (P * KEYS * LINE) as u32);
                    unroll!(K < PANEL / 16 => {
                        let (a, b) = (wgmma::kstep(queries, K as u32), wgmma::kstep(keys, K as u32));
                        scores.multiply_shared(a, b, P + K > 0);
                    });
                });
            }
            wgmma::commit();
        }

        /// Starts to add a tile of values times their weights.
        #[inline(always)]
        unsafe fn start_sums<const SUMS: usize>(
            &self,
            sums: &mut [f32; SUMS],
            weights: &Weights,
            ring: &PipelineState<STAGES>,
        ) where
            [f32; SUMS]: Accumulator,
        {
            // SAFETY: `attend`'s.
            unsafe {
                let values = wgmma::swizzled_columns(self.values(ring.stage), (KEYS * LINE) as u32);
                sums.fence();
                unroll!(K < KEYS / 16 => {
                    sums.multiply_transposed(weights[K], wgmma::row_step(values, K as u32), true);
                });
            }
            wgmma::commit();
        }

        /// Lets a stage be filled again, of which this is the *full* barrier: this warp has done with it.
        #[inline(always)]
        unsafe fn release(&self, full: u32, lane: u32) {
            // SAFETY: `attend`'s.
            unsafe { barrier::arrive_if(full + 8, lane == 0) };
        }

        /// Stores outputs, by way of where the warp's queries were.
        #[inline(always)]
        unsafe fn store<const SUMS: usize>(&self, group: u32, first: u32, sums: &[f32; SUMS]) {
            let (lane, warp) = (thread::lane(), self.warp % 4);
            let (g, t) = (lane / 4, lane % 4);
            // The others have multiplied their queries.
            thread::sync_threads::<{ GROUP_THREADS as u32 }>(1 + group);
            let lines = self.queries(group);
            unroll!(P < D / PANEL => {
                unroll!(J < 8 => {
                    let at = 32 * P + 4 * J;
                    let to = lines + Self::at(64, 16 * warp + g, (8 * P + J) as u32) + 4 * t;
                    // SAFETY: inside the queries. Eight rows further on, a chunk lies in the same place.
                    unsafe {
                        memory::store_u32(to, mma::to_bf16_pair(sums[at], sums[at + 1]));
                        let to = to + 8 * LINE as u32;
                        memory::store_u32(to, mma::to_bf16_pair(sums[at + 2], sums[at + 3]));
                    }
                });
            });
            thread::sync_warp();
            let chunk = lane % Self::CHUNKS;
            unroll!(P < 8 => {
                if P < D / 16 {
                    let row = 16 * warp + lane / Self::CHUNKS + P as u32 * (32 / Self::CHUNKS);
                    // SAFETY: inside the queries; the row exists.
                    unsafe {
                        let eight = memory::load_u32x4(lines + Self::at(64, row, chunk));
                        if first + row < self.all {
                            let (token, head) = self.place(first + row);
                            let at = ((self.chunk.row + token) * self.args.heads + head) as usize * D;
                            let to = self.args.y.add(at + 8 * chunk as usize);
                            memory::store_global_u32x4(to.cast(), eight);
                        }
                    }
                }
            });
        }
    }

    /// For the place of each of a thread's scores of row `$i`; `KEY` is how far its key is from the thread's first.
    macro_rules! each_score {
        ($i:ident, $at:ident => $body:block) => {
            unroll!(A < KEYS / 64 => {
                unroll!(J < 8 => {
                    { each_score!(@ $i, $at, $body, 0); }
                    { each_score!(@ $i, $at, $body, 1); }
                });
            });
        };
        (@ $i:ident, $at:ident, $body:block, $h:literal) => {
            const KEY: usize = 64 * A + 8 * J + $h;
            let $at = 32 * A + 4 * J + 2 * $i + $h;
            $body
        };
    }

    /// What a thread knows of its two rows, `g` and `g + 8` of its warp's.
    struct Rows {
        /// The first key that each sees, and the one behind the last.
        seen: [[u32; 2]; 2],
        /// Tiles from the first to below the second are seen in full by all rows of the warpgroup.
        clear: [u32; 2],
        /// Of scores, before they are scaled.
        maxima: [f32; 2],
        /// Of this thread's keys.
        weights: [f32; 2],
        scale: f32,
    }

    impl Rows {
        /// Those of a warpgroup, from `first` on.
        #[inline(always)]
        fn new<const D: usize>(block: &Block<D>, first: u32) -> Self {
            let row = first + 16 * (block.warp % 4) + thread::lane() / 4;
            // Of the last row and of the first. Rows that are not there see what they would.
            let [[start, _], [_, end]] = [block.seen(first + 63), block.seen(first)];
            Self {
                seen: [block.seen(row), block.seen(row + 8)],
                clear: [start, end],
                maxima: [f32::NEG_INFINITY; 2],
                weights: [0.0; 2],
                scale: block.args.scale,
            }
        }

        /// Makes weights of the scores of a tile, relative to the largest so far, and returns what sums until now are to be
        /// multiplied by.
        #[inline(always)]
        fn weigh(&mut self, scores: &mut Scores, key: u32) -> [f32; 2] {
            let lane = thread::lane();
            if key < self.clear[0] || key + KEYS as u32 > self.clear[1] {
                self.mask::<0>(scores, key + 2 * (lane % 4));
                self.mask::<1>(scores, key + 2 * (lane % 4));
            }
            let mut largest = [largest::<0>(scores), largest::<1>(scores)];
            for distance in [1, 2] {
                unroll!(I < 2 => {
                    let other = thread::shuffle(largest[I].to_bits(), lane ^ distance);
                    largest[I] = math::max(largest[I], f32::from_bits(other));
                });
            }
            [
                self.weigh_row::<0>(scores, largest[0]),
                self.weigh_row::<1>(scores, largest[1]),
            ]
        }

        /// [`weigh`](Self::weigh) of one of the two rows, of which `largest` is the tile's largest score.
        #[inline(always)]
        fn weigh_row<const I: usize>(&mut self, scores: &mut Scores, largest: f32) -> f32 {
            let largest = math::max(self.maxima[I], largest);
            // Where nothing is seen yet, all weights are zero whatever they are relative to.
            let base = if largest == f32::NEG_INFINITY {
                0.0
            } else {
                largest
            };
            let old = math::exp2((self.maxima[I] - base) * self.scale);
            self.maxima[I] = largest;
            let base = -base * self.scale;
            let mut totals = [self.weights[I] * old, 0.0];
            each_score!(I, at => {
                scores[at] = math::exp2(math::multiply_add(scores[at], self.scale, base));
                totals[KEY % 2] += scores[at];
            });
            self.weights[I] = totals[0] + totals[1];
            old
        }

        /// Masks what one of the two rows does not see of a tile, of which this thread's first key is `key`.
        #[inline(always)]
        fn mask<const I: usize>(&self, scores: &mut Scores, key: u32) {
            let [start, end] = self.seen[I];
            // Seen are `count` keys from `start` on, of which this one is the `first`-th.
            let (first, count) = (key.wrapping_sub(start), end - start);
            each_score!(I, at => {
                if first.wrapping_add(KEY as u32) >= count {
                    scores[at] = f32::NEG_INFINITY;
                }
            });
        }
    }

    /// The largest of this thread's scores of one of its two rows. Two at a time, for each waits for the one before.
    #[inline(always)]
    fn largest<const I: usize>(scores: &Scores) -> f32 {
        let mut largest = [f32::NEG_INFINITY; 2];
        each_score!(I, at => { largest[KEY % 2] = math::max(largest[KEY % 2], scores[at]); });
        math::max(largest[0], largest[1])
    }

    /// A fragments of weights.
    #[inline(always)]
    fn fragments(weights: &Scores) -> Weights {
        let mut fragments = [[0; 4]; KEYS / 16];
        unroll!(K < KEYS / 16 => {
            unroll!(R < 4 => {
                let at = 8 * K + 2 * R;
                fragments[K][R] = mma::to_bf16_pair(weights[at], weights[at + 1]);
            });
        });
        fragments
    }

    /// Multiplies the sums of each of the two rows.
    #[inline(always)]
    fn scale<const SUMS: usize>(sums: &mut [f32; SUMS], factors: [f32; 2]) {
        unroll!(P < SUMS / 32 => {
            unroll!(J < 8 => {
                let at = 32 * P + 4 * J;
                sums[at] *= factors[0];
                sums[at + 1] *= factors[0];
                sums[at + 2] *= factors[1];
                sums[at + 3] *= factors[1];
            });
        });
    }
}
