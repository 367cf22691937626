//! The warps that multiply: bytes, bitmap words and bases to A fragments, and those into `wgmma`.

use super::{Accumulator, Block, Ring};
use crate::{
    arch::{barrier, cluster, memory, thread, wgmma},
    decode,
    launch::Prefill,
    layout::*,
};

/// k-steps that the tensor cores work on, or have before them, while a warp decodes the next.
const IN_FLIGHT: u32 = 2;

/// What a lane needs to make its A fragments of a unit: bytes of each half, and bitmap words.
struct Operands {
    bytes: [[u32; 4]; 2],
    words: [u32; LANE_WORDS],
}

/// The table that a unit takes, by how many come before it.
#[inline(always)]
fn table_of(turn: u32) -> u32 {
    turn % Prefill::TABLES as u32
}

/// The parity of its phase.
#[inline(always)]
fn table_parity(turn: u32) -> u32 {
    turn / Prefill::TABLES as u32 % 2
}

impl<const SUMS: usize, const STAGES: usize, const CLUSTER: usize> Block<'_, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Multiplies the warp's band of every unit, and finishes output tiles.
    #[inline(always)]
    pub(super) unsafe fn multiply(&self) {
        let mut schedule = self.schedule();
        let mut ring = Ring::<STAGES>::EMPTYING;
        // Units so far: they take the tables in turn.
        let mut turn = 0;
        while let Some(share) = schedule.next() {
            let mut acc = <[f32; SUMS]>::ZERO;
            let mut units = share.to - share.from;
            let mut first = true;
            let mut ready = false;
            // For each stage once, so that addresses need not be worked out.
            let last = 'share: loop {
                unroll!(S < STAGES => {
                    let stage = S as u32;
                    let next_stage = ((S + 1) % STAGES) as u32;
                    let stage_before = ((S + STAGES - 1) % STAGES) as u32;
                    let table = table_of(turn);
                    // SAFETY: `run`'s; the stage is full, and stays so until it is released.
                    let Operands {
                        bytes: [[a, b, c, d], [e, f, g, h]],
                        words,
                    } = unsafe {
                        if !ready {
                            barrier::wait(self.full(stage), ring.parity_of(stage));
                            barrier::wait(self.table_full(table), table_parity(turn));
                        }
                        self.operands(stage)
                    };
                    let x = wgmma::swizzled_rows(self.stage(stage));
                    let at = self.bases(table);
                    // Asked at once, for the tensor cores' reads make all others wait.
                    // SAFETY: `run`'s; the table is full, and stays so until it is released.
                    let bases = unsafe {
                        [
                            memory::load_u32x4(at),
                            memory::load_u32x4(at + 512),
                            memory::load_u32x4(at + 2 * 512),
                            memory::load_u32x4(at + 3 * 512),
                        ]
                    };
                    macro_rules! kstep {
                        ($s:literal, $bytes:expr) => {
                            // Until then the registers of the fragment are the last unit's.
                            wgmma::wait::<IN_FLIGHT>();
                            if $s == IN_FLIGHT {
                                self.release(stage_before, S > 0 || !first);
                            }
                            let fragment = decode::kstep::<$s>($bytes, words, bases[$s]);
                            acc.multiply(fragment, wgmma::kstep(x, $s));
                            wgmma::commit();
                        };
                    }
                    // SAFETY: `run`'s; stage and table are full, and stay so until they are released.
                    unsafe {
                        kstep!(0, [a, b]);
                        kstep!(1, [c, d]);
                        barrier::arrive(self.table_empty(table));
                        kstep!(2, [e, f]);
                        // Asked ahead, for an answer takes some time.
                        ready = self.is_ready(next_stage, &ring, turn + 1);
                        kstep!(3, [g, h]);
                    }
                    turn += 1;
                    ring.advance_from(stage);
                    units -= 1;
                    if units == 0 {
                        break 'share stage;
                    }
                });
                first = false;
            };
            acc.finish();
            // SAFETY: `run`'s.
            unsafe {
                self.release(last, true);
                // What is worked out for this must not take up registers before.
                let this = Self {
                    shared: thread::opaque(self.shared),
                    lane: thread::opaque(self.lane),
                    warp: thread::opaque(self.warp),
                    rank: thread::opaque(self.rank),
                    ..*self
                };
                let place = this.tiles().place(thread::opaque(share.tile));
                if share.to < schedule.tile_cols {
                    this.hand_over(place, &acc);
                } else {
                    let before = this.before(&schedule, &share);
                    this.store(place, before, &mut ring, &acc);
                }
            }
            ring.restart();
        }
    }

    /// Whether the unit of some turn can be multiplied, which is in a stage of the ring.
    #[inline(always)]
    unsafe fn is_ready(&self, stage: u32, ring: &Ring<STAGES>, turn: u32) -> bool {
        // SAFETY: `run`'s.
        unsafe {
            barrier::test(self.full(stage), ring.parity_of(stage))
                & barrier::test(self.table_full(table_of(turn)), table_parity(turn))
        }
    }

    /// Where this lane's bases start in a table, 16 bytes a k-step.
    #[inline(always)]
    fn bases(&self, table: u32) -> u32 {
        const BAND: u32 = (Prefill::STRIP_TABLE_BYTES / BANDS) as u32;
        self.table(table) + self.warp * BAND + 16 * self.lane
    }

    /// Loads what the lane needs to make its A fragments of the unit in a full stage.
    #[inline(always)]
    unsafe fn operands(&self, stage: u32) -> Operands {
        let dense_at = Self::SHAPE.dense_at() as u32 + self.warp * BAND_BYTES as u32;
        let dense = self.stage(stage) + dense_at;
        // SAFETY: `run`'s.
        unsafe {
            let bytes = |half: usize| {
                memory::load_u32x4(dense + (half * HALF_BYTES) as u32 + 16 * self.lane)
            };
            let word = |w: usize| {
                memory::load_u32(dense + (BITMAPS_AT + w * BITMAP_BYTES) as u32 + 4 * self.lane)
            };
            Operands {
                words: [word(0), word(1), word(2)],
                bytes: [bytes(0), bytes(1)],
            }
        }
    }

    /// Who arrives when a stage is full: the two lanes that start copies.
    pub(super) const FILLERS: u32 = 2;
    /// Who arrives when a stage is empty: each lane that multiplies, for what it has read, and a lane
    /// of each such warp of the other blocks, whose activations come with this block's.
    pub(super) const EMPTIERS: u32 = Self::WARPS * (LANES + CLUSTER - 1) as u32;

    /// Tells all who fill stages, if `really`, that this warp has done with one.
    #[inline(always)]
    pub(super) unsafe fn release(&self, stage: u32, really: bool) {
        // SAFETY: `run`'s.
        unsafe {
            barrier::arrive_if(self.empty(stage), really);
            if CLUSTER > 1 {
                let other = self.lane < CLUSTER as u32 && self.lane != self.rank;
                cluster::arrive_if(self.empty(stage), self.lane, really && other);
            }
        }
    }
}
