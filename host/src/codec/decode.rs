use multiversion::multiversion;
use rayon::prelude::*;
use zipserv_gpu::{decode as lanes, layout::*};

use super::{CompressedMatrix, Strips, memory::zeroed};
use crate::Error;

/// Restores the weights of `matrix`, row after row.
pub fn decode(matrix: &CompressedMatrix) -> Vec<half::bf16> {
    let mut weights = zeroed(matrix.rows() * matrix.cols());
    let strips = Strips::of_matrix(matrix.rows());
    decode_strips(matrix, strips, bytemuck::cast_slice_mut(&mut weights));
    weights
}

/// Restores the weights of `matrix` as little-endian bytes, row after row, into `output`.
///
/// # Errors
/// [`Error::OutputSize`] when `output` is not exactly as long as the matrix.
pub fn decode_into(matrix: &CompressedMatrix, output: &mut [u8]) -> Result<(), Error> {
    let expected = matrix.original_bytes();
    if output.len() != expected {
        return Err(Error::OutputSize {
            expected,
            found: output.len(),
        });
    }
    decode_strips(matrix, Strips::of_matrix(matrix.rows()), output);
    Ok(())
}

/// Restores some rows of `matrix`, in the order of their numbers, as little-endian bytes into `output`.
///
/// # Errors
/// [`Error::Row`] for a number that is no row's; [`Error::OutputSize`] when `output` is not exactly as long as the rows.
pub fn decode_rows(
    matrix: &CompressedMatrix,
    numbers: &[usize],
    output: &mut [u8],
) -> Result<(), Error> {
    let (rows, width) = (matrix.rows(), 2 * matrix.cols());
    if let Some(&row) = numbers.iter().find(|&&row| row >= rows) {
        return Err(Error::Row { row, rows });
    }
    let (expected, found) = (numbers.len().saturating_mul(width), output.len());
    if found != expected {
        return Err(Error::OutputSize { expected, found });
    }
    output
        .par_chunks_mut(width.max(1))
        .zip(numbers)
        .for_each(|(output, &row)| {
            let strip = row / TILE_ROWS;
            let first = strip * TILE_ROWS;
            let mut rows = zeroed(width * TILE_ROWS.min(rows - first));
            decode_strip(matrix, strip, &mut rows);
            output.copy_from_slice(&rows[(row - first) * width..][..width]);
        });
    Ok(())
}

/// Restores all weights of a matrix with such strips into `output`, which is as long as they are.
pub(crate) fn decode_strips(matrix: &CompressedMatrix, strips: Strips, output: &mut [u8]) {
    let width = 2 * matrix.cols();
    output
        .par_chunks_mut((strips.expert_rows() * width).max(1))
        .enumerate()
        .for_each(|(expert, output)| decode_expert(matrix, strips, expert, output));
}

/// Restores the weights of one expert of a stack with such strips.
pub(super) fn decode_expert(
    matrix: &CompressedMatrix,
    strips: Strips,
    expert: usize,
    output: &mut [u8],
) {
    let first = expert * strips.of_expert();
    output
        .par_chunks_mut((2 * TILE_ROWS * matrix.cols()).max(1))
        .enumerate()
        .for_each(|(strip, rows)| decode_strip(matrix, first + strip, rows));
}

/// Restores the rows of one strip, as many as there is room for.
pub(crate) fn decode_strip(matrix: &CompressedMatrix, strip: usize, rows: &mut [u8]) {
    let cols = matrix.cols();
    let (_, tile_cols) = tile_grid(matrix.rows(), cols);
    let full = rows.len() == 2 * TILE_ROWS * cols;
    for (col, tile_col) in (0..cols).step_by(TILE_COLS).zip(0..tile_cols) {
        let tile = strip * tile_cols + tile_col;
        let dense = &matrix.dense()[tile * TILE_BYTES..][..TILE_BYTES];
        let patches = (matrix.patch_offset(tile)..matrix.patch_offset(tile + 1))
            .map(|index| matrix.patch(index));
        if full && col + TILE_COLS <= cols {
            decode_tile(
                matrix.base(),
                dense,
                patches,
                &mut rows[2 * col..],
                2 * cols,
            );
        } else {
            let mut padded = [0; 2 * TILE_WEIGHTS];
            decode_tile(matrix.base(), dense, patches, &mut padded, 2 * TILE_COLS);
            let width = 2 * (cols - col).min(TILE_COLS);
            for (to, from) in rows
                .chunks_exact_mut(2 * cols)
                .zip(padded.chunks_exact(2 * TILE_COLS))
            {
                to[2 * col..][..width].copy_from_slice(&from[..width]);
            }
        }
    }
}

/// Restores a full tile to rows that lie `stride` bytes apart.
fn decode_tile(
    base: u8,
    dense: &[u8],
    patches: impl Iterator<Item = Patch>,
    tile: &mut [u8],
    stride: usize,
) {
    for (band, dense) in dense.chunks_exact(BAND_BYTES).enumerate() {
        let rows = &mut tile[band * BAND_ROWS * stride..];
        decode_band(base, dense.try_into().expect("a band"), rows, stride);
    }
    for patch in patches {
        let (row, col) = patch_row_col(patch.position());
        let weight = &mut tile[row * stride + 2 * col..][..2];
        let bits = u16::from_le_bytes([weight[0], weight[1]]);
        weight.copy_from_slice(&patch.weight(bits, scale(base)).to_le_bytes());
    }
}

/// Restores a full band. Lane-wise, so that the compiler makes vectors of lanes.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn decode_band(base: u8, dense: &[u8; BAND_BYTES], rows: &mut [u8], stride: usize) {
    let (bytes, codes) = dense.split_at(CODES_AT);
    let mut low = [[0u32; LANES]; LANE_QUADS];
    for (half, low) in bytes
        .chunks_exact(HALF_BYTES)
        .zip(low.chunks_exact_mut(LANE_QUADS / 2))
    {
        for lane in 0..LANES {
            for (w, low) in low.iter_mut().enumerate() {
                low[lane] = word(half, 16 * lane + 4 * w);
            }
        }
    }
    let (rest, scale) = (window_quad(base), scale_pair(base));
    let mut pairs = [[0u32; LANES]; LANE_PAIRS];
    macro_rules! decode_quads {
        ($($q:literal)*) => {$(
            for lane in 0..LANES {
                let words = std::array::from_fn(|w| word(codes, w * CODE_BYTES + 4 * lane));
                let [a, b] = lanes::quad::<$q>(low[$q][lane], words, rest);
                // No half borrows: the exponents are the window's, which starts at the scale or above.
                pairs[2 * $q][lane] = a - scale;
                pairs[2 * $q + 1][lane] = b - scale;
            }
        )*};
    }
    decode_quads!(0 1 2 3 4 5 6 7);
    // Four neighbouring lanes hold eight neighbouring weights.
    for group in 0..LANES / 4 {
        for row_half in 0..2 {
            let row = &mut rows[(group + 8 * row_half) * stride..][..2 * TILE_COLS];
            for (i, eight) in row.chunks_exact_mut(16).enumerate() {
                let pairs = &pairs[2 * i + row_half][4 * group..][..4];
                eight.copy_from_slice(bytemuck::cast_slice(pairs));
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
