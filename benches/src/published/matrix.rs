//! ZipServ's layout as published, a baseline: weights to that layout and back, on the CPU.
//!
//! It is made to be measured beside the layout of this crate, and has no stored form.
//! [`published_kernels`] says where what lies.

use std::ops::Range;

use published_kernels::*;
use rayon::prelude::*;

use zipserv::{Error, Histogram, Matrix};

/// Tiles of a block tile.
const BLOCK_TILES: usize = BANDS * BAND_TILES;

/// A matrix of BF16 weights in the published layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedMatrix {
    rows: usize,
    cols: usize,
    base: u8,
    outlier_count: usize,
    bitmaps: Vec<u64>,
    bytes: Vec<u8>,
    outliers: Vec<u16>,
    starts: Vec<[u32; 2]>,
    bands: Vec<u32>,
}

/// A block tile's parts of the arrays.
struct Block<'a> {
    bitmaps: &'a [u64],
    bytes: &'a [u8],
    outliers: &'a [u16],
}

/// What the block tiles of some rows take, but for their bitmaps, which have a fixed place.
#[derive(Default)]
struct Streams {
    bytes: Vec<u8>,
    outliers: Vec<u16>,
    /// Where each block tile's parts of the two end.
    ends: Vec<[usize; 2]>,
    bands: Vec<u32>,
    outlier_count: usize,
}

impl PublishedMatrix {
    /// Compresses `matrix`, in parallel on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::MatrixTooLarge`] when there are 2^32 block tiles or 2^36 bytes in a stream.
    pub fn encode(matrix: &Matrix) -> Result<Self, Error> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let (block_rows, block_cols) = block_grid(rows, cols);
        let too_large = || Error::MatrixTooLarge { rows, cols };
        let blocks = block_rows.checked_mul(block_cols).ok_or_else(too_large)?;
        u32::try_from(blocks).map_err(|_| too_large())?;
        let base = base(&Histogram::of(matrix));
        let mut bitmaps = vec![0u64; blocks * BLOCK_TILES * PLANES];
        let strips: Vec<Streams> = bitmaps
            .par_chunks_mut((block_cols * BLOCK_TILES * PLANES).max(1))
            .enumerate()
            .map(|(block_row, bitmaps)| encode_strip(matrix, base, block_row, bitmaps))
            .collect();

        let chunk = |bytes: usize| u32::try_from(bytes / CHUNK).map_err(|_| too_large());
        let mut starts = vec![[0; 2]];
        let (mut bytes, mut outliers, mut bands) = (Vec::new(), Vec::new(), Vec::new());
        for strip in &strips {
            for [bytes_end, outliers_end] in &strip.ends {
                starts.push([
                    chunk(bytes.len() + bytes_end)?,
                    chunk(2 * (outliers.len() + outliers_end))?,
                ]);
            }
            bytes.extend_from_slice(&strip.bytes);
            outliers.extend_from_slice(&strip.outliers);
            bands.extend_from_slice(&strip.bands);
        }
        Ok(Self {
            rows,
            cols,
            base,
            outlier_count: strips.iter().map(|strip| strip.outlier_count).sum(),
            bitmaps,
            bytes,
            outliers,
            starts,
            bands,
        })
    }

    /// Restores the weights, row after row.
    pub fn decode(&self) -> Vec<half::bf16> {
        let mut bits = vec![0u16; self.rows * self.cols];
        bits.par_chunks_mut((BLOCK_ROWS * self.cols).max(1))
            .enumerate()
            .for_each(|(block_row, rows)| self.decode_strip(block_row, rows));
        bytemuck::cast_vec(bits)
    }

    /// Restores the rows of a row of block tiles.
    fn decode_strip(&self, block_row: usize, rows: &mut [u16]) {
        let (_, block_cols) = block_grid(self.rows, self.cols);
        for block_col in 0..block_cols {
            let block = self.block(block_row * block_cols + block_col);
            let (mut bytes, mut outliers) = (block.bytes.iter(), block.outliers.iter());
            for (tile, planes) in block.bitmaps.chunks_exact(PLANES).enumerate() {
                for bit in 0..TILE_WEIGHTS {
                    let code = (0..PLANES)
                        .map(|i| (planes[i] >> bit & 1) << i)
                        .sum::<u64>();
                    let weight = match code as u16 {
                        0 => *outliers.next().expect("an outlier for each code 0"),
                        code => {
                            let byte = u16::from(*bytes.next().expect("a byte for each code"));
                            (byte & 0x80) << 8 | (u16::from(self.base) + code) << 7 | byte & 0x7F
                        }
                    };
                    let (row, col) = position(tile, bit);
                    let col = block_col * BLOCK_COLS + col;
                    if col < self.cols
                        && let Some(to) = rows.get_mut(row * self.cols + col)
                    {
                        *to = weight;
                    }
                }
            }
        }
    }

    /// The parts of a block tile.
    fn block(&self, index: usize) -> Block<'_> {
        let part = |stream: usize, value: usize| -> Range<usize> {
            let at = |index: usize| self.starts[index][stream] as usize * CHUNK / value;
            at(index)..at(index + 1)
        };
        Block {
            bitmaps: &self.bitmaps[index * BLOCK_TILES * PLANES..][..BLOCK_TILES * PLANES],
            bytes: &self.bytes[part(0, 1)],
            outliers: &self.outliers[part(1, 2)],
        }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The exponent below the window's seven, biased.
    pub fn base(&self) -> u8 {
        self.base
    }

    /// Weights whose exponent lies outside the window.
    pub fn outlier_count(&self) -> usize {
        self.outlier_count
    }

    /// Three bit planes for each tile.
    pub fn bitmaps(&self) -> &[u64] {
        &self.bitmaps
    }

    /// Sign and mantissa of each weight in the window, each block tile's from a multiple of 16
    /// bytes on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The other weights, likewise.
    pub fn outliers(&self) -> &[u16] {
        &self.outliers
    }

    /// Where each block tile's parts of the two streams start, in units of 16 bytes, and where the
    /// last one's end.
    pub fn starts(&self) -> &[[u32; 2]] {
        &self.starts
    }

    /// What lies before each band in its block tile, see [`Before`].
    pub fn bands(&self) -> &[u32] {
        &self.bands
    }

    /// Bytes of all arrays.
    pub fn stored_bytes(&self) -> usize {
        8 * self.bitmaps.len()
            + self.bytes.len()
            + 2 * self.outliers.len()
            + 8 * self.starts.len()
            + 4 * self.bands.len()
    }
}

