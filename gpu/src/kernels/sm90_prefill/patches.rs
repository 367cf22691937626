//! The patches of a unit on their way from global memory into a table of bases.
//!
//! Some lanes of a warp take the patches of each strip's tile, a pair at a time.

use crate::{
    arch::{memory, thread},
    launch::Prefill,
    layout::*,
};

/// Lanes that take a strip's patches.
const STRIP_LANES: usize = LANES / Prefill::STRIPS;
/// Pairs of patches that a lane holds.
const PAIRS: usize = 4;
/// Patches from one pair of a lane to the next, and all that a strip's lanes hold.
const STEP: u32 = 2 * STRIP_LANES as u32;
const HELD: u32 = STEP * PAIRS as u32;

/// A lane's patches of a unit, from wherever in four bytes those of its strip start.
#[derive(Clone, Copy)]
pub struct Patches {
    /// Those of the strip.
    from: u32,
    to: u32,
    pairs: [u32; PAIRS],
}

/// Patches that can be stored as they are: a lane's, for one table.
#[derive(Clone, Copy)]
pub struct Ready {
    /// Where the bases of each pair go; 0 if they are none of the strip's.
    at: [[u32; 2]; PAIRS],
    /// The bases, as patches lie in their pairs.
    bases: [u32; PAIRS],
    /// Patches of the strip that no lane has: from here on, every so-many-th pair.
    more: u32,
    to: u32,
    /// Whether any strip has some. The same in all lanes, and seldom.
    is_long: bool,
}

/// The strip whose patches a lane takes.
#[inline(always)]
pub fn strip_of(lane: u32) -> u32 {
    lane / STRIP_LANES as u32
}

impl Patches {
    /// Index of the lane's first.
    #[inline(always)]
    fn first(&self, lane: u32) -> u32 {
        (self.from & !1) + 2 * (lane % STRIP_LANES as u32)
    }

    /// Asks for those of a strip, from `from` to `to`.
    #[inline(always)]
    pub unsafe fn load(all: *const u16, [from, to]: [u32; 2], lane: u32) -> Self {
        let mut patches = Self {
            from,
            to,
            pairs: [0; PAIRS],
        };
        let first = patches.first(lane);
        unroll!(P < PAIRS => {
            let index = first + STEP * P as u32;
            // SAFETY: sections of patches start and end at multiples of four bytes.
            patches.pairs[P] = unsafe {
                memory::load_global_u32_if(all.add(index as usize).cast(), index < to)
            };
        });
        patches
    }

    /// Works out where in the strip's `table` they go.
    #[inline(always)]
    pub fn ready(&self, lane: u32, table: u32) -> Ready {
        let first = self.first(lane);
        let mut ready = Ready::NONE;
        unroll!(P < PAIRS => {
            unroll!(H < 2 => {
                let index = first + STEP * P as u32 + H as u32;
                // Opaque, or the compiler would work it out where it is needed: between two barriers.
                if index.wrapping_sub(self.from) < self.to - self.from {
                    ready.at[P][H] = place(table, self.pairs[P], H);
                }
                ready.at[P][H] = thread::opaque(ready.at[P][H]);
            });
            let (a, b) = (patch(self.pairs[P], 0).base(), patch(self.pairs[P], 1).base());
            ready.bases[P] = thread::opaque(u32::from(a) | u32::from(b) << 16);
        });
        ready.more = first + HELD;
        ready.to = self.to;
        ready.is_long = thread::any((self.from & !1) + HELD < self.to);
        ready
    }
}

impl Ready {
    /// None at all.
    pub const NONE: Self = Self {
        at: [[0; 2]; PAIRS],
        bases: [0; PAIRS],
        more: 0,
        to: 0,
        is_long: false,
    };

    /// Stores the patched bases.
    #[inline(always)]
    pub unsafe fn store(&self, table: u32, all: *const u16) {
        // SAFETY: inside the table; pairs are in the section, which ends at a multiple of four bytes.
        unsafe {
            unroll!(P < PAIRS => {
                let [a, b] = self.at[P];
                memory::store_u16_if(a, self.bases[P] as u16, a > 0);
                memory::store_u16_if(b, (self.bases[P] >> 16) as u16, b > 0);
            });
            if self.is_long {
                let mut index = self.more;
                while thread::any(index < self.to) {
                    let pair = all.add(index as usize).cast();
                    let pair = memory::load_global_u32_if(pair, index < self.to);
                    unroll!(H < 2 => {
                        let base = patch(pair, H).base();
                        let own = index + (H as u32) < self.to;
                        memory::store_u16_if(place(table, pair, H), base, own);
                    });
                    index += STEP;
                }
            }
        }
    }

    /// Puts the matrix's `base` back, in the unit's `table`.
    #[inline(always)]
    pub unsafe fn restore(&self, table: u32, base: u32, lane: u32) {
        // SAFETY: inside the table.
        unsafe {
            unroll!(P < PAIRS => {
                let [a, b] = self.at[P];
                memory::store_u16_if(a, base as u16, a > 0);
                memory::store_u16_if(b, base as u16, b > 0);
            });
            if self.is_long {
                for i in 0..Prefill::TABLE_BYTES as u32 / 512 {
                    memory::store_u32x4(table + 512 * i + 16 * lane, [base; 4]);
                }
            }
        }
    }
}

/// Where the base of a pair's first or second patch goes.
#[inline(always)]
fn place(table: u32, pair: u32, second: usize) -> u32 {
    table + 2 * u32::from(patch(pair, second).position())
}

/// A pair's first or second patch.
#[inline(always)]
fn patch(pair: u32, second: usize) -> Patch {
    Patch((pair >> (16 * second)) as u16)
}
