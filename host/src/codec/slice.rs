use std::ops::Range;

use rayon::prelude::*;
use zipserv_gpu::layout::{TILE_BYTES, TILE_COLS, TILE_ROWS, tile_grid};

use super::{CompressedMatrix, HEADER_BYTES, MatrixHeader, compressed::crc, memory::zeroed};
use crate::Error;

impl CompressedMatrix<'_> {
    /// The part of the matrix in `rows` and `cols`, without decoding it: tiles and patches are
    /// copied as they are, in parallel on the current rayon pool.
    ///
    /// A part is made of whole tiles of 32 rows by 64 columns: each end of `rows` is a multiple of 32
    /// or [`rows()`](Self::rows), each end of `cols` a multiple of 64 or [`cols()`](Self::cols). It
    /// keeps the window of the whole, where [`encode`](crate::encode()) might choose another for it.
    /// All of an encoded matrix has the bytes of that matrix.
    ///
    /// # Errors
    /// [`Error::Slice`] when a range has its start behind its end, goes beyond the matrix, or cuts
    /// through tiles.
    ///
    /// ```
    /// use zipserv::{Matrix, decode, encode};
    ///
    /// let bits: Vec<u16> = (0..64 * 200).map(|i| 0x3F80 + i % 500).collect();
    /// let compressed = encode(&Matrix::from_bits(64, 200, &bits)?)?;
    /// // What lies right of column 128, for another GPU: its 72 columns end where the matrix does.
    /// let right = compressed.slice(0..64, 128..200)?;
    /// assert_eq!((right.rows(), right.cols()), (64, 72));
    /// assert_eq!(decode(&right)[..72], decode(&compressed)[128..200]);
    /// # Ok::<(), zipserv::Error>(())
    /// ```
    pub fn slice(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<CompressedMatrix<'static>, Error> {
        check("rows", &rows, TILE_ROWS, self.rows())?;
        check("cols", &cols, TILE_COLS, self.cols())?;
        let (_, stride) = tile_grid(self.rows(), self.cols());
        let (strips, width) = match tile_grid(rows.len(), cols.len()) {
            (_, 0) => (0, 0),
            grid => grid,
        };
        // The tiles of the part in one of its strips lie side by side, and so do their patches.
        let corner = rows.start / TILE_ROWS * stride + cols.start / TILE_COLS;
        let tiles = |strip: usize| corner + strip * stride..corner + strip * stride + width;
        let patches_of = |tiles: &Range<usize>| -> Range<usize> {
            self.patch_offset(tiles.start)..self.patch_offset(tiles.end)
        };
        let count = (0..strips).map(|strip| patches_of(&tiles(strip)).len() as u64);
        let header = MatrixHeader::new(rows.len(), cols.len(), self.base(), count.sum())?;
        let mut bytes = zeroed(header.stored_bytes());
        let [dense, offsets, patches] = header.sections_mut(&mut bytes);

        dense
            .par_chunks_mut((width * TILE_BYTES).max(1))
            .enumerate()
            .for_each(|(strip, to)| {
                let from = tiles(strip).start * TILE_BYTES;
                to.copy_from_slice(&self.dense()[from..][..to.len()]);
            });
        // These are few beside the dense bytes.
        let mut offsets_left = offsets[4..].chunks_exact_mut(4);
        let mut patches_left = patches;
        let mut before = 0;
        for tiles in (0..strips).map(tiles) {
            let Range { start, end } = patches_of(&tiles);
            for (tile, slot) in tiles.zip(&mut offsets_left) {
                let offset = before + self.patch_offset(tile + 1) - start;
                slot.copy_from_slice(&(offset as u32).to_le_bytes());
            }
            let from = &self.patches()[2 * start..2 * end];
            let (here, rest) = patches_left.split_at_mut(from.len());
            here.copy_from_slice(from);
            patches_left = rest;
            before += end - start;
        }
        let payload_crc = crc(&bytes[HEADER_BYTES..]);
        Ok(CompressedMatrix::new(header, bytes, payload_crc))
    }
}

/// Checks that a range is made of whole tiles of `tile` rows or columns, of which there are `len`.
fn check(axis: &'static str, range: &Range<usize>, tile: usize, len: usize) -> Result<(), Error> {
    let Range { start, end } = *range;
    let is_edge = |at: usize| at == len || at < len && at.is_multiple_of(tile);
    if start <= end && is_edge(start) && is_edge(end) {
        return Ok(());
    }
    Err(Error::Slice {
        axis,
        start,
        end,
        tile,
        len,
    })
}
