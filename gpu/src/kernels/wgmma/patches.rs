//! The patches of a k-tile on their way from global memory into a table.
//!
//! Eight lanes of a warp take the patches of each strip's tile, a pair at a time.

use crate::{
    arch::{memory, thread},
    launch::Prefill,
    layout::*,
};

/// Lanes that take a strip's patches.
const STRIP_LANES: usize = LANES / Prefill::STRIPS;
/// Pairs of patches that a lane holds, and those that most strips have no more of for each lane.
const PAIRS: usize = 3;
const USUAL: usize = 2;
/// Patches from one pair of a lane to the next, and all that a strip's lanes hold.
const STEP: u32 = 2 * STRIP_LANES as u32;
const HELD: u32 = STEP * PAIRS as u32;

/// A lane's patches of a k-tile, from wherever in four bytes those of its strip start.
#[derive(Clone, Copy)]
pub struct Patches {
    /// Those of the strip.
    from: u32,
    to: u32,
    pairs: [u32; PAIRS],
}

/// A pair of patches that can be stored as they are.
#[derive(Clone, Copy)]
struct Pair {
    /// Where they go; 0 if they are none of the strip's.
    at: [u32; 2],
    /// Their high bytes, in the lowest byte of each half.
    high: u32,
}

/// Patches that can be stored as they are: a lane's, for one table.
#[derive(Clone, Copy)]
pub struct Ready {
    pairs: [Pair; PAIRS],
    /// Patches of the strip that no lane has: from here on, every so-many-th pair.
    more: u32,
    to: u32,
    /// Whether any strip has more than is usual, and more than lanes hold. The same in all lanes.
    is_many: bool,
    is_long: bool,
}

/// Which of the strips is the one whose patches a lane takes.
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
    ///
    /// # Safety
    /// The range is in the section that starts at `all`.
    #[inline(always)]
    pub unsafe fn load(all: *const u16, [from, to]: [u32; 2], lane: u32) -> Self {
        let mut patches = Self {
            from,
            to,
            pairs: [0; PAIRS],
        };
        let first = patches.first(lane);
        let at = all.wrapping_add(first as usize);
        unroll!(P < PAIRS => {
            let ahead = STEP * P as u32;
            // SAFETY: sections of patches start and end at multiples of four bytes.
            patches.pairs[P] = unsafe {
                memory::load_global_u32_if(at.wrapping_add(ahead as usize).cast(), first + ahead < to)
            };
        });
        patches
    }

    /// The lane's `P`-th pair, which goes to the strip's `table`.
    #[inline(always)]
    fn pair<const P: usize>(&self, lane: u32, table: u32) -> Pair {
        let pair = self.pairs[P];
        let mut at = [0; 2];
        unroll!(H < 2 => {
            let index = self.first(lane) + STEP * P as u32 + H as u32;
            // Opaque, or the compiler would work it out where it is needed: between two barriers.
            if index.wrapping_sub(self.from) < self.to - self.from {
                at[H] = place(table, pair, H);
            }
            at[H] = thread::opaque(at[H]);
        });
        // Opaque, too.
        let (a, b) = (patch(pair, 0).high(), patch(pair, 1).high());
        let high = thread::opaque(u32::from(a) | u32::from(b) << 16);
        Pair { at, high }
    }

    /// Works out where in the strip's `table` they go.
    #[inline(always)]
    pub fn ready(&self, lane: u32, table: u32) -> Ready {
        let mut ready = Ready::NONE;
        unroll!(P < USUAL => { ready.pairs[P] = self.pair::<P>(lane, table); });
        ready.is_many = thread::any((self.from & !1) + STEP * (USUAL as u32) < self.to);
        if ready.is_many {
            ready.pairs[USUAL] = self.pair::<USUAL>(lane, table);
            ready.more = self.first(lane) + HELD;
            ready.to = self.to;
            ready.is_long = thread::any((self.from & !1) + HELD < self.to);
        }
        ready
    }
}

impl Pair {
    /// None.
    const NONE: Self = Self {
        at: [0; 2],
        high: 0,
    };

    /// Puts `high`, their own or the window's, in their places.
    #[inline(always)]
    unsafe fn store(&self, high: u32) {
        let [a, b] = self.at;
        // SAFETY: inside the table.
        unsafe {
            memory::store_u8_if(a, high, a > 0);
            memory::store_u8_if(b, high >> 16, b > 0);
        }
    }
}

impl Ready {
    /// None at all.
    pub const NONE: Self = Self {
        pairs: [Pair::NONE; PAIRS],
        more: 0,
        to: 0,
        is_many: false,
        is_long: false,
    };

    /// Puts them in the strip's `table`.
    ///
    /// # Safety
    /// They were made ready for it, and are of the section that starts at `all`; nobody reads the table meanwhile.
    #[inline(always)]
    pub unsafe fn store(&self, table: u32, all: *const u16) {
        // SAFETY: inside the table; pairs are in the section, which ends at a multiple of four bytes.
        unsafe {
            unroll!(P < USUAL => { self.pairs[P].store(self.pairs[P].high); });
            if self.is_many {
                self.pairs[USUAL].store(self.pairs[USUAL].high);
                if self.is_long {
                    self.store_more(table, all);
                }
            }
        }
    }

    /// Stores those that no lane holds.
    #[inline(always)]
    unsafe fn store_more(&self, table: u32, all: *const u16) {
        let mut index = self.more;
        // SAFETY: `store`'s.
        unsafe {
            while thread::any(index < self.to) {
                let pair = all.add(index as usize).cast();
                let pair = memory::load_global_u32_if(pair, index < self.to);
                unroll!(H < 2 => {
                    let high = patch(pair, H).high();
                    let own = index + (H as u32) < self.to;
                    memory::store_u8_if(place(table, pair, H), high.into(), own);
                });
                index += STEP;
            }
        }
    }

    /// Takes them out of the k-tile's `table`.
    ///
    /// # Safety
    /// They were [stored](Self::store) there; nobody reads the table meanwhile.
    #[inline(always)]
    pub unsafe fn clear(&self, table: u32, rest: u32, lane: u32) {
        // SAFETY: inside the table.
        unsafe {
            unroll!(P < USUAL => { self.pairs[P].store(rest); });
            if self.is_many {
                self.pairs[USUAL].store(rest);
                if self.is_long {
                    for i in 0..Prefill::TABLE_BYTES as u32 / 512 {
                        memory::store_u32x4(table + 512 * i + 16 * lane, [rest; 4]);
                    }
                }
            }
        }
    }
}

/// Where a pair's first or second patch goes.
#[inline(always)]
fn place(table: u32, pair: u32, second: usize) -> u32 {
    table + u32::from(patch(pair, second).position())
}

/// A pair's first or second patch.
#[inline(always)]
fn patch(pair: u32, second: usize) -> Patch {
    Patch((pair >> (16 * second)) as u16)
}
