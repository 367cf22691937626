//! The warps that write tables of bases, ahead of those that multiply.

use super::{
    Accumulator, Block,
    patches::{Patches, Ready},
};
use crate::{
    arch::{barrier, copy, memory, thread},
    decode,
    launch::Prefill,
    layout::*,
    schedule::Cursor,
};

impl<const SUMS: usize, const STAGES: usize, const CLUSTER: usize> Block<'_, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Fills the tables with the matrix's base.
    #[inline(always)]
    pub(super) unsafe fn clear_tables(&self) {
        const BYTES: u32 = (Prefill::TABLES * Prefill::TABLE_BYTES) as u32;
        let base = decode::base_pair(self.args.base as u8);
        let mut at = 16 * (self.warp * LANES as u32 + self.lane);
        while at < BYTES {
            // SAFETY: inside the tables.
            unsafe { memory::store_u32x4(self.table(0) + at, [base; 4]) };
            at += 16 * Prefill::THREADS as u32;
        }
    }

    /// Keeps the tables of bases one unit or two ahead of the warps that multiply: puts the base of
    /// each patched weight in its place, and the matrix's base back when the unit is done with.
    /// The warp does so for one half of the strips, or more, if there are fewer such warps.
    ///
    /// Nothing waits for memory: a lane asks for the patch range of one strip of every sixteenth
    /// unit, sixteen units ahead, and all of them for patches some units ahead.
    #[inline(always)]
    pub(super) unsafe fn write_bases(&self, patcher: u32) {
        /// Strips of a warp, and units whose ranges its lanes hold.
        const STRIPS: usize = Prefill::STRIPS / Prefill::PATCHERS;
        const UNITS: usize = LANES / STRIPS;
        const TABLES: usize = Prefill::TABLES;
        const { assert!(TABLES == 2 && UNITS.is_multiple_of(TABLES)) };

        let (all, lane, nowhere) = (self.args.patches, self.lane, self.nowhere());
        let base = decode::base_pair(self.args.base as u8);
        let first_strip = patcher * STRIPS as u32;
        let own_strip = first_strip + lane % STRIPS as u32;
        let table = |table: usize, strip: usize| {
            self.table(table as u32)
                + (first_strip + strip as u32) * Prefill::STRIP_TABLE_BYTES as u32
        };
        let mut left = self.schedule().units();
        let mut ahead = self.cursor();
        ahead.skip(lane / STRIPS as u32);
        let mut ranges = self.patch_range(&ahead, own_strip);
        self.prefetch_patches(ranges);
        ahead.skip(UNITS as u32);
        let mut next_ranges = self.patch_range(&ahead, own_strip);
        // The lane with the range that is due next.
        let mut due = 0;
        let ask = |ranges: [u32; 2], due: &mut u32| {
            let mut patches = [Patches::default(); STRIPS];
            unroll!(S < STRIPS => {
                let range = ranges.map(|end| thread::shuffle(end, *due + S as u32));
                // SAFETY: `run`'s.
                patches[S] = unsafe { Patches::load(all, range, lane) };
            });
            *due = (*due + STRIPS as u32) % LANES as u32;
            patches
        };
        // Of the units to come, one is ready, and the patches of two more are on their way.
        let mut coming = [[Patches::default(); STRIPS]; TABLES];
        unroll!(T < TABLES => { coming[T] = ask(ranges, &mut due); });
        let mut ready = [Ready::none(nowhere); STRIPS];
        unroll!(S < STRIPS => { ready[S] = coming[0][S].ready(lane, table(0, S), nowhere); });
        coming[0] = ask(ranges, &mut due);
        let mut stored = [[Ready::none(nowhere); STRIPS]; TABLES];
        let mut parity = 1;
        loop {
            unroll!(T < TABLES => {
                if left == 0 {
                    return;
                }
                left -= 1;
                const NEXT: usize = (T + 1) % TABLES;
                // Between these two barriers there are stores only: the warps that multiply wait.
                // SAFETY: `run`'s.
                unsafe {
                    barrier::wait(self.table_empty(T as u32), parity);
                    unroll!(S < STRIPS => { stored[T][S].restore(table(T, S), base, lane); });
                    // One lane's patch may be where another's was.
                    thread::sync_warp();
                    unroll!(S < STRIPS => { ready[S].store(table(T, S), all, lane); });
                    barrier::arrive(self.table_full(T as u32));
                }
                stored[T] = ready;
                unroll!(S < STRIPS => {
                    ready[S] = coming[NEXT][S].ready(lane, table(NEXT, S), nowhere);
                });
                coming[NEXT] = ask(ranges, &mut due);
                // All of these ranges have been used.
                if NEXT == TABLES - 1 && due == 0 {
                    ranges = next_ranges;
                    self.prefetch_patches(ranges);
                    ahead.skip(UNITS as u32);
                    next_ranges = self.patch_range(&ahead, own_strip);
                }
            });
            parity ^= 1;
        }
    }

    /// The patches of a unit's tile.
    #[inline(always)]
    pub(super) fn patch_range(&self, unit: &Cursor, strip: u32) -> [u32; 2] {
        if unit.is_done() {
            return [0; 2];
        }
        // SAFETY: there is one offset more than there are tiles.
        unsafe {
            let tile = self.tile(&unit.schedule, unit.place, unit.share.from, strip);
            let offsets = self.args.offsets.add(tile);
            [
                memory::load_global_u32(offsets),
                memory::load_global_u32(offsets.add(1)),
            ]
        }
    }

    /// Brings patches to the L2 cache, as many as one line holds.
    #[inline(always)]
    pub(super) fn prefetch_patches(&self, [from, _]: [u32; 2]) {
        copy::prefetch(self.args.patches.wrapping_add(from as usize).cast());
    }
}
