//! ZipServ's layout as published, as a baseline that is measured beside [zipserv's](zipserv_gpu::layout).
//!
//! TCA-TBE, as *ZipServ: Fast and Memory-Efficient LLM Inference with Hardware-Aware Lossless
//! Compression* (ASPLOS'26) describes it. What that paper leaves open is decided here, in favour
//! of speed. A matrix is cut into *block tiles* of 64 x 64 weights, in row-major order, each of
//! them into four *bands* of 16 x 64 for a warp each, a band into four *k-steps* of 16 x 16, and a
//! k-step into four *tiles* of 8 x 8, in the order of the registers of an A operand of
//! `mma.sync.m16n8k16`. Lane `l` holds weights `2l` and `2l + 1` of each tile:
//!
//! ```text
//! k-step            tile: bit of a weight            lane
//! +---+---+         0  1  2  3  4  5  6  7            0  1  2  3
//! | 0 | 2 |         8  9 10 11 12 13 14 15            4  5  6  7
//! +---+---+        ...                               ...
//! | 1 | 3 |        56 57 58 59 60 61 62 63           28 29 30 31
//! +---+---+
//! ```
//!
//! Codes are 3 bits: code `c` in 1..=7 stands for the exponent `base + c`, and 0 for any other, an
//! *outlier*. A matrix is five arrays:
//!
//! | array | holds |
//! |---|---|
//! | bitmaps | for each tile three bit planes of its codes, 64 bits each: [`BLOCK_BYTES`] for a block tile |
//! | bytes | sign and mantissa of each weight in the window, tile after tile |
//! | outliers | each outlier's 16 bits, tile after tile |
//! | starts | for each block tile, and once more, where its part of both streams starts, in units of 16 bytes |
//! | bands | for each band, what its block tile has of both streams before it |
//!
//! In both streams the part of a block tile is filled up to a multiple of 16 bytes, the unit of
//! copies. Where a weight lies within its band, nothing says but the number of weights in the
//! window before it: set bits of the union of the planes.

#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, asm_experimental_arch, stdarch_nvptx)
)]

pub mod args;
pub mod decode;
pub mod launch;

#[cfg(target_arch = "nvptx64")]
pub mod entry;
#[cfg(target_arch = "nvptx64")]
pub mod kernels;

pub use launch::KERNELS;

/// The kernels as PTX, for sm_80 and later. `builder` makes this file of this crate.
#[cfg(not(target_arch = "nvptx64"))]
pub const PTX: &str = include_str!("../ptx/published_sm_80.ptx");

/// Rows, and columns, of a tile.
pub const TILE_SIDE: usize = 8;
/// Weights of a tile: the bits of a plane.
pub const TILE_WEIGHTS: usize = TILE_SIDE * TILE_SIDE;
/// Tiles of a k-step: the registers of an A operand.
pub const KSTEP_TILES: usize = 4;
/// Rows, and columns, of a k-step.
pub const KSTEP_SIDE: usize = 2 * TILE_SIDE;
/// k-steps of a band.
pub const BAND_KSTEPS: usize = 4;
/// Tiles of a band.
pub const BAND_TILES: usize = BAND_KSTEPS * KSTEP_TILES;
/// Bands of a block tile.
pub const BANDS: usize = 4;
/// Rows of a block tile.
pub const BLOCK_ROWS: usize = BANDS * KSTEP_SIDE;
/// Columns of a block tile.
pub const BLOCK_COLS: usize = BAND_KSTEPS * KSTEP_SIDE;
/// Weights of a block tile.
pub const BLOCK_WEIGHTS: usize = BLOCK_ROWS * BLOCK_COLS;

/// Planes of a tile: the bits of a code.
pub const PLANES: usize = 3;
/// Bytes of a plane.
pub const PLANE_BYTES: usize = TILE_WEIGHTS / 8;
/// Bytes of a tile's planes, one after the other.
pub const TILE_BYTES: usize = PLANES * PLANE_BYTES;
/// Bytes of a band's planes.
pub const BAND_BYTES: usize = BAND_TILES * TILE_BYTES;
/// Bytes of a block tile's planes.
pub const BLOCK_BYTES: usize = BANDS * BAND_BYTES;
/// Where block tiles' parts of the streams start: at multiples of so many bytes.
pub const CHUNK: usize = 16;
/// Bytes, at most, of a block tile's parts of both streams, filled up.
pub const STREAM_BYTES: usize = 2 * BLOCK_WEIGHTS + 2 * CHUNK;

/// Exponents in the window.
pub const WINDOW: usize = (1 << PLANES) - 1;
/// The largest base, such that every code is a valid exponent.
pub const MAX_BASE: u8 = (u8::MAX as usize - WINDOW) as u8;

/// Block tiles needed to cover `rows` by `cols`: `(rows, columns)` of them.
#[inline(always)]
pub const fn block_grid(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(BLOCK_ROWS), cols.div_ceil(BLOCK_COLS))
}

/// Row and column in a block tile of the weight that bit `bit` of tile `tile` (`0..64`) is for.
#[inline(always)]
pub const fn position(tile: usize, bit: usize) -> (usize, usize) {
    let (band, in_band) = (tile / BAND_TILES, tile % BAND_TILES);
    let (kstep, register) = (in_band / KSTEP_TILES, in_band % KSTEP_TILES);
    (
        KSTEP_SIDE * band + TILE_SIDE * (register % 2) + bit / TILE_SIDE,
        KSTEP_SIDE * kstep + TILE_SIDE * (register / 2) + bit % TILE_SIDE,
    )
}

/// What a block tile has of both streams before one of its bands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Bytes of the first stream.
    pub bytes: u32,
    /// Outliers.
    pub outliers: u32,
}

impl Before {
    /// As it is stored.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.bytes | self.outliers << 16
    }

    /// From what is stored.
    #[inline(always)]
    pub const fn of_word(word: u32) -> Self {
        Self {
            bytes: word & 0xFFFF,
            outliers: word >> 16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_weight_of_a_block_tile_has_one_place() {
        let mut seen = [[false; BLOCK_COLS]; BLOCK_ROWS];
        for tile in 0..BANDS * BAND_TILES {
            for bit in 0..TILE_WEIGHTS {
                let (row, col) = position(tile, bit);
                assert!(!core::mem::replace(&mut seen[row][col], true));
            }
        }
    }

    #[test]
    fn lanes_hold_what_the_tensor_core_wants() {
        // The layout of an A operand in the PTX ISA, with lane = 4 g + t.
        for register in 0..KSTEP_TILES {
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4);
                for second in 0..2 {
                    let row = g + if register % 2 == 1 { 8 } else { 0 };
                    let col = 2 * t + second + if register >= 2 { 8 } else { 0 };
                    assert_eq!(position(register, 2 * lane + second), (row, col));
                }
            }
        }
    }
}
