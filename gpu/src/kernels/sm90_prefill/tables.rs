//! The warps that write patch tables, ahead of those that multiply.

use super::{
    Accumulator, Block,
    patches::{self, Patches, Ready},
};
use crate::{
    arch::{barrier, copy, memory, thread},
    launch::Prefill,
    layout::*,
    schedule::Cursor,
};

impl<const SUMS: usize, const STAGES: usize, const CLUSTER: usize> Block<'_, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Makes the tables ones without patches.
    #[inline(always)]
    pub(super) unsafe fn clear_tables(&self) {
        const BYTES: u32 = (Prefill::TABLES * Prefill::TABLE_BYTES) as u32;
        let rest = [window_quad(self.args.base as u8); 4];
        let mut at = 16 * (self.warp * LANES as u32 + self.lane);
        while at < BYTES {
            // SAFETY: inside the tables.
            unsafe { memory::store_u32x4(self.table(0) + at, rest) };
            at += 16 * Prefill::THREADS as u32;
        }
    }

    /// Keeps one table ahead of the warps that multiply: of every so-many-th unit, puts each patch's high byte in
    /// its place, and the window's again when the unit is done with.
    ///
    /// Nothing waits for memory: a lane asks for the patch range of one strip of one of the warp's
    /// next units, eight of them ahead, and all of them for patches one unit ahead. A warp waits for all
    /// loads that it has asked for at once, whichever it needs; so what has come is used before more is
    /// asked for, and ranges change in a place of their own, or each unit would copy them and wait.
    #[inline(always)]
    pub(super) unsafe fn write_table(&self, patcher: u32) {
        const STRIPS: u32 = Prefill::STRIPS as u32;
        const PATCHERS: u32 = Prefill::PATCHERS as u32;
        const { assert!(Prefill::TABLES == Prefill::PATCHERS) };
        /// Units whose ranges the warp's lanes hold.
        const HELD: u32 = LANES as u32 / STRIPS;

        let (all, lane) = (self.args.patches, self.lane);
        let rest = window_quad(self.args.base as u8);
        let table = self.table(patcher);
        let strip_table = table + patches::strip_of(lane) * Prefill::STRIP_TABLE_BYTES as u32;
        let mut left = (self.schedule().units() + PATCHERS - 1 - patcher) / PATCHERS;
        let mut ahead = self.cursor();
        ahead.skip(patcher + PATCHERS * (lane / STRIPS));
        let mut ranges = self.patch_range(&ahead, lane % STRIPS);
        self.prefetch_patches(ranges);
        ahead.skip(PATCHERS * HELD);
        let mut next_ranges = self.patch_range(&ahead, lane % STRIPS);
        let ask = |ranges: [u32; 2], unit: u32| {
            let from = unit * STRIPS + patches::strip_of(lane);
            let range = ranges.map(|end| thread::shuffle(end, from));
            // SAFETY: `run`'s.
            unsafe { Patches::load(all, range, lane) }
        };
        let mut coming = ask(ranges, 0);
        let mut stored = Ready::NONE;
        let mut parity = 1;
        // One unit; the one after it is the `$next`-th of those whose ranges lanes hold, after `$change`.
        macro_rules! unit {
            ($next:expr, $change:block) => {
                if left == 0 {
                    break;
                }
                left -= 1;
                let ready = coming.ready(lane, strip_table);
                $change
                coming = ask(ranges, $next);
                // Between these two barriers there are stores only: the warps that multiply wait.
                // SAFETY: `run`'s.
                unsafe {
                    barrier::wait(self.table_empty(patcher), parity);
                    stored.clear(table, rest, lane);
                    // One lane's patch may be where another's was.
                    thread::sync_warp();
                    ready.store(strip_table, all);
                    barrier::arrive(self.table_full(patcher));
                }
                stored = ready;
                parity ^= 1;
            };
        }
        loop {
            let mut next = 1;
            while next < HELD {
                unit!(next, {});
                next += 1;
            }
            unit!(0, {
                ranges = next_ranges;
                self.prefetch_patches(ranges);
                ahead.skip(PATCHERS * HELD);
                next_ranges = self.patch_range(&ahead, lane % STRIPS);
            });
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
