//! What becomes of the sums: stored as partial sums for a later cluster, or finished and stored.

use core::ops::Range;

use super::{Accumulator, Block, Problem, RestartingState};
use crate::{
    arch::{barrier, copy, grid, memory, mma, thread},
    kernels::{epilogue::Epilogue, fixup::counted},
    launch::Prefill,
    layout::*,
    sched::schedule::Place,
};

/// Sums that a thread has of the up to 64 tokens which leave a tile at a time, and fours of them.
const CHUNK: usize = Prefill::CHUNK_TOKENS / 2;
const FOURS: usize = CHUNK / 4;

/// Runs `$body` for each of a thread's sums of a chunk, `$at` their index.
macro_rules! each_sum {
    ($chunk:ident, $at:ident => $body:block) => {
        unroll!(J < Self::chunk_sums($chunk) / 4 => {
            unroll!(P < 4 => {
                const $at: usize = 4 * J + P;
                $body
            });
        });
    };
}

/// A thread's `index`-th four sums; of a chunk that is larger than what is left of the tile the others are
/// nothing.
#[inline(always)]
fn four<const SUMS: usize>(acc: &[f32; SUMS], index: usize) -> [f32; 4] {
    core::array::from_fn(|i| acc.get(4 * index + i).copied().unwrap_or(0.0))
}

/// A thread's sums of a chunk.
#[inline(always)]
fn chunk_of<const SUMS: usize>(acc: &[f32; SUMS], chunk: usize) -> [f32; CHUNK] {
    let mut sums = [0.0; CHUNK];
    unroll!(F < FOURS => {
        let four = four(acc, FOURS * chunk + F);
        unroll!(I < 4 => { sums[4 * F + I] = four[I]; });
    });
    sums
}

/// Feature and token of a chunk's sum, from the thread's first ones on, see [`Accumulator`].
const fn feature_of(at: usize) -> usize {
    at % 4 / 2 * 8
}
const fn token_of(at: usize) -> u32 {
    (at / 4 * 8 + at % 2) as u32
}

