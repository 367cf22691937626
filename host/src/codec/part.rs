use std::ops::Range;

use zipserv_gpu::layout::{TILE_BYTES, TILE_COLS, tile_grid};

use super::{CompressedMatrix, MatrixHeader, Strips};
use crate::Error;

/// Tiles that one thread works on at a time: small beside all memory, large beside the cost of a system call.
const TILES: usize = 128;

/// Part of a matrix that is itself one, with tiles that follow one another: whole strips, or tiles of a single strip.
/// So a matrix is encoded and decoded part by part, without all of it in memory.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub strips: Range<usize>,
    /// The rows of weights in them.
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    /// Numbers of its tiles in the whole.
    pub tiles: Range<usize>,
}

impl Part {
    /// All parts of a matrix, in the order of their tiles.
    pub fn all(strips: Strips, cols: usize) -> impl Iterator<Item = Self> {
        let (count, width) = tile_grid(strips.matrix_rows(), cols);
        let (height, panel) = match width {
            0..TILES => (TILES / width.max(1), width.max(1)),
            // The last panel of a strip may be narrow, so these are cut only where it matters.
            _ if width <= 4 * TILES => (1, width),
            _ => (1, TILES),
        };
        (0..count).step_by(height).flat_map(move |strip| {
            let end = (strip + height).min(count);
            (0..width).step_by(panel).map(move |col| {
                let right = (col + panel).min(width);
                Self {
                    strips: strip..end,
                    rows: strips.rows(&(strip..end)),
                    cols: col * TILE_COLS..(right * TILE_COLS).min(cols),
                    tiles: strip * width + col..(end - 1) * width + right,
                }
            })
        })
    }

    /// Bytes of its weights.
    pub fn original_bytes(&self) -> usize {
        2 * self.rows.len() * self.cols.len()
    }

    /// The runs of bytes that its weights are in those of the whole, which has so many columns: one of all rows, or
    /// one for each row.
    pub fn runs(&self, cols: usize) -> impl Iterator<Item = Range<usize>> {
        let width = self.cols.len();
        let rows = if width == cols { self.rows.len() } else { 1 };
        let first = self.cols.start;
        self.rows.clone().step_by(rows.max(1)).map(move |row| {
            let start = 2 * (row * cols + first);
            start..start + 2 * rows * width
        })
    }
}

/// A compressed matrix that is read part by part.
pub(crate) struct Parts {
    header: MatrixHeader,
    strips: Strips,
    offsets: Vec<u8>,
}

/// What is wrong with a part: how to read it has failed, or what was read is no part of a checked matrix. Which of
/// the checks it is that fails, [`CompressedMatrix::from_bytes`] tells.
pub(crate) enum PartError<E> {
    Read(E),
    Invalid,
}

impl<E> From<E> for PartError<E> {
    fn from(error: E) -> Self {
        Self::Read(error)
    }
}

impl Parts {
    /// Takes the patch offsets, which lie where `header` says. Nothing if they are wrong.
    pub fn new(header: MatrixHeader, strips: Strips, offsets: Vec<u8>) -> Option<Self> {
        header.check_offsets(&offsets).ok()?;
        Some(Self {
            header,
            strips,
            offsets,
        })
    }

    /// Reads and checks a part, in `buffer`. `read` fills a slice with the bytes of the whole from an offset on.
    pub fn read<'a, E>(
        &self,
        part: &Part,
        buffer: &'a mut Vec<u8>,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<CompressedMatrix<'a>, PartError<E>> {
        let Range { start, end } = part.tiles;
        let offset = |tile| MatrixHeader::patch_offset(&self.offsets, tile);
        let (first, count) = (offset(start), offset(end) - offset(start));
        let whole = &self.header;
        let rows = self.strips.matrix_rows_of(&part.strips);
        let header = MatrixHeader::new(rows, part.cols.len(), whole.base(), count as u64)
            .expect("a part is smaller than the whole");
        buffer.resize(header.stored_bytes(), 0);
        let [dense, offsets, patches] = header.sections_mut(buffer);
        read(whole.dense().start + start * TILE_BYTES, dense)?;
        read(whole.patches().start + 2 * first, &mut patches[..2 * count])?;
        for (tile, to) in (start..=end).zip(offsets.chunks_exact_mut(4)) {
            to.copy_from_slice(&((offset(tile) - first) as u32).to_le_bytes());
        }
        CompressedMatrix::of_part(header, buffer).map_err(|_: Error| PartError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In order, and each weight and tile once.
    #[test]
    fn parts_are_all_of_a_matrix() {
        let matrices = [
            (0, 5),
            (5, 0),
            (1, 1),
            (33, 65),
            (3000, 70),
            (70, 64 * 600),
            (40, 64 * 2048),
            (40, 64 * 2048 + 1),
            (33, 64 * 5000 + 7),
        ];
        let stacks = [
            (0, 5, 7),
            (5, 0, 7),
            (5, 7, 0),
            (1, 1, 1),
            (7, 33, 65),
            (90, 70, 70),
            (3, 40, 64 * 600),
        ];
        let matrices = matrices.map(|(rows, cols)| (Strips::of_matrix(rows), rows, cols));
        let stacks = stacks.map(|(experts, rows, cols)| {
            let strips = Strips::aligned(experts, rows).unwrap();
            (strips, experts * rows, cols)
        });
        for (strips, rows, cols) in matrices.into_iter().chain(stacks) {
            let (mut tiles, mut weights) = (0, 0);
            let mut seen = vec![false; rows * cols];
            for part in Part::all(strips, cols) {
                let height = part.strips.len();
                let (_, width) = tile_grid(1, part.cols.len());
                let matrix_rows = strips.matrix_rows_of(&part.strips);
                assert_eq!(tile_grid(matrix_rows, part.cols.len()), (height, width));
                assert_eq!(part.tiles, tiles..tiles + height * width);
                assert!((1..=4 * TILES).contains(&part.tiles.len()));
                tiles = part.tiles.end;
                weights += part.original_bytes() / 2;
                for run in part.runs(cols) {
                    for weight in run.step_by(2) {
                        assert!(!std::mem::replace(&mut seen[weight / 2], true));
                        assert!(part.rows.contains(&(weight / 2 / cols)));
                        assert!(part.cols.contains(&(weight / 2 % cols)));
                    }
                }
            }
            let (height, width) = tile_grid(strips.matrix_rows(), cols);
            assert_eq!((tiles, weights), (height * width, rows * cols));
            assert!(seen.iter().all(|&seen| seen));
        }
    }
}
