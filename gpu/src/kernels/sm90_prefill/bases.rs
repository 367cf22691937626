//! The warps that write tables of bases, ahead of those that multiply.

use super::{
    Accumulator, Block,
    patches::{self, Patches, Ready},
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

    /// Keeps one table ahead of the warps that multiply: of every so-many-th unit, puts the base of
    /// each patched weight in its place, and the matrix's base back when the unit is done with.
    ///
    /// Nothing waits for memory: a lane asks for the patch range of one strip of one of the warp's
    /// next units, eight of them ahead, and all of them for patches one unit ahead, or two where units
    /// are short: two gained 1.5 % for up to 32 tokens in tiles of 64.
    #[inline(always)]
    pub(super) unsafe fn write_bases(&self, patcher: u32) {
        const STRIPS: u32 = Prefill::STRIPS as u32;
        const PATCHERS: u32 = Prefill::PATCHERS as u32;
        const { assert!(Prefill::TABLES == Prefill::PATCHERS) };
        /// Units from the first of those whose ranges the warp's lanes hold to the first that follows.
        const UNITS: u32 = PATCHERS * LANES as u32 / STRIPS;

        let (all, lane) = (self.args.patches, self.lane);
        let base = decode::base_pair(self.args.base as u8);
        let table = self.table(patcher);
        let strip_table = table + patches::strip_of(lane) * Prefill::STRIP_TABLE_BYTES as u32;
        let mut left = (self.schedule().units() + PATCHERS - 1 - patcher) / PATCHERS;
        let mut ahead = self.cursor();
        ahead.skip(patcher + PATCHERS * (lane / STRIPS));
        let mut ranges = self.patch_range(&ahead, lane % STRIPS);
        self.prefetch_patches(ranges);
        ahead.skip(UNITS);
        let mut next_ranges = self.patch_range(&ahead, lane % STRIPS);
        // The lane with the first range that is due next.
        let mut due = 0;
        let ask = |ranges: [u32; 2], due: u32| {
            let range = ranges.map(|end| thread::shuffle(end, due + patches::strip_of(lane)));
            // SAFETY: `run`'s.
            unsafe { Patches::load(all, range, lane) }
        };
        // Patches of the next unit, and where units are short of the one after it.
        let two = Self::FEW_TOKENS;
        let mut coming = [ask(ranges, due); 2];
        if two {
            due += STRIPS;
            coming[1] = ask(ranges, due);
        }
        let mut stored = Ready::NONE;
        let mut parity = 1;
        while left > 0 {
            left -= 1;
            due += STRIPS;
            if due == LANES as u32 {
                // All of these ranges have been used.
                due = 0;
                ranges = next_ranges;
                self.prefetch_patches(ranges);
                ahead.skip(UNITS);
                next_ranges = self.patch_range(&ahead, lane % STRIPS);
            }
            let ready = coming[0].ready(lane, strip_table);
            coming[0] = coming[1];
            coming[usize::from(two)] = ask(ranges, due);
            // Between these two barriers there are stores only: the warps that multiply wait.
            // SAFETY: `run`'s.
            unsafe {
                barrier::wait(self.table_empty(patcher), parity);
                stored.restore(table, base, lane);
                // One lane's patch may be where another's was.
                thread::sync_warp();
                ready.store(strip_table, all);
                barrier::arrive(self.table_full(patcher));
            }
            stored = ready;
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
