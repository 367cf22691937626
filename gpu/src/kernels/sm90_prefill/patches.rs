//! The patches of a tile on their way from global memory into a table of bases.

use crate::{arch::memory, launch::Prefill, layout::*};

/// The patches of a tile: a pair of them for each lane, from wherever in four bytes they start.
#[derive(Clone, Copy, Default)]
pub struct Patches {
    from: u32,
    to: u32,
    /// The lane's pair.
    pair: u32,
}

/// Patches that can be stored as they are: those of a [`Patches`], for one table.
#[derive(Clone, Copy)]
pub struct Ready {
    /// Where the lane's two bases go; out of the way if they are none of the tile's.
    at: [u32; 2],
    /// The bases.
    bases: [u16; 2],
    /// Patches of the tile that no lane has: from here on, every so-many-th pair.
    more: u32,
    to: u32,
}

impl Patches {
    /// Patches of a tile that the lanes of a warp have in registers.
    pub const HELD: u32 = 2 * LANES as u32;

    /// Index of the lane's first.
    #[inline(always)]
    pub fn first(&self, lane: u32) -> u32 {
        (self.from & !1) + 2 * lane
    }

    /// Asks for those from `from` to `to`.
    #[inline(always)]
    pub unsafe fn load(all: *const u16, [from, to]: [u32; 2], lane: u32) -> Self {
        let mut patches = Self { from, to, pair: 0 };
        let first = patches.first(lane);
        // SAFETY: there is one at `from`, `first` or behind it; sections of patches start and end
        // at multiples of four bytes.
        unsafe {
            let pair = all.add(first as usize).cast();
            patches.pair = memory::load_global_u32_if(pair, from < to && first < to);
        }
        patches
    }

    /// Works out where in `table` they go, those that do not belong there to `nowhere`.
    #[inline(always)]
    pub fn ready(&self, lane: u32, table: u32, nowhere: u32) -> Ready {
        let first = self.first(lane);
        let own = |index: u32| index.wrapping_sub(self.from) < self.to - self.from;
        let patches = [Patch(self.pair as u16), Patch((self.pair >> 16) as u16)];
        let at = |i: usize| match own(first + i as u32) {
            true => place(table, patches[i]),
            false => nowhere,
        };
        Ready {
            at: [at(0), at(1)],
            bases: patches.map(Patch::base),
            more: first + Self::HELD,
            to: self.to,
        }
    }
}

impl Ready {
    /// None at all.
    #[inline(always)]
    pub fn none(nowhere: u32) -> Self {
        Self {
            at: [nowhere; 2],
            bases: [0; 2],
            more: 0,
            to: 0,
        }
    }

    /// Whether there are patches that no lane has. The same in all lanes, and seldom.
    #[inline(always)]
    pub fn is_long(&self, lane: u32) -> bool {
        self.more.wrapping_sub(2 * lane) < self.to
    }

    /// Stores the patched bases.
    #[inline(always)]
    pub unsafe fn store(&self, table: u32, all: *const u16, lane: u32) {
        // SAFETY: inside the table; pairs are in the section, which ends at a multiple of four bytes.
        unsafe {
            memory::store_u16(self.at[0], self.bases[0]);
            memory::store_u16(self.at[1], self.bases[1]);
            if self.is_long(lane) {
                let mut index = self.more;
                while index < self.to {
                    let pair = memory::load_global_u32(all.add(index as usize).cast());
                    let (a, b) = (Patch(pair as u16), Patch((pair >> 16) as u16));
                    memory::store_u16(place(table, a), a.base());
                    memory::store_u16_if(place(table, b), b.base(), index + 1 < self.to);
                    index += Patches::HELD;
                }
            }
        }
    }

    /// Puts the matrix's `base` back.
    #[inline(always)]
    pub unsafe fn restore(&self, table: u32, base: u32, lane: u32) {
        // SAFETY: inside the table.
        unsafe {
            memory::store_u16(self.at[0], base as u16);
            memory::store_u16(self.at[1], base as u16);
            if self.is_long(lane) {
                for i in 0..Prefill::STRIP_TABLE_BYTES as u32 / 512 {
                    memory::store_u32x4(table + 512 * i + 16 * lane, [base; 4]);
                }
            }
        }
    }
}

/// Where a patch's base goes.
#[inline(always)]
fn place(table: u32, patch: Patch) -> u32 {
    table + 2 * u32::from(patch.position())
}
