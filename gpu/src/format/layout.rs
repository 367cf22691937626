//! Where each weight of a matrix lives in the compressed form.
//!
//! A matrix of `rows` output features by `cols` input features is cut into *tiles* of 32 rows
//! by 64 columns, in row-major order of tiles. A tile is two *bands* of 16 rows; a band holds
//! four A operands of `mma.sync.m16n8k16` (equally: one warp's share of four `wgmma` A
//! operands), one for each *k-step* of 16 columns. Each of a warp's 32 lanes owns 16 *pairs* of
//! horizontally adjacent weights in a band, the pairs that the tensor core wants in its
//! registers:
//!
//! ```text
//! pair p = 4 * kstep + register          lane = 4 * g + t
//!   register 0: row g,     columns 16 * kstep + 2t     and the next
//!   register 1: row g + 8, columns 16 * kstep + 2t     and the next
//!   register 2: row g,     columns 16 * kstep + 2t + 8 and the next
//!   register 3: row g + 8, columns 16 * kstep + 2t + 8 and the next
//! ```
//!
//! One band of 1024 weights takes 1408 bytes at a fixed address, 11 bits a weight:
//!
//! ```text
//!    0  1024 B  low bytes: for each half h (k-steps 2h, 2h + 1), for each lane 16
//!               bytes, in the order of its 8 pairs
//! 1024   384 B  codes: for each word w of three, for each lane one u32
//! ```
//!
//! The layout extends the TCA-TBE format of ZipServ (ASPLOS'26); `docs/FORMAT.md` lists what
//! differs and why.

/// Bytes of the header in front of the dense part.
pub const HEADER_BYTES: usize = 128;
/// Version of the format.
pub const VERSION: u16 = 1;
/// The one layout there is: 32 x 64 tiles in fragment order.
pub const LAYOUT_ID: u16 = 1;
/// Where the header has the base, 32 bits.
pub const BASE_AT: usize = 12;

/// Rows (output features) of a tile.
pub const TILE_ROWS: usize = 32;
/// Columns (input features) of a tile.
pub const TILE_COLS: usize = 64;
/// Weights in a tile.
pub const TILE_WEIGHTS: usize = TILE_ROWS * TILE_COLS;
/// Rows of a band, the M of one tensor-core instruction.
pub const BAND_ROWS: usize = 16;
/// Bands in a tile.
pub const BANDS: usize = TILE_ROWS / BAND_ROWS;
/// Columns of a k-step, the K of one tensor-core instruction.
pub const KSTEP_COLS: usize = 16;
/// k-steps in a tile.
pub const KSTEPS: usize = TILE_COLS / KSTEP_COLS;
/// Lanes of a warp.
pub const LANES: usize = 32;
/// Fragment registers (pairs of weights) that a lane holds for one k-step.
pub const REGISTERS: usize = 4;
/// Pairs of weights that a lane owns in one band.
pub const LANE_PAIRS: usize = KSTEPS * REGISTERS;
/// Quads of weights, two pairs each, that a lane owns in one band.
pub const LANE_QUADS: usize = LANE_PAIRS / 2;
/// Words that hold the codes of a lane's weights.
pub const LANE_WORDS: usize = 3;

/// Stride, in bytes, between the two halves of a band's low bytes.
pub const HALF_BYTES: usize = LANES * 16;
/// Offset, in bytes, of the codes in a band.
pub const CODES_AT: usize = 2 * HALF_BYTES;
/// Stride, in bytes, between a band's three planes of code words.
pub const CODE_BYTES: usize = LANES * 4;
/// Dense bytes of a band.
pub const BAND_BYTES: usize = CODES_AT + LANE_WORDS * CODE_BYTES;
/// Dense bytes of a tile: its address in the dense part is its index times this.
pub const TILE_BYTES: usize = BANDS * BAND_BYTES;

/// Bits of a code.
pub const CODE_BITS: u32 = 3;
/// Exponents in the window.
pub const WINDOW: u32 = 8;
/// The largest base, such that all exponents of the window are valid ones.
pub const MAX_BASE: u8 = (256 - WINDOW) as u8;

