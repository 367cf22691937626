use std::ops::Range;

use zipserv_gpu::layout::TILE_ROWS;

/// Which rows of weights each strip of a compressed matrix has: 32 each, but the last one of the matrix, or of each
/// expert of an aligned stack, what is left. `docs/FORMAT.md` says what lies below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strips {
    experts: usize,
    /// Rows of an expert.
    rows: usize,
    /// Rows of the compressed matrix from one expert to the next.
    stride: usize,
}

impl Strips {
    /// Those of a matrix of so many rows.
    pub fn of_matrix(rows: usize) -> Self {
        Self {
            experts: 1,
            rows,
            stride: rows,
        }
    }

    /// Those of a stack whose experts, of so many rows, start with a strip of their own each. Nothing if there are more
    /// rows than can be counted.
    pub fn aligned(experts: usize, rows: usize) -> Option<Self> {
        let stride = rows.checked_next_multiple_of(TILE_ROWS)?;
        experts.checked_mul(stride)?;
        Some(Self {
            experts,
            rows,
            stride,
        })
    }

    /// Experts, or one matrix.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Rows of weights of an expert.
    pub fn expert_rows(&self) -> usize {
        self.rows
    }

    /// Rows of the compressed matrix from the start of an expert to that of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Rows of the compressed matrix.
    pub fn matrix_rows(&self) -> usize {
        self.experts * self.stride
    }

    /// Strips of an expert.
    pub fn of_expert(&self) -> usize {
        self.stride.div_ceil(TILE_ROWS)
    }

    /// The rows of weights that some strips have, which follow one another. Where there are no rows, there are no strips to ask for.
    pub fn rows(&self, strips: &Range<usize>) -> Range<usize> {
        let each = self.of_expert();
        let start = |strip: usize| strip / each * self.rows + strip % each * TILE_ROWS;
        start(strips.start)..start(strips.end)
    }

    /// Rows of the compressed matrix that some strips have.
    pub fn matrix_rows_of(&self, strips: &Range<usize>) -> usize {
        (strips.end * TILE_ROWS).min(self.matrix_rows()) - strips.start * TILE_ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_strips() {
        let matrix = Strips::of_matrix(70);
        assert_eq!((matrix.matrix_rows(), matrix.of_expert()), (70, 3));
        assert_eq!(matrix.rows(&(0..3)), 0..70);
        assert_eq!(matrix.rows(&(2..3)), 64..70);
        assert_eq!(matrix.matrix_rows_of(&(1..3)), 38);
        let stack = Strips::aligned(3, 40).unwrap();
        assert_eq!((stack.matrix_rows(), stack.of_expert()), (192, 2));
        assert_eq!(stack.rows(&(0..6)), 0..120);
        assert_eq!(stack.rows(&(1..2)), 32..40);
        assert_eq!(stack.rows(&(1..5)), 32..112);
        assert_eq!(stack.rows(&(5..6)), 112..120);
        assert_eq!(stack.matrix_rows_of(&(1..5)), 128);
        assert_eq!(Strips::aligned(2, usize::MAX), None);
        assert_eq!(Strips::aligned(usize::MAX, 40), None);
        assert_eq!(Strips::aligned(0, 40).unwrap().matrix_rows(), 0);
    }
}
