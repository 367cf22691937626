//! What the warp that copies weights tells those that multiply of each share of an output tile.
//!
//! So these, which are short of registers and wait for nobody's arithmetic, need no schedule.

use core::ops::Range;

use super::{Accumulator, Block, ring};
use crate::{
    arch::{barrier, memory},
    launch::Prefill,
    schedule::{Place, Schedule, Share},
};

/// A place in the ring of descriptions.
pub type Turn = ring::Turn<{ Prefill::SHARES }>;

/// What is to be done with the sums of a share.
pub struct Order {
    /// Where its tile is.
    pub place: Place,
    /// Earlier clusters whose sums are added to those of the share, which is the last of its tile.
    pub before: Range<u32>,
    /// Whether it is.
    pub finishes: bool,
}

impl<const SUMS: usize, const STAGES: usize, const CLUSTER: usize> Block<'_, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    #[inline(always)]
    pub(super) fn share_full(&self, share: u32) -> u32 {
        self.full((STAGES + Prefill::TABLES) as u32 + share)
    }

    #[inline(always)]
    pub(super) fn share_empty(&self, share: u32) -> u32 {
        self.empty((STAGES + Prefill::TABLES) as u32 + share)
    }

    #[inline(always)]
    fn share(&self, turn: Turn) -> u32 {
        self.shared + Self::SHAPE.shares_at() as u32 + turn.slot() * Prefill::SHARE_BYTES as u32
    }

    /// Tells of a share, whose tile is at `place`, or that there are no more. Returns the earlier clusters that have
    /// sums of it.
    #[inline(always)]
    pub(super) unsafe fn tell(
        &self,
        turn: Turn,
        schedule: &Schedule,
        share: &Share,
        place: Place,
    ) -> Range<u32> {
        let Place {
            row_group,
            token_block,
        } = place;
        let before = self.before(schedule, share);
        let finishes = u32::from(share.to == schedule.tile_cols);
        let to = self.share(turn);
        // SAFETY: the description is nobody's between the two barriers.
        unsafe {
            barrier::wait(self.share_empty(turn.slot()), turn.parity() ^ 1);
            memory::store_u32x4(
                to,
                [share.to - share.from, row_group, token_block, finishes],
            );
            memory::store_u32x4(to + 16, [before.start, before.end, 0, 0]);
            barrier::arrive(self.share_full(turn.slot()));
        }
        before
    }

    /// The units of the share whose turn it is; none if there are no more.
    #[inline(always)]
    pub(super) unsafe fn units(&self, turn: Turn) -> u32 {
        // SAFETY: the description is complete.
        unsafe {
            barrier::wait(self.share_full(turn.slot()), turn.parity());
            memory::load_u32(self.share(turn))
        }
    }

    /// What to do with its sums, after which the description is not read again.
    #[inline(always)]
    pub(super) unsafe fn order(&self, turn: Turn) -> Order {
        // SAFETY: the description is complete, and stays so until all have arrived.
        unsafe {
            let at = self.share(turn);
            let [_, row_group, token_block, finishes] = memory::load_u32x4(at);
            let [start, end, _, _] = memory::load_u32x4(at + 16);
            barrier::arrive(self.share_empty(turn.slot()));
            Order {
                place: Place {
                    row_group,
                    token_block,
                },
                before: start..end,
                finishes: finishes > 0,
            }
        }
    }
}