/// Tiles needed to cover `rows` by `cols`: `(tile rows, tile columns)`.
#[inline(always)]
pub const fn tile_grid(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(TILE_ROWS), cols.div_ceil(TILE_COLS))
}

/// Row and column, within a band, of the first weight of `pair` (`0..16`) of `lane` (`0..32`).
/// The second weight is the next column.
#[inline(always)]
pub const fn pair_position(lane: usize, pair: usize) -> (usize, usize) {
    let (kstep, register) = (pair / REGISTERS, pair % REGISTERS);
    (
        lane / 4 + 8 * (register & 1),
        KSTEP_COLS * kstep + 8 * (register >> 1) + 2 * (lane % 4),
    )
}

/// The scale of a matrix by its base, the lowest exponent of its window: weights are stored times two to the
/// power of this, so that the window starts at a multiple of eight.
#[inline(always)]
pub const fn scale(base: u8) -> u32 {
    base.wrapping_neg() as u32 % WINDOW
}

/// Whether a window may start at an exponent: no weight in it may become infinite.
#[inline(always)]
pub const fn is_base(base: u8) -> bool {
    base == MAX_BASE || base as u32 + scale(base) < MAX_BASE as u32
}

/// Exponents of infinities and NaNs, and where a BF16 has its exponent.
const SPECIAL: u32 = 255;
const MANTISSA_BITS: u32 = 7;

/// A weight as it is stored, exact where it stays finite; infinities and NaNs as they are.
///
/// Its low byte is stored as it is. Of its high byte the *code* keeps the sign (bit 15) and two bits
/// (9 and 8), and a [`Patch`] the other five, which are those of [`window_high`] if and only if the exponent
/// lies in the window.
///
/// In integers, for a caller's floating-point mode may take subnormals for zeros.
#[inline(always)]
pub fn scaled(weight: u16, scale: u32) -> u16 {
    let weight = u32::from(weight);
    let exponent = weight >> MANTISSA_BITS & 0xFF;
    // A subnormal is so many of the least. It may become normal: 2^7 of those have exponent 1, and the float of
    // that integer 127 + 7.
    let multiple = (weight & 0x7F) << scale;
    let normal = ((multiple as f32).to_bits() >> 16).wrapping_sub((127 + 7 - 1) << MANTISSA_BITS);
    let small = if multiple < 128 { multiple } else { normal };
    let scaled = match exponent {
        0 => weight & 0x8000 | small,
        SPECIAL => weight,
        _ => weight + (scale << MANTISSA_BITS),
    };
    scaled as u16
}

/// The inverse of [`scaled`].
#[inline(always)]
pub fn unscaled(weight: u16, scale: u32) -> u16 {
    let weight = u32::from(weight);
    let (exponent, mantissa) = (weight >> MANTISSA_BITS & 0xFF, weight & 0x7F);
    let unscaled = match exponent {
        SPECIAL => weight,
        0 => weight & 0x8000 | mantissa >> scale,
        _ if exponent <= scale => weight & 0x8000 | (128 | mantissa) << (exponent - 1) >> scale,
        _ => weight - (scale << MANTISSA_BITS),
    };
    unscaled as u16
}

/// What sums of scaled weights are multiplied by.
#[inline(always)]
pub const fn unscale(scale: u32) -> f32 {
    f32::from_bits((127 - scale) << 23)
}

/// The bits of a [`scaled`] weight that codes leave out.
pub const LEFT_OUT: u16 = 0x7C00;

/// The high byte of a scaled weight in the window, without its code.
#[inline(always)]
pub const fn window_high(base: u8) -> u8 {
    ((base as u32 + scale(base)) >> 1) as u8
}

/// [`window_high`] of four weights.
#[inline(always)]
pub const fn window_quad(base: u8) -> u32 {
    window_high(base) as u32 * 0x0101_0101
}

