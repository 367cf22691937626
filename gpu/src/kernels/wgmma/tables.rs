//! The warps that write patch tables, ahead of those that multiply.

use super::{
    Accumulator, Block, Problem,
    patches::{self, Patches, Ready},
};
use crate::{
    arch::{barrier, copy, memory, thread},
    kernels,
    launch::Prefill,
    layout::*,
    sched::schedule::Cursor,
};

impl<P: Problem, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'_, P, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Makes an outlier warp's table one without patches.
    #[inline(always)]
    unsafe fn clear_table(&self, table: u32, rest: u32) {
        let mut at = 16 * self.lane;
        while at < Prefill::TABLE_BYTES as u32 {
            // SAFETY: inside the table.
            unsafe { memory::store_u32x4(table + at, [rest; 4]) };
            at += 16 * LANES as u32;
        }
    }

    /// Keeps one table ahead of the warps that multiply: of every so-many-th k-tile, puts each patch's high byte in
    /// its place, and the window's again when the k-tile is done with.
    ///
    /// Nothing waits for memory: a lane asks for the patch range of one strip of one of the warp's
    /// next k-tiles, eight of them ahead, and all of them for patches one k-tile ahead. A warp waits for all
    /// loads that it has asked for at once, whichever it needs; so what has come is used before more is
    /// asked for, and ranges change in a place of their own, or each k-tile would copy them and wait.
    #[inline(always)]
    pub(super) unsafe fn write_table(&self, outlier_warp: u32) {
        const STRIPS: u32 = Prefill::STRIPS as u32;
        const OUTLIER_WARPS: u32 = Prefill::OUTLIER_WARPS as u32;
        const { assert!(Prefill::TABLES == Prefill::OUTLIER_WARPS) };
        /// k-tiles whose ranges the warp's lanes hold.
        const HELD: u32 = LANES as u32 / STRIPS;

        let (all, lane) = (self.args.patches, self.lane);
        // SAFETY: `run`'s.
        let rest = unsafe { window_quad(kernels::base(self.args.dense)) };
        let table = self.table(outlier_warp);
        let strip_table = table + patches::strip_of(lane) * Prefill::STRIP_TABLE_BYTES as u32;
        let mut left =
            (self.schedule().total_k_tiles() + OUTLIER_WARPS - 1 - outlier_warp) / OUTLIER_WARPS;
        let mut ahead = self.cursor();
        let mut expert = self.skip(&mut ahead, outlier_warp + OUTLIER_WARPS * (lane / STRIPS));
        let mut ranges = self.patch_range(&ahead, expert, lane % STRIPS);
        self.prefetch_patches(ranges);
        expert = self.skip(&mut ahead, OUTLIER_WARPS * HELD);
        let mut next_ranges = self.patch_range(&ahead, expert, lane % STRIPS);
        if P::GROUPED {
            expert = self.skip(&mut ahead, OUTLIER_WARPS * HELD);
        }
        let ask = |ranges: [u32; 2], k_tile: u32| {
            let from = k_tile * STRIPS + patches::strip_of(lane);
            let range = ranges.map(|end| thread::shuffle(end, from));
            // SAFETY: `run`'s.
            unsafe { Patches::load(all, range, lane) }
        };
        let mut coming = ask(ranges, 0);
        // By now the base has come. SAFETY: the table is the warp's, and nobody reads it yet.
        unsafe { self.clear_table(table, rest) };
        thread::sync_warp();
        let mut stored = Ready::NONE;
        let mut parity = 1;
        // One k-tile; the one after it is the `$next`-th of those whose ranges lanes hold, after `$change`.
        macro_rules! k_tile {
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
                    barrier::wait(self.table_empty(outlier_warp), parity);
                    stored.clear(table, rest, lane);
                    // One lane's patch may be where another's was.
                    thread::sync_warp();
                    ready.store(strip_table, all);
                    barrier::arrive(self.table_full(outlier_warp));
                }
                stored = ready;
                parity ^= 1;
            };
        }
        loop {
            let mut next = 1;
            while next < HELD {
                k_tile!(next, {});
                next += 1;
            }
            k_tile!(0, {
                ranges = next_ranges;
                self.prefetch_patches(ranges);
                if !P::GROUPED {
                    expert = self.skip(&mut ahead, OUTLIER_WARPS * HELD);
                }
                next_ranges = self.patch_range(&ahead, expert, lane % STRIPS);
                if P::GROUPED {
                    // Asked for now, for the range is wanted at once when lanes come to it.
                    expert = self.skip(&mut ahead, OUTLIER_WARPS * HELD);
                }
            });
        }
    }

    /// Advances so many k-tiles, to one of the expert whose number is returned.
    #[inline(always)]
    fn skip(&self, k_tile: &mut Cursor, k_tiles: u32) -> u32 {
        k_tile.skip(k_tiles);
        if k_tile.is_done() {
            return 0;
        }
        self.group(k_tile.place).expert
    }

    /// The patches of a k-tile's tile.
    #[inline(always)]
    fn patch_range(&self, k_tile: &Cursor, expert: u32, strip: u32) -> [u32; 2] {
        if k_tile.is_done() {
            return [0; 2];
        }
        // SAFETY: there is one offset more than there are tiles.
        unsafe {
            let Cursor {
                schedule,
                place,
                work_tile,
                ..
            } = k_tile;
            let tile = self.tile(schedule, *place, expert, work_tile.from, strip);
            let offsets = self.args.offsets.add(tile);
            [
                memory::load_global_u32(offsets),
                memory::load_global_u32(offsets.add(1)),
            ]
        }
    }

    /// Brings patches to the L2 cache, as many as one line holds.
    #[inline(always)]
    fn prefetch_patches(&self, [from, _]: [u32; 2]) {
        copy::prefetch(self.args.patches.wrapping_add(from as usize).cast());
    }
}