impl<P: Problem, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'_, P, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Sums that a thread has of the `chunk`-th 64 tokens of an output tile: the last ones may be fewer.
    const fn chunk_sums(chunk: usize) -> usize {
        let left = SUMS.saturating_sub(CHUNK * chunk);
        if left < CHUNK { left } else { CHUNK }
    }

    /// First token of the `chunk`-th 64 of an output tile, if there is one.
    #[inline(always)]
    fn chunk(&self, place: Place, group: &Range<u32>, chunk: usize) -> Option<u32> {
        let Range { start, end } = self.tokens(place, group);
        let first = start + (chunk * Prefill::CHUNK_TOKENS) as u32;
        (first < end).then_some(first)
    }

    /// Tokens of the output tile at `place`, and those behind it. Where they come in groups, `group` has them.
    #[inline(always)]
    fn tokens(&self, place: Place, group: &Range<u32>) -> Range<u32> {
        if P::GROUPED {
            group.clone()
        } else {
            place.token_block * Self::SHAPE.tokens as u32..self.args.n
        }
    }

    /// The block of `cluster` with this one's rank.
    #[inline(always)]
    fn partner(&self, cluster: u32) -> usize {
        (cluster * CLUSTER as u32 + self.rank) as usize
    }

    /// Where a block stores its partial sums: of each four tokens for which a thread has two, four sums of all
    /// threads.
    #[inline(always)]
    pub(super) fn partial(&self, cluster: u32) -> *mut f32 {
        let index = self.partner(cluster) * (Self::SHAPE.partial_bytes() / 4);
        self.args.partials.wrapping_add(index)
    }

    /// Counts the warps of a block that have stored theirs.
    #[inline(always)]
    pub(super) fn flag(&self, cluster: u32) -> *mut u32 {
        self.args.flags.wrapping_add(self.partner(cluster))
    }

    /// Floats from four sums of a thread to the next.
    const FOUR: usize = 4 * Prefill::WARPS * LANES;
    /// Fours of a thread that come in one stage.
    const PIECE_FOURS: usize = Self::SHAPE.chunk_tokens() / 8 / Self::SHAPE.chunk_pieces();

    /// This thread's first sum of a piece.
    #[inline(always)]
    fn own_sum(&self) -> u32 {
        4 * (self.warp * LANES as u32 + self.lane)
    }

    /// Stores partial sums for a later cluster, see [`counted`].
    #[inline(always)]
    pub(super) unsafe fn store_partial(&self, place: Place, acc: &[f32; SUMS]) {
        let to = self
            .partial(self.cluster)
            .wrapping_add(self.own_sum() as usize);
        unroll!(C < SUMS.div_ceil(CHUNK) => {
            if self.chunk(place, &(0..0), C).is_some() {
                unroll!(F < Self::chunk_sums(C) / 4 => {
                    const FOUR: usize = FOURS * C + F;
                    let sums = four(acc, FOUR);
                    let to = to.wrapping_add(FOUR * Self::FOUR);
                    // SAFETY: the workspace has room for every block of the launch.
                    unsafe { counted::store(to, sums) }
                });
            }
        });
        // SAFETY: there is a flag for every block of the launch.
        unsafe { counted::arrive(self.flag(self.cluster), self.lane) };
    }

    /// Adds the `piece`-th part of a chunk of an earlier cluster's sums, which the ring's next stage
    /// holds.
    #[inline(always)]
    unsafe fn reduce<const PIECE: usize>(
        &self,
        ring: &mut RestartingState<STAGES>,
        sums: &mut [f32; CHUNK],
    ) {
        // SAFETY: the stage is full, and stays so until it is released.
        unsafe {
            barrier::wait(self.full(ring.stage), ring.parity());
            let from = self.stage(ring.stage) + 4 * self.own_sum();
            unroll!(F < Self::PIECE_FOURS => {
                let four = memory::load_u32x4(from + (4 * F * Self::FOUR) as u32);
                let at = 4 * (Self::PIECE_FOURS * PIECE + F);
                unroll!(I < 4 => { sums[at + I] += f32::from_bits(four[I]); });
            });
            copy::finish_reads();
            self.release(ring.stage, true);
        }
        ring.advance();
    }

    /// Adds the sums of a chunk that earlier clusters have.
    #[inline(always)]
    unsafe fn add_earlier(
        &self,
        peers: Range<u32>,
        ring: &mut RestartingState<STAGES>,
        sums: &mut [f32; CHUNK],
    ) {
        for _ in peers {
            // SAFETY: `run`'s.
            unsafe {
                unroll!(PIECE < Self::SHAPE.chunk_pieces() => { self.reduce::<PIECE>(ring, sums); });
            }
        }
    }

    /// Finishes an output tile, 64 tokens at a time: adds what earlier clusters have of it, then
    /// what the epilogue adds, and stores. All this is done as sums lie in registers, by which a
    /// warp reads and writes sectors of eight features of four tokens; only BF16 outputs, where
    /// those would be half sectors, leave by way of shared memory.
    #[inline(always)]
    pub(super) unsafe fn store(
        &self,
        place: Place,
        group: Range<u32>,
        peers: Range<u32>,
        ring: &mut RestartingState<STAGES>,
        acc: &[f32; SUMS],
    ) {
        if self.is_gated() {
            // SAFETY: `run`'s.
            return unsafe { self.store_gated(place, group, peers, ring, acc) };
        }
        let end = self.tokens(place, &group).end;
        let epilogue = Epilogue::new(&self.args.output, self.args.m, end);
        let group_feature = self.row_block(place) * Prefill::ROWS as u32
            + Prefill::GROUP_ROWS as u32 * (self.warp / 4);
        let feature = group_feature + 16 * (self.warp % 4) + self.lane / 4;
        if epilogue.has_bias() || epilogue.accumulates() {
            // This thread's own wait: it reads what the kernel before may have written.
            grid::wait_dependencies();
        }
        if epilogue.is_plain(group_feature, Prefill::GROUP_ROWS as u32) {
            // SAFETY: `run`'s.
            return unsafe {
                self.store_plain(place, group, peers, ring, acc, &epilogue, group_feature)
            };
        }
        unroll!(C < SUMS.div_ceil(CHUNK) => {
            if let Some(first) = self.chunk(place, &group, C) {
                let mut sums = chunk_of(acc, C);
                let token = first + 2 * (self.lane % 4);
                // SAFETY: `run`'s.
                unsafe {
                    self.add_earlier(peers.clone(), ring, &mut sums);
                    let bias = [epilogue.bias::<0>(feature), epilogue.bias::<8>(feature)];
                    let mut old = [0; CHUNK];
                    if epilogue.accumulates() {
                        if epilogue.is_f32() {
                            each_sum!(C, AT => {
                                old[AT] = epilogue.old::<true, { feature_of(AT) }>(token + token_of(AT), feature);
                            });
                        } else {
                            each_sum!(C, AT => {
                                old[AT] = epilogue.old::<false, { feature_of(AT) }>(token + token_of(AT), feature);
                            });
                        }
                    }
                    if epilogue.has_bias() {
                        each_sum!(C, AT => { epilogue.add_bias(&mut sums[AT], bias[feature_of(AT) / 8]); });
                    }
                    if epilogue.accumulates() {
                        each_sum!(C, AT => { epilogue.add_old(&mut sums[AT], old[AT]); });
                    }
                    if epilogue.is_f32() {
                        // Computed anew, or the addresses of old outputs would stay in registers.
                        let token = thread::opaque(token);
                        each_sum!(C, AT => {
                            epilogue.store_f32::<{ feature_of(AT) }>(token + token_of(AT), feature, sums[AT]);
                        });
                    } else {
                        self.store_bf16::<C>(&epilogue, first, group_feature, &sums);
                    }
                }
            }
        });
    }

    /// [`store`](Self::store) where outputs are gated: what the first warpgroup has is the gate's, what the second has is
    /// multiplied by it. Each finds both in shared memory, rounded, and stores every other 16 tokens.
    #[inline(always)]
    unsafe fn store_gated(
        &self,
        place: Place,
        group: Range<u32>,
        peers: Range<u32>,
        ring: &mut RestartingState<STAGES>,
        acc: &[f32; SUMS],
    ) {
        const { assert!(!Self::FEW_TOKENS || SUMS <= CHUNK) };
        const LINES: u32 = (16 * Prefill::LINE_BYTES) as u32;
        const OUT_BYTES: u32 = Prefill::OUT_BYTES as u32;
        let Range { start: first, end } = self.tokens(place, &group);
        let epilogue = Epilogue::new(&self.args.output, self.args.m / Self::HALVES, end);
        // A tile of 16 has no lines for the second warpgroup: what is behind it is the next tile's.
        let end = end.min(first + Self::SHAPE.tokens as u32);
        let (out, thread) = (self.out(), self.thread_of_group());
        let feature = self.row_block(place) * Prefill::GROUP_ROWS as u32 + thread % 8 * 8;
        let token = first + 16 * out.group + thread / 8;
        let gate = Out {
            from: out.from - out.group * (OUT_BYTES - LINES),
            ..out
        };
        let up = Out {
            from: gate.from + OUT_BYTES,
            ..out
        };
        // SAFETY: `run`'s.
        unsafe {
            let mut sums = chunk_of(acc, 0);
            self.add_earlier(peers, ring, &mut sums);
            self.put::<0, true>(&out, &sums);
            unroll!(Q < Self::SHAPE.chunk_tokens().div_ceil(32) => {
                let token = token + 32 * Q as u32;
                if token < end {
                    let (gate, up) = (self.line::<{ 2 * Q }>(&gate), self.line::<{ 2 * Q }>(&up));
                    epilogue.store_gated(token, feature, gate, up);
                }
            });
        }
    }

    /// [`store`](Self::store) where outputs are plain, as they mostly are: with nothing to decide, nor to
    /// jump over, it takes two fifths of the instructions.
    #[inline(always)]
    unsafe fn store_plain(
        &self,
        place: Place,
        group: Range<u32>,
        peers: Range<u32>,
        ring: &mut RestartingState<STAGES>,
        acc: &[f32; SUMS],
        epilogue: &Epilogue,
        feature: u32,
    ) {
        let out = self.out();
        // Opaque, or what other ways have in common with this one would be in registers before they part.
        let place = Place {
            token_block: thread::opaque(place.token_block),
            ..place
        };
        let Range { start: first, end } = self.tokens(place, &group);
        let tokens = end - first;
        let thread = self.thread_of_group();
        let mut lines = epilogue.lines::<16>(first + thread / 8, feature + thread % 8 * 8);
        unroll!(C < SUMS.div_ceil(CHUNK) => {
            if tokens > (C * Prefill::CHUNK_TOKENS) as u32 {
                let mut sums = chunk_of(acc, C);
                // SAFETY: `run`'s.
                unsafe {
                    self.add_earlier(peers.clone(), ring, &mut sums);
                    self.put::<C, false>(&out, &sums);
                    // Read before any is stored; lines that are not there hold anything.
                    let pairs = [
                        self.line::<0>(&out),
                        self.line::<1>(&out),
                        self.line::<2>(&out),
                        self.line::<3>(&out),
                    ];
                    unroll!(Q < 4 => {
                        if Q < Self::chunk_sums(C) / 8 {
                            lines.store(pairs[Q]);
                        }
                    });
                }
            }
        });
    }

    /// Rounds and stores 64 tokens from `first` on, and the warpgroup's features, from `feature` on. No
    /// thread stores before all have read old outputs.
    #[inline(always)]
    unsafe fn store_bf16<const C: usize>(
        &self,
        epilogue: &Epilogue,
        first: u32,
        feature: u32,
        sums: &[f32; CHUNK],
    ) {
        let out = self.out();
        let thread = self.thread_of_group();
        // SAFETY: `run`'s.
        unsafe {
            self.put::<C, false>(&out, sums);
            unroll!(Q < Self::chunk_sums(C) / 8 => {
                let token = first + 16 * Q as u32 + thread / 8;
                epilogue.store_eight(token, feature + thread % 8 * 8, self.line::<Q>(&out));
            });
        }
    }

    /// Which of its warpgroup's threads this one is.
    #[inline(always)]
    fn thread_of_group(&self) -> u32 {
        LANES as u32 * (self.warp % 4) + self.lane
    }

    /// Where a warp puts its 16 features of each token into a line of shared memory, and whole lines of
    /// four tokens are read at a time. The 16-byte pieces of a line lie in an order that keeps both free
    /// of bank conflicts.
    #[inline(always)]
    fn out(&self) -> Out {
        const LINE: u32 = Prefill::LINE_BYTES as u32;
        let (group, warp) = (self.warp / 4, self.warp % 4);
        let out = self.shared + Self::SHAPE.out_at() as u32 + group * Prefill::OUT_BYTES as u32;
        let piece = |token: u32, piece: u32| out + token * LINE + ((piece ^ token % 8) << 4);
        // The matrices of a store are features 0..8 and 8..16 of 8 tokens, then of the next 8.
        let (matrix, row) = (self.lane / 8, self.lane % 8);
        let thread = self.thread_of_group();
        Out {
            group,
            to: piece(matrix / 2 * 8 + row, 2 * warp + matrix % 2),
            from: piece(thread / 8, thread % 8),
        }
    }

    /// Waits for those who read the same lines: the warpgroup, or both if outputs are gated.
    #[inline(always)]
    fn sync_readers<const GATED: bool>(out: &Out) {
        const GROUP: u32 = 4 * LANES as u32;
        const BOTH: u32 = Prefill::WARPS as u32 * LANES as u32;
        // Barrier 0 is the block's.
        if GATED {
            thread::sync_threads::<BOTH>(3);
        } else {
            thread::sync_threads::<GROUP>(1 + out.group);
        }
    }

    /// Rounds sums and puts them into lines, of which all may then be read: those of the warpgroup, or if outputs are
    /// `GATED`, those of both.
    #[inline(always)]
    unsafe fn put<const C: usize, const GATED: bool>(&self, out: &Out, sums: &[f32; CHUNK]) {
        // SAFETY: inside the warpgroup's lines; the rest is `run`'s.
        unsafe {
            // The lines before have been read.
            Self::sync_readers::<GATED>(out);
            unroll!(Q < Self::chunk_sums(C) / 8 => {
                let pair = |i: usize| mma::to_bf16_pair(sums[8 * Q + i], sums[8 * Q + i + 1]);
                mma::store_transposed_matrices(
                    out.to + (Q * 16 * Prefill::LINE_BYTES) as u32,
                    [pair(0), pair(2), pair(4), pair(6)],
                );
            });
            Self::sync_readers::<GATED>(out);
        }
    }

    /// Eight features of one of each 16 tokens of the lines.
    #[inline(always)]
    unsafe fn line<const Q: usize>(&self, out: &Out) -> [u32; 4] {
        // SAFETY: inside the warpgroup's lines.
        unsafe { memory::load_u32x4(out.from + (Q * 16 * Prefill::LINE_BYTES) as u32) }
    }
}

/// Where a thread writes, and where it reads, outputs of its warpgroup on their way out.
#[derive(Clone, Copy)]
struct Out {
    group: u32,
    to: u32,
    from: u32,
}
