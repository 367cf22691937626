use multiversion::multiversion;
use rayon::prelude::*;
use zipserv_gpu::{decode, layout::*};

use super::{
    CompressedMatrix, Histogram, Matrix, MatrixHeader, Strips, combine_crcs, memory::zeroed,
};
use crate::Error;

/// Compresses `matrix`, in parallel on the current rayon pool. Every bit pattern and every shape
/// comes back bit for bit from [`decode`](super::decode()).
///
/// # Errors
/// [`Error::MatrixTooLarge`] when there are 2^31 outliers or more.
///
/// ```
/// use zipserv::{Matrix, decode, encode};
///
/// let weights: Vec<half::bf16> = (0..64 * 128)
///     .map(|i| half::bf16::from_f32((i as f32).sin() * 0.02))
///     .collect();
/// let matrix = Matrix::from_bf16(64, 128, &weights)?;
/// let compressed = encode(&matrix)?;
/// assert!(compressed.bits_per_weight() < 12.0);
/// assert_eq!(decode(&compressed), weights);
/// # Ok::<(), zipserv::Error>(())
/// ```
pub fn encode(matrix: &Matrix) -> Result<CompressedMatrix<'static>, Error> {
    let strips = Strips::of_matrix(matrix.rows());
    let strip_of = |strip| matrix.strip(strip);
    encode_strips(strips, matrix.cols(), &Histogram::of(matrix), strip_of)
}

/// Compresses a matrix of which `strip_of` gives the weights in a strip.
pub(super) fn encode_strips<'a>(
    strips: Strips,
    cols: usize,
    exponents: &Histogram,
    strip_of: impl Fn(usize) -> Matrix<'a> + Sync,
) -> Result<CompressedMatrix<'static>, Error> {
    let encoder = Encoder::new(strips, cols, exponents)?;
    let header = encoder.header();
    let mut bytes = zeroed(header.stored_bytes());
    let [dense, offsets, patches] = header.sections_mut(&mut bytes);

    let (_, tile_cols) = tile_grid(header.rows(), cols);
    let strips: Vec<_> = dense
        .par_chunks_mut((tile_cols * TILE_BYTES).max(1))
        .enumerate()
        .map(|(strip, dense)| {
            let mut buffer = TileBuffer::default();
            encoder.encode(&strip_of(strip), dense, &mut buffer);
            (buffer, crc32fast::hash(dense), dense.len() as u64)
        })
        .collect();

    let mut offset = 0u32;
    let mut offsets_left = offsets[4..].chunks_exact_mut(4);
    let mut patches_left = &mut patches[..];
    let mut crcs = Vec::with_capacity(strips.len());
    for (buffer, crc, len) in &strips {
        for (count, slot) in buffer.counts.iter().zip(&mut offsets_left) {
            offset += count;
            slot.copy_from_slice(&offset.to_le_bytes());
        }
        let (here, rest) = patches_left.split_at_mut(2 * buffer.patches.len());
        here.copy_from_slice(bytemuck::cast_slice(&buffer.patches));
        patches_left = rest;
        crcs.push((*crc, *len));
    }
    for section in [&*offsets, &*patches] {
        crcs.push((crc32fast::hash(section), section.len() as u64));
    }
    Ok(CompressedMatrix::new(header, bytes, combine_crcs(crcs)))
}

/// What is known of a matrix before its first tile is encoded: the window and all sizes.
#[derive(Clone, Copy)]
pub(crate) struct Encoder {
    strips: Strips,
    header: MatrixHeader,
}

/// The variable part of a run of encoded tiles.
#[derive(Default)]
pub(crate) struct TileBuffer {
    /// Patches of each tile.
    pub counts: Vec<u32>,
    /// The patches, tile after tile, as stored.
    pub patches: Vec<u16>,
}

