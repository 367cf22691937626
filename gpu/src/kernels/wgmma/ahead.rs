//! Where a cluster's work tiles are, and whose tokens they have, for the warps that copy.

use core::mem;

use super::{Accumulator, Block, Problem};
use crate::{
    args::Group,
    sched::{
        schedule::{Place, Schedule},
        work::WorkTile,
    },
};

/// Place and tokens of an output tile.
#[derive(Clone, Copy, Default)]
pub struct Located {
    pub place: Place,
    pub group: Group,
}

/// Those of the next work tile, where tokens come in groups, of which only memory tells. They are asked for before the
/// k-tiles of the work tile ahead, so that no copy waits for them.
pub struct Ahead(Located);

impl<P: Problem, const SUMS: usize, const STAGES: usize, const CLUSTER: usize>
    Block<'_, P, SUMS, STAGES, CLUSTER>
where
    [f32; SUMS]: Accumulator,
{
    /// Asks for the first of a schedule.
    #[inline(always)]
    pub(super) fn ahead(&self, schedule: &Schedule) -> Ahead {
        Ahead(if P::GROUPED {
            self.next_of(*schedule)
        } else {
            Located::default()
        })
    }

    /// Place and tokens of a work tile, the one after those before; asks for those of the next in what is left of the
    /// schedule.
    #[inline(always)]
    pub(super) fn locate(
        &self,
        ahead: &mut Ahead,
        work_tile: &WorkTile,
        schedule: &Schedule,
    ) -> Located {
        if P::GROUPED {
            return mem::replace(&mut ahead.0, self.next_of(*schedule));
        }
        let place = self.tiles().place(work_tile.tile);
        Located {
            place,
            group: self.group(place),
        }
    }

    /// Of the next work tile of a schedule, if there is one.
    #[inline(always)]
    fn next_of(&self, mut schedule: Schedule) -> Located {
        let Some(work_tile) = schedule.next() else {
            return Located::default();
        };
        let place = self.tiles().place(work_tile.tile);
        let group = self.group(place);
        Located { place, group }
    }
}
