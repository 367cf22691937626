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
//!    0  1024 B  sign and mantissa bytes: for each half h (k-steps 2h, 2h + 1),
//!               for each lane 16 bytes, in the order of its 8 pairs
//! 1024   384 B  bitmaps: for each word w of three, for each lane one u32
//! ```
//!
//! The layout extends the TCA-TBE format of ZipServ (ASPLOS'26); `docs/FORMAT.md` lists what
//! differs and why.

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
/// Bitmap words that hold the exponent codes of a lane's pairs.
pub const LANE_WORDS: usize = 3;

/// Stride, in bytes, between the two halves of a band's sign and mantissa bytes.
pub const HALF_BYTES: usize = LANES * 16;
/// Offset, in bytes, of the bitmaps in a band.
pub const BITMAPS_AT: usize = 2 * HALF_BYTES;
/// Stride, in bytes, between a band's three bitmap planes.
pub const BITMAP_BYTES: usize = LANES * 4;
/// Dense bytes of a band.
pub const BAND_BYTES: usize = BITMAPS_AT + LANE_WORDS * BITMAP_BYTES;
/// Dense bytes of a tile: its address in the dense part is its index times this.
pub const TILE_BYTES: usize = BANDS * BAND_BYTES;

/// Bits of a code: the window holds `1 << CODE_BITS` consecutive exponents.
pub const CODE_BITS: u32 = 3;
/// Exponents in the window.
pub const WINDOW: u32 = 1 << CODE_BITS;
/// The largest base, such that every code is a valid exponent.
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

/// A weight whose exponent lies outside the window.
///
/// Its code holds the low three bits of its exponent and its patch the high five, so a patch
/// gives one weight a base of its own, a multiple of eight. Packed into 16 bits:
///
/// ```text
/// bit 15..11  high five bits of the exponent
/// bit     10  band
/// bit   9..8  k-step
/// bit   7..3  lane
/// bit   2..0  2 * register + which of the pair
/// ```
///
/// The low 11 bits count weights in the order in which lanes hold them. A kernel keeps one BF16
/// exponent base per weight of a tile in that order in shared memory, stores a patched base at
/// `2 * position`, and each lane reads its four bases of a k-step with one 128-bit load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch(pub u16);

impl Patch {
    /// The patch of the weight at `position`, whose biased exponent is `exponent`.
    #[inline(always)]
    pub const fn new(position: u16, exponent: u8) -> Self {
        Self(((exponent as u16 >> CODE_BITS) << 11) | position)
    }

    /// Position in the tile, in fragment order: `0..2048`.
    #[inline(always)]
    pub const fn position(self) -> u16 {
        self.0 & 0x7FF
    }

    /// The weight's own base, in place in a BF16 exponent field.
    #[inline(always)]
    pub const fn base(self) -> u16 {
        (self.0 >> 1) & 0x7C00
    }
}

/// Position of a weight in a tile in fragment order, see [`Patch`]. `pair` counts within the
/// band (`0..16`); `second` picks the second weight of the pair.
#[inline(always)]
pub const fn patch_position(band: usize, lane: usize, pair: usize, second: bool) -> u16 {
    let (kstep, register) = (pair / REGISTERS, pair % REGISTERS);
    (band << 10 | kstep << 8 | lane << 3 | register << 1 | second as usize) as u16
}

/// The inverse of [`patch_position`]: row and column of a weight in its tile.
#[inline(always)]
pub const fn patch_row_col(position: u16) -> (usize, usize) {
    let p = position as usize;
    let (band, kstep, lane) = (p >> 10, p >> 8 & 3, p >> 3 & 31);
    let (row, col) = pair_position(lane, REGISTERS * kstep + (p >> 1 & 3));
    (BAND_ROWS * band + row, col + (p & 1))
}

const _: () = {
    assert!(BAND_BYTES == 1408 && TILE_BYTES.is_multiple_of(128));
    assert!(LANE_PAIRS * 2 * CODE_BITS as usize == LANE_WORDS * 32);
};
