//! From a tile's planes to a lane's pair of weights.
//!
//! ```text
//! before  = number of ones below the pair in the union of the planes
//! weight  = code == 0 ? outlier[index - before]
//!                     : sign and mantissa of byte[before], exponent of base + code
//! ```
//!
//! A lane reads one half of each plane, 32 bits; what the other half holds it learns from another
//! lane. Everything here is pure integer code and compiles for the host.

use zipserv_gpu::integer::{double_low_bytes, multiply_add, select_bits};

use crate::{Before, KSTEP_TILES, PLANES, TILE_WEIGHTS};

/// Lanes whose weights are in one half of a plane.
pub const HALF_LANES: u32 = 16;

/// A base in the exponent fields of both weights of a pair.
#[inline(always)]
pub const fn base_pair(base: u8) -> u32 {
    (base as u32) << 7 | (base as u32) << 23
}

/// Which bits are a lane's.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// Right rotations that put its two bits of plane `i` to bits `i` and `i + 1`.
    rotations: [u32; PLANES],
    /// The bits below its own.
    below: u32,
    /// Those and its own.
    through: u32,
    /// All ones where its half of the planes is the upper one.
    upper: u32,
}

/// What a lane finds in its half of a tile's planes.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Code of its first weight.
    first: u32,
    /// Code of its second weight, times two.
    second: u32,
    /// Weights in the window below its own, in its half.
    below: u32,
    /// Those and its own.
    pub through: u32,
}

impl Lane {
    /// Of lane `0..32`.
    #[inline(always)]
    pub const fn new(lane: u32) -> Self {
        let bit = 2 * (lane % HALF_LANES);
        let below = (1 << bit) - 1;
        Self {
            rotations: [bit, (bit + 31) % 32, (bit + 30) % 32],
            below,
            through: below | 3 << bit,
            upper: if lane < HALF_LANES { 0 } else { u32::MAX },
        }
    }

    /// Finds the lane's weights in its half of each plane.
    #[inline(always)]
    pub fn find(&self, planes: [u32; PLANES]) -> Found {
        let window = planes[0] | planes[1] | planes[2];
        let [a, b, c] = [
            planes[0].rotate_right(self.rotations[0]),
            planes[1].rotate_right(self.rotations[1]),
            planes[2].rotate_right(self.rotations[2]),
        ];
        Found {
            first: select_bits::<3>(select_bits::<1>(a, b), c) & 7,
            second: select_bits::<7>(select_bits::<3>(a, b), c) & 14,
            below: (window & self.below).count_ones(),
            through: (window & self.through).count_ones(),
        }
    }

    /// Weights of the tile in the window before the lane's own, of which `lower` are in all of the
    /// lower half.
    #[inline(always)]
    fn before(&self, found: &Found, lower: u32) -> u32 {
        found.below + (lower & self.upper)
    }
}

/// How far a lane has come in a band.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    /// Address of the next tile's first byte.
    bytes: u32,
    /// Address of the lane's first outlier of the next k-step, were its byte's address 0.
    outliers: u32,
}

/// Where a weight is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Address of its sign and mantissa, if it is in the window.
    pub byte: u32,
    /// Or else where it is itself, less what every lane adds alike, and the kernel as a constant:
    /// 128 bytes for each tile of the k-step before its own, and 2 for the second of a pair.
    pub outlier: u32,
}

impl Cursor {
    /// At the start of the band before which so much lies in its block tile, whose bytes and
    /// outliers start at these addresses.
    #[inline(always)]
    pub fn new(lane: u32, bytes: u32, outliers: u32, before: Before) -> Self {
        let bytes = bytes + before.bytes;
        Self {
            bytes,
            // Whatever is no byte is an outlier: one less of these for one more of those.
            outliers: outliers + 2 * before.outliers + 2 * bytes + 4 * lane,
        }
    }

    /// The places of the lane's weights in the next tile, of which the halves have so many in the
    /// window.
    #[inline(always)]
    pub fn tile(&mut self, lane: &Lane, found: &Found, [lower, upper]: [u32; 2]) -> [Place; 2] {
        let first = self.bytes + lane.before(found, lower);
        let second = first + u32::from(found.has_first() != 0);
        self.bytes += lower + upper;
        [first, second].map(|byte| Place {
            byte,
            outlier: self.outliers.wrapping_sub(2 * byte),
        })
    }

