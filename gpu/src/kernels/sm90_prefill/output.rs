//! What becomes of the sums: handed over to a later cluster, or finished and stored.

use core::ops::Range;

use super::{Accumulator, Block};
use crate::{
    arch::{grid, memory, mma, thread},
    kernels::epilogue::Epilogue,
    launch::{Gemm, Prefill},
    layout::*,
    schedule::Place,
};

/// Sums that a thread has of the 64 tokens which leave a tile at a time, and fours of them.
const CHUNK: usize = Prefill::CHUNK_TOKENS / 2;
const FOURS: usize = CHUNK / 4;

/// Runs `$body` for each of a thread's sums of a chunk, `$at` their index.
macro_rules! each_sum {
    ($at:ident => $body:block) => {
        unroll!(J < 8 => {
            unroll!(P < 4 => {
                const $at: usize = 4 * J + P;
                $body
            });
        });
    };
}

/// Feature and token of a chunk's sum, from the thread's first ones on, see [`Accumulator`].
const fn feature_of(at: usize) -> usize {
    at % 4 / 2 * 8
}
const fn token_of(at: usize) -> u32 {
    (at / 4 * 8 + at % 2) as u32
}

impl<const SUMS: usize, const STAGES: usize, const CLUSTER: usize> Block<'_, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// First token of the `chunk`-th 64 of an output tile, if there is one.
    #[inline(always)]
    pub(super) fn chunk(&self, place: Place, chunk: usize) -> Option<u32> {
        let first = place.token_block * Self::SHAPE.tokens as u32;
        let first = first + (chunk * Prefill::CHUNK_TOKENS) as u32;
        (first < self.args.n).then_some(first)
    }

    /// Where a block of `cluster` with this one's rank leaves this thread's first four sums. The next
    /// ones are [`Self::FOUR`] floats away.
    #[inline(always)]
    pub(super) fn partial(&self, cluster: u32) -> *mut f32 {
        let block = (cluster * CLUSTER as u32 + self.rank) as usize;
        let thread = (self.warp * LANES as u32 + self.lane) as usize;
        let index = block * (Self::SHAPE.partial_bytes() / 4) + 4 * thread;
        self.args.partials.wrapping_add(index)
    }

    const FOUR: usize = 4 * Prefill::WARPS * LANES;

    /// Leaves sums to a later cluster. Each float is its own flag: the place is empty as long as it
    /// holds a pattern that no sum has.
    #[inline(always)]
    pub(super) unsafe fn hand_over(&self, place: Place, acc: &[f32; SUMS]) {
        let flag = |sum: f32| match sum.to_bits() {
            Gemm::EMPTY => f32::NAN.to_bits(),
            bits => bits,
        };
        let to = self.partial(self.cluster);
        unroll!(C < SUMS / CHUNK => {
            if self.chunk(place, C).is_some() {
                unroll!(F < FOURS => {
                    const FOUR: usize = FOURS * C + F;
                    let sums = [acc[4 * FOUR], acc[4 * FOUR + 1], acc[4 * FOUR + 2], acc[4 * FOUR + 3]];
                    // SAFETY: the workspace has room for every block of the launch.
                    unsafe { memory::publish_u32x4(to.wrapping_add(FOUR * Self::FOUR), sums.map(flag)) }
                });
            }
        });
    }

    /// Earlier clusters whose sums of a chunk are asked for at a time: as many as there are registers
    /// for, and those of chunks that have been stored are free.
    #[inline(always)]
    pub(super) const fn wide(chunk: usize) -> usize {
        const MOST: usize = 3;
        let wide = 1 + (128 - SUMS) / CHUNK + chunk;
        if wide < MOST { wide } else { MOST }
    }

    /// Waits for a chunk of sums of up to [`Self::wide`] earlier clusters, adds them in order, and
    /// leaves their places empty for the next launch. Clusters start in order, so that those waited
    /// for run or have run.
    #[inline(always)]
    pub(super) unsafe fn take_over(
        &self,
        clusters: Range<u32>,
        chunk: usize,
        sums: &mut [f32; CHUNK],
    ) {
        // Loads of all of them are under way together. (What is past `wide` is never there.)
        let mut parts = [[[0; 4]; FOURS]; 8];
        let from = |w: usize, f: usize| {
            let from = self.partial(clusters.start + w as u32);
            from.wrapping_add((FOURS * chunk + f) * Self::FOUR)
        };
        // SAFETY: the workspace has room for every block of the launch.
        unsafe {
            loop {
                let mut missing = false;
                unroll!(W < Self::wide(chunk) => {
                    if clusters.start + (W as u32) < clusters.end {
                        unroll!(F < FOURS => { parts[W][F] = memory::observe_u32x4(from(W, F)); });
                    }
                });
                unroll!(W < Self::wide(chunk) => {
                    unroll!(F < FOURS => {
                        let [a, b, c, d] = parts[W][F].map(|sum| sum == Gemm::EMPTY);
                        missing |= a | b | c | d;
                    });
                });
                if !missing {
                    break;
                }
            }
            unroll!(W < Self::wide(chunk) => {
                if clusters.start + (W as u32) < clusters.end {
                    unroll!(F < FOURS => {
                        unroll!(I < 4 => { sums[4 * F + I] += f32::from_bits(parts[W][F][I]); });
                        memory::publish_u32x4(from(W, F), [Gemm::EMPTY; 4]);
                    });
                }
            });
        }
    }

    /// Finishes an output tile, 64 tokens at a time: adds what earlier clusters have of it, then
    /// what the epilogue adds, and stores. All this is done as sums lie in registers, by which a
    /// warp reads and writes sectors of eight features of four tokens; only BF16 outputs, where
    /// those would be half sectors, leave by way of shared memory.
    #[inline(always)]
    pub(super) unsafe fn store(&self, place: Place, before: Range<u32>, acc: &[f32; SUMS]) {
        let epilogue = Epilogue::new(&self.args.output, self.args.m, self.args.n);
        let group_feature = self.row_block(place) * Prefill::ROWS as u32 + 64 * (self.warp / 4);
        let feature = group_feature + 16 * (self.warp % 4) + self.lane / 4;
        if epilogue.has_bias() || epilogue.accumulates() {
            // This thread's own wait: it reads what the kernel before may have written.
            grid::wait_dependencies();
        }
        unroll!(C < SUMS / CHUNK => {
            if let Some(first) = self.chunk(place, C) {
                let mut sums = [0.0; CHUNK];
                unroll!(F < FOURS => {
                    unroll!(I < 4 => { sums[4 * F + I] = acc[CHUNK * C + 4 * F + I]; });
                });
                let token = first + 2 * (self.lane % 4);
                // SAFETY: `run`'s.
                unsafe {
                    let mut left = before.clone();
                    while !left.is_empty() {
                        let end = left.end.min(left.start + Self::wide(C) as u32);
                        self.take_over(left.start..end, C, &mut sums);
                        left.start = end;
                    }
                    let bias = [epilogue.bias::<0>(feature), epilogue.bias::<8>(feature)];
                    let mut old = [0; CHUNK];
                    if epilogue.accumulates() {
                        if epilogue.is_f32() {
                            each_sum!(AT => {
                                old[AT] = epilogue.old::<true, { feature_of(AT) }>(token + token_of(AT), feature);
                            });
                        } else {
                            each_sum!(AT => {
                                old[AT] = epilogue.old::<false, { feature_of(AT) }>(token + token_of(AT), feature);
                            });
                        }
                    }
                    if epilogue.has_bias() {
                        each_sum!(AT => { epilogue.add_bias(&mut sums[AT], bias[feature_of(AT) / 8]); });
                    }
                    if epilogue.accumulates() {
                        each_sum!(AT => { epilogue.add_old(&mut sums[AT], old[AT]); });
                    }
                    if epilogue.is_f32() {
                        // Computed anew, or the addresses of old outputs would stay in registers.
                        let token = thread::opaque(token);
                        each_sum!(AT => {
                            epilogue.store_f32::<{ feature_of(AT) }>(token + token_of(AT), feature, sums[AT]);
                        });
                    } else {
                        self.store_bf16(&epilogue, first, group_feature, &sums);
                    }
                }
            }
        });
    }

    /// Rounds and stores 64 tokens from `first` on, and the warpgroup's features, from `feature` on.
    /// A warp puts its 16 features of each token into a line of shared memory, and reads whole lines
    /// of four tokens at a time. So no thread stores before all have read old outputs.
    /// The 16-byte pieces of a line lie in an order that keeps both free of bank conflicts.
    #[inline(always)]
    pub(super) unsafe fn store_bf16(
        &self,
        epilogue: &Epilogue,
        first: u32,
        feature: u32,
        sums: &[f32; CHUNK],
    ) {
        const LINE: u32 = Prefill::LINE_BYTES as u32;
        const THREADS: u32 = 128;
        let (group, warp) = (self.warp / 4, self.warp % 4);
        let out = self.shared + Self::SHAPE.out_at() as u32 + group * Prefill::OUT_BYTES as u32;
        let piece = |token: u32, piece: u32| out + token * LINE + ((piece ^ token % 8) << 4);
        // The matrices of a store are features 0..8 and 8..16 of 8 tokens, then of the next 8.
        let (matrix, row) = (self.lane / 8, self.lane % 8);
        let to = piece(matrix / 2 * 8 + row, 2 * warp + matrix % 2);
        let thread = warp * LANES as u32 + self.lane;
        let from = piece(thread / 8, thread % 8);
        // SAFETY: inside the warpgroup's lines; the rest is `run`'s.
        unsafe {
            // The lines before have been read.
            thread::sync_threads::<THREADS>(1 + group);
            unroll!(Q < 4 => {
                let pair = |i: usize| mma::to_bf16_pair(sums[8 * Q + i], sums[8 * Q + i + 1]);
                mma::store_transposed_matrices(
                    to + Q as u32 * 16 * LINE,
                    [pair(0), pair(2), pair(4), pair(6)],
                );
            });
            thread::sync_threads::<THREADS>(1 + group);
            unroll!(Q < 4 => {
                let pairs = memory::load_u32x4(from + Q as u32 * 16 * LINE);
                let token = first + 16 * Q as u32 + thread / 8;
                epilogue.store_eight(token, feature + thread % 8 * 8, pairs);
            });
        }
    }
}
