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

impl<const SUMS: usize, const STAGES: usize, const CLUSTER: usize> Block<'_, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Multiplies the warp's band of every unit, and finishes output tiles.
    #[inline(always)]
    pub(super) unsafe fn multiply(&self) {
        let mut schedule = self.schedule();
        let mut ring = Ring::<STAGES>::EMPTYING;
        let mut table = 0;
        while let Some(share) = schedule.next() {
            let mut acc = <[f32; SUMS]>::ZERO;
            let mut units = share.to - share.from;
            let mut first = true;
            // Twice, for a jump back takes as long as a sixth of a unit's instructions.
            'share: loop {
                unroll!(_U < 2 => {
                // SAFETY: `run`'s; the stage is full, and stays so until it is released.
                let Operands {
                    bytes: [[a, b, c, d], [e, f, g, h]],
                    words,
                } = unsafe {
                    barrier::wait(self.full(ring.stage), ring.parity);
                    self.operands(ring.stage)
                };
                let last = ring.last();
                let x = wgmma::swizzled_rows(self.stage(ring.stage));
                let table_empty = self.table_empty(table);
                let table_at = self.bases(table);
                macro_rules! kstep {
                    ($s:literal, $bytes:expr, $bases:expr) => {
                        let bases = $bases;
                        // Until then the registers of the fragment are the last unit's.
                        wgmma::wait::<IN_FLIGHT>();
                        if $s == IN_FLIGHT {
                            self.release(last, !first);
                        }
                        let fragment = decode::kstep::<$s>($bytes, words, bases);
                        acc.multiply(fragment, wgmma::kstep(x, $s));
                        wgmma::commit();
                    };
                }
                // SAFETY: `run`'s; the stage is full, and stays so until it is released.
                unsafe {
                    kstep!(0, [a, b], memory::load_u32x4(table_at));
                    kstep!(1, [c, d], memory::load_u32x4(table_at + 512));
                    kstep!(2, [e, f], memory::load_u32x4(table_at + 2 * 512));
                    kstep!(3, [g, h], memory::load_u32x4(table_at + 3 * 512));
                    barrier::arrive(table_empty);
                }
                ring.advance();
                table = (table + 1) % Prefill::TABLES as u32;
                first = false;
                units -= 1;
                if units == 0 {
                    break 'share;
                }
                });
            }
            acc.finish();
            // SAFETY: `run`'s.
            unsafe {
                self.release(ring.last(), true);
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
                    this.store(
                        place,
                        schedule.before(thread::opaque(self.args.split), &share, self.cluster),
                        &acc,
                    );
                }
            }
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

    /// Who arrives when a stage is full: each lane that writes bases, for what it has written, and
    /// the two lanes that start copies.
    pub(super) const FILLERS: u32 = 2 + (Prefill::PATCHERS * LANES) as u32;
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