impl Encoder {
    pub fn new(strips: Strips, cols: usize, exponents: &Histogram) -> Result<Self, Error> {
        let window = exponents.window();
        let rows = strips.matrix_rows();
        Ok(Self {
            strips,
            header: MatrixHeader::new(rows, cols, window.base, window.outliers)?,
        })
    }

    /// Which rows are in which strip.
    pub fn strips(&self) -> Strips {
        self.strips
    }

    /// The header, which lacks the checksum of the payload.
    pub fn header(&self) -> MatrixHeader {
        self.header
    }

    /// Encodes what is in a strip, or in some of its columns, to `dense`, which its tiles fill, and appends to `buffer`.
    pub fn encode(&self, strip: &Matrix, dense: &mut [u8], buffer: &mut TileBuffer) {
        let cols = strip.cols();
        let base = self.header.base();
        for (index, dense) in dense.chunks_exact_mut(TILE_BYTES).enumerate() {
            let col = index * TILE_COLS;
            let before = buffer.patches.len();
            if strip.rows() == TILE_ROWS && col + TILE_COLS <= cols {
                let tile = &strip.as_le_bytes()[2 * col..];
                encode_tile(base, tile, 2 * cols, dense, &mut buffer.patches);
            } else {
                let tile = self.padded_tile(strip, col);
                let stride = 2 * TILE_COLS;
                encode_tile(base, &tile, stride, dense, &mut buffer.patches);
            }
            buffer.counts.push((buffer.patches.len() - before) as u32);
        }
    }

    /// A tile that sticks out of the matrix, filled up with weights that are stored as zeros.
    fn padded_tile(&self, rows: &Matrix, col: usize) -> [u8; 2 * TILE_WEIGHTS] {
        let padding = (u16::from(self.header.base()) << 7).to_le_bytes();
        let mut tile = [0; 2 * TILE_WEIGHTS];
        for weight in tile.chunks_exact_mut(2) {
            weight.copy_from_slice(&padding);
        }
        let cols = rows.cols();
        let width = 2 * (cols - col).min(TILE_COLS);
        for (to, from) in tile
            .chunks_exact_mut(2 * TILE_COLS)
            .zip(rows.as_le_bytes().chunks_exact(2 * cols))
        {
            to[..width].copy_from_slice(&from[2 * col..][..width]);
        }
        tile
    }
}

/// Encodes a full tile whose rows lie `stride` bytes apart; `dense` gets its [`TILE_BYTES`].
fn encode_tile(base: u8, tile: &[u8], stride: usize, dense: &mut [u8], patches: &mut Vec<u16>) {
    let first_patch = patches.len();
    for (band, dense) in dense.chunks_exact_mut(BAND_BYTES).enumerate() {
        let rows = &tile[band * BAND_ROWS * stride..];
        let dense = dense.try_into().expect("a band");
        encode_band(base, band, rows, stride, dense, patches);
    }
    patches[first_patch..].sort_unstable_by_key(|&patch| Patch(patch).position());
}

