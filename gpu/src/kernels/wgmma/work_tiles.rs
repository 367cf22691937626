//! What the warp that copies weights pushes to those that multiply: a description of each work tile.
//!
//! So these, which are short of registers and wait for nobody's arithmetic, need no schedule.

use core::ops::Range;

use super::{Accumulator, Block, Problem};
use crate::{
    arch::{barrier, memory},
    launch::Prefill,
    layout::WINDOW,
    sched::{
        pipeline::CountingState,
        schedule::{Place, Schedule},
        work::WorkTile,
    },
};

/// Bits of a scale, in front of the number of k-tiles.
const SCALE_BITS: u32 = WINDOW.ilog2();

/// A place in the ring of descriptions.
pub type WorkTileState = CountingState<{ Prefill::WORK_TILES }>;

/// What is to be done with the sums of a work tile.
pub struct WorkTileInfo {
    /// Where its tile is.
    pub place: Place,
    /// The tile's tokens where they come in groups, from the first of the group to the end.
    pub group: Range<u32>,
    /// Earlier clusters whose sums are added to those of the work tile, which is the last of its output tile.
    pub peers: Range<u32>,
    /// Whether it is.
    pub finishes: bool,
}

impl<P: Problem, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'_, P, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    #[inline(always)]
    pub(super) fn work_tile_full(&self, slot: u32) -> u32 {
        self.full((STAGES + Prefill::TABLES) as u32 + slot)
    }

    #[inline(always)]
    pub(super) fn work_tile_empty(&self, slot: u32) -> u32 {
        self.empty((STAGES + Prefill::TABLES) as u32 + slot)
    }

    #[inline(always)]
    fn work_tile_at(&self, state: WorkTileState) -> u32 {
        self.shared
            + Self::SHAPE.work_tiles_at() as u32
            + state.slot() * Prefill::WORK_TILE_BYTES as u32
    }

    /// Pushes the description of a work tile, whose output tile is at `place`, of a group of tokens if they come in
    /// groups, or that there are no more; with the scale of weights. Returns the earlier clusters that have sums of it.
    #[inline(always)]
    pub(super) unsafe fn push_work_tile(
        &self,
        state: WorkTileState,
        schedule: &Schedule,
        work_tile: &WorkTile,
        place: Place,
        group: Range<u32>,
        scale: u32,
    ) -> Range<u32> {
        let Place {
            row_group,
            token_block,
        } = place;
        let peers = self.peers(schedule, work_tile);
        let finishes = u32::from(work_tile.to == schedule.k_tiles);
        let to = self.work_tile_at(state);
        // SAFETY: the description is nobody's between the two barriers.
        unsafe {
            barrier::wait(self.work_tile_empty(state.slot()), state.parity() ^ 1);
            memory::store_u32x4(
                to,
                [
                    (work_tile.to - work_tile.from) << SCALE_BITS | scale,
                    row_group,
                    token_block,
                    finishes,
                ],
            );
            memory::store_u32x4(to + 16, [peers.start, peers.end, group.start, group.end]);
            barrier::arrive(self.work_tile_full(state.slot()));
        }
        peers
    }

    /// Waits for the description of a work tile, and reads its number of k-tiles; none if there are no more.
    #[inline(always)]
    pub(super) unsafe fn k_tiles_of(&self, state: WorkTileState) -> u32 {
        // SAFETY: the description is complete.
        unsafe {
            barrier::wait(self.work_tile_full(state.slot()), state.parity());
            memory::load_u32(self.work_tile_at(state)) >> SCALE_BITS
        }
    }

    /// The scale of weights, before the description is [popped](Self::pop_work_tile).
    #[inline(always)]
    pub(super) unsafe fn scale_of(&self, state: WorkTileState) -> u32 {
        // SAFETY: as for the number of k-tiles.
        unsafe { memory::load_u32(self.work_tile_at(state)) % (1 << SCALE_BITS) }
    }

    /// What to do with its sums, after which the description is not read again.
    #[inline(always)]
    pub(super) unsafe fn pop_work_tile(&self, state: WorkTileState) -> WorkTileInfo {
        // SAFETY: the description is complete, and stays so until all have arrived.
        unsafe {
            let at = self.work_tile_at(state);
            let [_, row_group, token_block, finishes] = memory::load_u32x4(at);
            let [start, end, first_token, end_token] = memory::load_u32x4(at + 16);
            barrier::arrive(self.work_tile_empty(state.slot()));
            WorkTileInfo {
                place: Place {
                    row_group,
                    token_block,
                },
                group: first_token..end_token,
                peers: if P::GROUPED { 0..0 } else { start..end },
                finishes: P::GROUPED || finishes > 0,
            }
        }
    }
}