/// The base of the window that leaves the fewest outliers; the lowest of equals.
fn base(exponents: &Histogram) -> u8 {
    let in_window = |base: &u8| -> u64 {
        let lowest = usize::from(*base) + 1;
        exponents.counts()[lowest..][..WINDOW].iter().sum()
    };
    (0..=MAX_BASE)
        .rev()
        .max_by_key(in_window)
        .expect("there is a base")
}

/// Encodes the block tiles of a row of them.
fn encode_strip(matrix: &Matrix, base: u8, block_row: usize, bitmaps: &mut [u64]) -> Streams {
    let cols = matrix.cols();
    let all = matrix.as_le_bytes();
    let rows = &all[(2 * BLOCK_ROWS * cols * block_row).min(all.len())..];
    // Padding needs no outlier.
    let padding = (u16::from(base) + 1) << 7;
    let mut streams = Streams::default();
    let blocks = bitmaps.chunks_exact_mut(BLOCK_TILES * PLANES);
    for (block_col, bitmaps) in blocks.enumerate() {
        let start = [streams.bytes.len(), streams.outliers.len()];
        for (tile, planes) in bitmaps.chunks_exact_mut(PLANES).enumerate() {
            if tile % BAND_TILES == 0 {
                let before = Before {
                    bytes: (streams.bytes.len() - start[0]) as u32,
                    outliers: (streams.outliers.len() - start[1]) as u32,
                };
                streams.bands.push(before.to_word());
            }
            for bit in 0..TILE_WEIGHTS {
                let (row, col) = position(tile, bit);
                let col = block_col * BLOCK_COLS + col;
                let weight = match rows.get(2 * (row * cols + col)..) {
                    Some(&[low, high, ..]) if col < cols => u16::from_le_bytes([low, high]),
                    _ => padding,
                };
                let code = (weight >> 7 & 0xFF).wrapping_sub(base.into());
                if (1..=WINDOW as u16).contains(&code) {
                    for (i, plane) in planes.iter_mut().enumerate() {
                        *plane |= u64::from(code >> i & 1) << bit;
                    }
                    streams
                        .bytes
                        .push((weight >> 8 & 0x80 | weight & 0x7F) as u8);
                } else {
                    streams.outliers.push(weight);
                }
            }
        }
        streams.outlier_count += streams.outliers.len() - start[1];
        let filled = |len: usize, value: usize| len.next_multiple_of(CHUNK / value);
        streams.bytes.resize(filled(streams.bytes.len(), 1), 0);
        streams
            .outliers
            .resize(filled(streams.outliers.len(), 2), 0);
        streams
            .ends
            .push([streams.bytes.len(), streams.outliers.len()]);
    }
    streams
}