/// Encodes a full band. Lane-wise, so that the compiler makes vectors of lanes.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn encode_band(
    base: u8,
    band: usize,
    rows: &[u8],
    stride: usize,
    dense: &mut [u8; BAND_BYTES],
    patches: &mut Vec<u16>,
) {
    // Eight neighbouring weights belong to four neighbouring lanes.
    let mut pairs = [[0u32; LANES]; LANE_PAIRS];
    for group in 0..LANES / 4 {
        for row_half in 0..2 {
            let row = &rows[(group + 8 * row_half) * stride..][..2 * TILE_COLS];
            for (i, eight) in row.chunks_exact(16).enumerate() {
                let pairs = &mut pairs[2 * i + row_half][4 * group..][..4];
                bytemuck::cast_slice_mut(pairs).copy_from_slice(eight);
            }
        }
    }

    scale_all(
        bytemuck::cast_slice_mut(pairs.as_flattened_mut()),
        scale(base),
    );
    /// The same in both halves.
    const BOTH: u32 = 0x0001_0001;
    let (window, left_out) = (window_bits(base) * BOTH, u32::from(LEFT_OUT) * BOTH);
    let mut low = [[0u32; LANES]; LANE_QUADS];
    let mut high = [[0u32; LANES]; LANE_QUADS];
    let mut outliers = [0u32; LANES];
    for (pair, pairs) in pairs.iter().enumerate() {
        let (quad, shift) = (pair / 2, 16 * (pair as u32 % 2));
        for (lane, weights) in pairs.iter().enumerate() {
            low[quad][lane] |= (weights & 0xFF | weights >> 8 & 0xFF00) << shift;
            high[quad][lane] |= (weights >> 8 & 0xFF | weights >> 16 & 0xFF00) << shift;
            outliers[lane] |= u32::from((weights ^ window) & left_out != 0) << pair;
        }
    }
    for (lane, &outliers) in outliers.iter().enumerate() {
        if outliers != 0 {
            patch_lane(base, band, lane, &pairs, outliers, patches);
        }
    }
    let (bytes, codes) = dense.split_at_mut(CODES_AT);
    for (half, low) in bytes
        .chunks_exact_mut(HALF_BYTES)
        .zip(low.chunks_exact(LANE_QUADS / 2))
    {
        for lane in 0..LANES {
            for (w, quads) in low.iter().enumerate() {
                half[16 * lane + 4 * w..][..4].copy_from_slice(&quads[lane].to_le_bytes());
            }
        }
    }
    for lane in 0..LANES {
        let high = std::array::from_fn(|quad| high[quad][lane]);
        for (w, word) in decode::code_words(&high).iter().enumerate() {
            codes[w * CODE_BYTES + lane * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Makes weights [`scaled`] ones. Without subnormals, as most are, that is an addition. Exponents past a window
/// that [`is_base`] allows wrap, and are not undone; [`Histogram`] chooses none for which there are any.
#[inline(always)]
fn scale_all(weights: &mut [u16], scale: u32) {
    const EXPONENT: u16 = 0x7F80;
    let is_small = |w: u16| w & EXPONENT == 0 && w << 1 != 0;
    if weights.iter().fold(false, |any, &w| any | is_small(w)) {
        for weight in weights {
            *weight = scaled(*weight, scale);
        }
    } else {
        for weight in weights {
            let is_normal = !matches!(*weight & EXPONENT, 0 | EXPONENT);
            *weight = weight.wrapping_add(u16::from(is_normal) * ((scale as u16) << 7));
        }
    }
}

/// [`LEFT_OUT`] of the [`scaled`] weights in the window.
fn window_bits(base: u8) -> u32 {
    u32::from(window_high(base)) << 8
}

/// Adds the patches of a lane's [`scaled`] weights. `outliers` has a bit for each pair with at least one.
fn patch_lane(
    base: u8,
    band: usize,
    lane: usize,
    pairs: &[[u32; LANES]; LANE_PAIRS],
    mut outliers: u32,
    patches: &mut Vec<u16>,
) {
    while outliers != 0 {
        let pair = outliers.trailing_zeros() as usize;
        outliers &= outliers - 1;
        for second in [false, true] {
            let scaled = (pairs[pair][lane] >> if second { 16 } else { 0 }) as u16;
            if u32::from(scaled & LEFT_OUT) != window_bits(base) {
                let position = patch_position(band, lane, pair, second);
                patches.push(Patch::new(position, scaled).0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_scaled_alike() {
        let weights: Vec<u16> = (0..=u16::MAX).collect();
        for scale in 0..WINDOW {
            let expected: Vec<u16> = weights.iter().map(|&w| scaled(w, scale)).collect();
            // One at a time, so that most have no subnormal beside them; and all together.
            for len in [1, 1 << 16] {
                let mut alike = weights.clone();
                for part in alike.chunks_mut(len) {
                    scale_all(part, scale);
                }
                assert_eq!(alike, expected);
            }
        }
    }
}