/// [`scale`] where it is added to the exponents of both weights of a pair.
#[inline(always)]
pub const fn scale_pair(base: u8) -> u32 {
    scale(base) << 7 | scale(base) << 23
}

/// What kernels need of the base, in one register: [`window_high`] in the lowest byte, [`scale`] above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u32);

impl Window {
    /// Of a base.
    #[inline(always)]
    pub const fn new(base: u8) -> Self {
        Self(window_high(base) as u32 | scale(base) << 8)
    }

    /// [`window_high`], with something else above the byte.
    #[inline(always)]
    pub const fn byte(self) -> u32 {
        self.0
    }

    /// [`window_quad`].
    #[inline(always)]
    pub const fn quad(self) -> u32 {
        (self.0 & 0xFF) * 0x0101_0101
    }

    /// [`unscale`] of its scale.
    #[inline(always)]
    pub const fn unscale(self) -> f32 {
        unscale(self.0 >> 8)
    }
}

/// What the code of a weight outside the window leaves out, in 16 bits:
///
/// ```text
/// bit 15..11  bits 14..10 of the scaled weight
/// bit     10  band
/// bit      9  half
/// bit   8..4  lane
/// bit   3..1  pair of the half
/// bit      0  which of the pair
/// ```
///
/// The low 11 bits count a tile's low bytes in the order in which they are stored. A kernel keeps one byte
/// for each of them in shared memory, in the same order, what codes leave out of high bytes, and each lane
/// reads its 16 of a half with one 128-bit load, like the low bytes themselves.
///
/// (The word is PFOR's: codes for the many, and patches for those that do not fit.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch(pub u16);

impl Patch {
    /// The patch of the weight at `position`.
    #[inline(always)]
    pub const fn new(position: u16, scaled: u16) -> Self {
        Self((scaled & LEFT_OUT) << 1 | position)
    }

    /// Position in the tile, in the order of its low bytes: `0..2048`.
    #[inline(always)]
    pub const fn position(self) -> u16 {
        self.0 & 0x7FF
    }

    /// The bits that it has of the scaled weight.
    #[inline(always)]
    pub const fn bits(self) -> u16 {
        self.0 >> 1 & LEFT_OUT
    }

    /// The high byte of the scaled weight, without its code.
    #[inline(always)]
    pub const fn high(self) -> u8 {
        (self.bits() >> 8) as u8
    }

    /// The weight, given what its place decodes to without the patch.
    #[inline(always)]
    pub fn weight(self, unpatched: u16, scale: u32) -> u16 {
        let scaled = unpatched.wrapping_add((scale as u16) << 7);
        unscaled(scaled & !LEFT_OUT | self.bits(), scale)
    }
}

/// Position of a weight in a tile, see [`Patch`]. `pair` counts within the band (`0..16`); `second`
/// picks the second weight of the pair.
#[inline(always)]
pub const fn patch_position(band: usize, lane: usize, pair: usize, second: bool) -> u16 {
    (band << 10 | (pair / 8) << 9 | lane << 4 | (pair % 8) << 1 | second as usize) as u16
}

/// The inverse of [`patch_position`]: row and column of a weight in its tile.
#[inline(always)]
pub const fn patch_row_col(position: u16) -> (usize, usize) {
    let p = position as usize;
    let (band, half, lane) = (p >> 10, p >> 9 & 1, p >> 4 & 31);
    let (row, col) = pair_position(lane, 8 * half + (p >> 1 & 7));
    (BAND_ROWS * band + row, col + (p & 1))
}

const _: () = {
    assert!(BAND_BYTES == 1408 && TILE_BYTES.is_multiple_of(128));
    assert!(LANE_PAIRS * 2 * CODE_BITS as usize == LANE_WORDS * 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_all_there_is_of_a_base() {
        for base in (0..=MAX_BASE).filter(|&base| is_base(base)) {
            let window = Window::new(base);
            assert_eq!(window.byte() as u8, window_high(base));
            assert_eq!(window.quad(), window_quad(base));
            assert_eq!(window.unscale(), unscale(scale(base)));
        }
    }
}