    /// Goes on to the next k-step, after all tiles of one.
    #[inline(always)]
    pub fn end_kstep(&mut self) {
        self.outliers += (2 * KSTEP_TILES * TILE_WEIGHTS) as u32;
    }
}

impl Found {
    /// Whether the first weight is in the window, as 0 or another number.
    #[inline(always)]
    pub fn has_first(&self) -> u32 {
        self.first
    }

    /// Whether the second one is.
    #[inline(always)]
    pub fn has_second(&self) -> u32 {
        self.second
    }

    /// Both weights, the first in the low half. `first` and `second` are each a byte of sign and
    /// mantissa, or the whole of an outlier; `bases` is [`base_pair`].
    #[inline(always)]
    pub fn pair(&self, first: u32, second: u32, bases: u32) -> u32 {
        let bases = multiply_add::<{ 1 << 22 }>(self.second, bases);
        let exponents = multiply_add::<{ 1 << 7 }>(self.first, bases);
        let window = double_low_bytes(first, second) & 0x807F_807F | exponents;
        let low = if self.first != 0 { window } else { first };
        let high = if self.second != 0 {
            window
        } else {
            second << 16
        };
        select_bits::<0xFFFF>(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TILE_WEIGHTS;

    /// Any numbers, the same each time.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        *state ^ *state >> 29
    }

    /// Decodes a tile as its description says.
    fn plain(planes: [u64; 3], bytes: &[u8], outliers: &[u16], base: u8) -> [u16; TILE_WEIGHTS] {
        let (mut bytes, mut outliers) = (bytes.iter(), outliers.iter());
        core::array::from_fn(|bit| {
            let plane = |i: usize| (planes[i] >> bit & 1) as u16;
            match plane(0) + 2 * plane(1) + 4 * plane(2) {
                0 => *outliers.next().unwrap(),
                code => {
                    let byte = u16::from(*bytes.next().unwrap());
                    byte >> 7 << 15 | (u16::from(base) + code) << 7 | byte & 0x7F
                }
            }
        })
    }

    /// Decodes a tile as the lanes of a warp do.
    fn by_lanes(planes: [u64; 3], bytes: &[u8], outliers: &[u16], base: u8) -> [u16; TILE_WEIGHTS] {
        let found = |lane: u32| {
            let half = planes.map(|plane| (plane >> (32 * (lane / HALF_LANES))) as u32);
            Lane::new(lane).find(half)
        };
        let mut weights = [0; TILE_WEIGHTS];
        for lane in 0..32 {
            let found_here = found(lane);
            let at = Lane::new(lane).before(&found_here, found(HALF_LANES - 1).through) as usize;
            let second_at = at + usize::from(found_here.has_first() != 0);
            let index = 2 * lane as usize;
            let load = |has: u32, at: usize, index: usize| match has {
                0 => u32::from(outliers[index - at]),
                _ => u32::from(bytes[at]),
            };
            let first = load(found_here.has_first(), at, index);
            let second = load(found_here.has_second(), second_at, index + 1);
            let pair = found_here.pair(first, second, base_pair(base));
            weights[index] = pair as u16;
            weights[index + 1] = (pair >> 16) as u16;
        }
        let through = |lane| found(lane).through;
        let all = (planes[0] | planes[1] | planes[2]).count_ones();
        assert_eq!(through(HALF_LANES - 1) + through(31), all);
        weights
    }

    #[test]
    fn lanes_decode_what_the_description_says() {
        let mut state = 1;
        for round in 0..400 {
            let mut plane = |i: u32| match (round >> (2 * i)) % 4 {
                0 => 0,
                1 => u64::MAX,
                _ => random(&mut state),
            };
            let planes = [plane(0), plane(1), plane(2)];
            let bytes: [u8; TILE_WEIGHTS] = core::array::from_fn(|_| random(&mut state) as u8);
            let outliers: [u16; TILE_WEIGHTS] = core::array::from_fn(|_| random(&mut state) as u16);
            for base in [0, 1, 113, crate::MAX_BASE] {
                assert_eq!(
                    by_lanes(planes, &bytes, &outliers, base),
                    plain(planes, &bytes, &outliers, base)
                );
            }
        }
    }
}
