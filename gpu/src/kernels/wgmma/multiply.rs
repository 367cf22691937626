//! The warps that multiply: low bytes, code words and what these leave out to A fragments, and those into `wgmma`.

use super::{Accumulator, Block, Problem, RestartingState, work_tiles::WorkTileState};
use crate::{
    arch::{barrier, cluster, copy, memory, thread, wgmma},
    decode,
    launch::Prefill,
    layout::*,
    sched::pipeline::CountingState,
};

/// k-steps that the tensor cores work on, or have before them, while a warp decodes the next.
const IN_FLIGHT: u32 = 2;

/// What a lane needs to make the A fragments of a k-tile's first two k-steps, and the code words of all.
#[derive(Clone, Copy)]
struct FirstHalf {
    low: [u32; 4],
    words: [u32; LANE_WORDS],
    rest: [u32; 4],
}

/// What it needs for the other two.
struct SecondHalf {
    low: [u32; 4],
    rest: [u32; 4],
}

/// Which table a k-tile takes.
type TableState = CountingState<{ Prefill::TABLES }>;

impl FirstHalf {
    /// Nothing yet.
    const NONE: Self = Self {
        low: [0; 4],
        words: [0; LANE_WORDS],
        rest: [0; 4],
    };
}

impl<P: Problem, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'_, P, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Multiplies the warp's band of every k-tile, and finishes output tiles.
    #[inline(always)]
    pub(super) unsafe fn multiply(&self) {
        let mut work_tile = WorkTileState::FIRST;
        let mut ring = RestartingState::<STAGES>::CONSUMER;
        let mut state = TableState::FIRST;
        loop {
            // SAFETY: `run`'s.
            let mut k_tiles = unsafe { self.k_tiles_of(work_tile) };
            if k_tiles == 0 {
                break;
            }
            let mut acc = <[f32; SUMS]>::undefined();
            let mut first = true;
            // The next k-tile's first half, if it has come.
            let mut ready = false;
            let mut half = FirstHalf::NONE;
            // For each stage once, so that addresses need not be worked out.
            let last = 'work_tile: loop {
                unroll!(12: S < STAGES => {
                    let stage = S as u32;
                    let next_stage = ((S + 1) % STAGES) as u32;
                    let stage_before = ((S + STAGES - 1) % STAGES) as u32;
                    let table = state.slot();
                    // SAFETY: `run`'s; stage and table are full, and stay so until they are released.
                    let second = unsafe {
                        if !ready {
                            barrier::wait(self.full(stage), ring.parity_of(stage));
                            barrier::wait(self.table_full(table), state.parity());
                        }
                        if !(Self::AHEAD && ready) {
                            self.load_first(&mut half, stage, table, true);
                        }
                        self.load_second(stage, table)
                    };
                    let FirstHalf { low: [a, b, c, d], words, rest: [i, j, k, l] } = half;
                    let SecondHalf { low: [e, f, g, h], rest: [m, n, o, p] } = second;
                    let x = wgmma::swizzled_rows(self.stage(stage));
                    macro_rules! kstep {
                        ($s:literal, $low:expr, $rest:expr) => {
                            // Until then the registers of the fragment are the last k-tile's.
                            wgmma::wait::<IN_FLIGHT>();
                            let fragment = decode::kstep::<$s>($low, words, $rest);
                            if $s == IN_FLIGHT {
                                // By now all that was loaded from it has been used.
                                self.release(stage_before, S > 0 || !first);
                            }
                            let add = S > 0 || $s > 0 || !first;
                            acc.multiply(fragment, wgmma::kstep(x, $s), add);
                            wgmma::commit();
                        };
                    }
                    // SAFETY: `run`'s; stage and table are full, and stay so until they are released.
                    unsafe {
                        kstep!(0, [a, b], [i, j]);
                        kstep!(1, [c, d], [k, l]);
                        barrier::arrive(self.table_empty(table));
                        kstep!(2, [e, f], [m, n]);
                        // Asked ahead, for an answer takes some time.
                        let more = k_tiles > 1;
                        ready = more & self.is_ready(next_stage, &ring, state.next());
                        if Self::AHEAD {
                            self.load_first(&mut half, next_stage, state.next().slot(), ready);
                        }
                        kstep!(3, [g, h], [o, p]);
                    }
                    state = state.next();
                    ring.advance_from(stage);
                    k_tiles -= 1;
                    if k_tiles == 0 {
                        break 'work_tile stage;
                    }
                });
                first = false;
            };
            // Asked for, not kept: registers are short.
            // SAFETY: `run`'s.
            acc.finish(unscale(unsafe { self.scale_of(work_tile) }));
            // SAFETY: `run`'s.
            unsafe {
                copy::finish_reads();
                self.release(last, true);
                // What is worked out for this must not take up registers peers.
                let this = Self {
                    shared: thread::opaque(self.shared),
                    lane: thread::opaque(self.lane),
                    warp: thread::opaque(self.warp),
                    rank: thread::opaque(self.rank),
                    ..*self
                };
                let info = this.pop_work_tile(work_tile);
                if info.finishes {
                    this.store(info.place, info.group, info.peers, &mut ring, &acc);
                } else {
                    this.store_partial(info.place, &acc);
                }
            }
            work_tile = work_tile.next();
            ring.restart();
        }
    }

    /// Whether a k-tile can be multiplied: whether its stage of the ring and its table are full.
    #[inline(always)]
    unsafe fn is_ready(
        &self,
        stage: u32,
        ring: &RestartingState<STAGES>,
        state: TableState,
    ) -> bool {
        // SAFETY: `run`'s.
        unsafe {
            barrier::test(self.full(stage), ring.parity_of(stage))
                & barrier::test(self.table_full(state.slot()), state.parity())
        }
    }

    /// What codes leave out of this lane's high bytes of a k-tile's first half, in a table.
    #[inline(always)]
    fn rest(&self, table: u32) -> u32 {
        const BAND: u32 = (Prefill::STRIP_TABLE_BYTES / BANDS) as u32;
        self.table(table) + self.warp * BAND + 16 * self.lane
    }

    /// Whether what is needed first of a k-tile is loaded before the last k-step of the one before. With more
    /// tokens there are not enough registers.
    const AHEAD: bool = SUMS <= 96;

    /// The lane's low bytes of a k-tile's first half in a stage.
    #[inline(always)]
    fn dense(&self, stage: u32) -> u32 {
        let dense_at = Self::SHAPE.dense_at() as u32 + self.warp * BAND_BYTES as u32;
        self.stage(stage) + dense_at + 16 * self.lane
    }

    /// Loads, if `really`, what the first two k-steps of a k-tile need from a full stage and table.
    #[inline(always)]
    unsafe fn load_first(&self, half: &mut FirstHalf, stage: u32, table: u32, really: bool) {
        let (dense, rest) = (self.dense(stage), self.rest(table));
        // SAFETY: `run`'s.
        unsafe {
            unroll!(W < LANE_WORDS => {
                // Four bytes a lane, where the others are 16.
                let word = dense - (16 - 4) * self.lane + (CODES_AT + W * CODE_BYTES) as u32;
                memory::load_u32_if(&mut half.words[W], word, really);
            });
            memory::load_u32x4_if(&mut half.low, dense, really);
            memory::load_u32x4_if(&mut half.rest, rest, really);
        }
    }

    /// Loads what the other two need. The third k-step uses all of it, so that nothing is on its way when it
    /// releases the stage peers.
    #[inline(always)]
    unsafe fn load_second(&self, stage: u32, table: u32) -> SecondHalf {
        let (dense, rest) = (self.dense(stage), self.rest(table));
        // SAFETY: `run`'s.
        unsafe {
            SecondHalf {
                low: memory::load_u32x4_in_order(dense + HALF_BYTES as u32),
                rest: memory::load_u32x4_in_order(rest + HALF_BYTES as u32),
            }
        }
    }

    /// Who arrives when a stage is full: the two lanes that start copies.
    pub(super) const FILLERS: u32 = 2;
    /// Who arrives when a stage is empty: each lane that multiplies, for what it has read, and a lane
    /// of each such warp of the other blocks, whose activations come with this block's.
    pub(super) const EMPTIERS: u32 = Self::WARPS * (LANES + CLUSTER - 1) as u32;

    /// Pops a stage, if `really`: all who fill it hear that this warp has done with it.
    #[inline(always)]
    pub(super) unsafe fn release(&self, stage: u32, really: bool) {
        // SAFETY: `run`'s.
        unsafe {
            barrier::arrive_if(self.empty(stage), really);
            if CLUSTER > 1 {
                let other = self.lane < CLUSTER as u32 && self.lane != self.rank;
                let barrier = self.heard + (self.empty(stage) - self.shared);
                cluster::arrive_if(barrier, really && other);
            }
        }
    }
}
