use std::ops::Range;

use zipserv_gpu::layout;

use super::compressed::tiles;
use crate::Error;

/// A dense row-major matrix of BF16 weights: `rows` output features by `cols` input features.
///
/// It borrows the weights as little-endian bytes at any alignment, the form in which a checkpoint
/// holds them.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A matrix over `2 * rows * cols` little-endian bytes.
    ///
    /// # Errors
    /// [`Error::MatrixSize`] when the number of bytes does not fit the shape, and
    /// [`Error::MatrixTooLarge`] when the matrix is too large for the format (2^32 rows,
    /// columns or tiles).
    pub fn from_le_bytes(rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self, Error> {
        let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(2));
        if expected != Some(bytes.len()) {
            return Err(Error::MatrixSize {
                rows,
                cols,
                found: bytes.len(),
            });
        }
        tiles(rows, cols)?;
        Ok(Self { rows, cols, bytes })
    }

    /// A matrix over BF16 values.
    ///
    /// # Errors
    /// As [`Matrix::from_le_bytes`].
    pub fn from_bf16(rows: usize, cols: usize, weights: &'a [half::bf16]) -> Result<Self, Error> {
        Self::from_le_bytes(rows, cols, bytemuck::cast_slice(weights))
    }

    /// A matrix over the bit patterns of BF16 values.
    ///
    /// # Errors
    /// As [`Matrix::from_le_bytes`].
    pub fn from_bits(rows: usize, cols: usize, bits: &'a [u16]) -> Result<Self, Error> {
        Self::from_le_bytes(rows, cols, bytemuck::cast_slice(bits))
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The weights as little-endian bytes, row after row.
    pub fn as_le_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// One strip: up to 32 rows.
    pub(crate) fn strip(&self, strip: usize) -> Self {
        let first = strip * layout::TILE_ROWS;
        self.rows_of(first..(first + layout::TILE_ROWS).min(self.rows))
    }

    /// Some of the rows.
    pub(crate) fn rows_of(&self, rows: Range<usize>) -> Self {
        let width = 2 * self.cols;
        Self {
            rows: rows.len(),
            cols: self.cols,
            bytes: &self.bytes[rows.start * width..rows.end * width],
        }
    }
}
