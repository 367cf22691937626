use std::ops::Range;

use half::bf16;

use super::{
    CompressedMatrix, Histogram, Matrix, Strips, concat, decode::decode_expert,
    encode::encode_strips, zeroed,
};
use crate::Error;

/// The matrices of a mixture's experts, compressed as one: they follow one another, each from a strip of 32 rows of its
/// own on, so that a kernel finds each. An expert whose rows are no multiple of 32 is filled up with weights that take
/// no patch, and that nothing reads.
///
/// ```
/// use zipserv::{ExpertStack, Matrix};
///
/// let bits: Vec<u16> = (0..3 * 40 * 64).map(|i| 0x3F80 + i % 500).collect();
/// let experts: Vec<Matrix> = bits
///     .chunks(40 * 64)
///     .map(|bits| Matrix::from_bits(40, 64, bits))
///     .collect::<Result<_, _>>()?;
/// let stack = ExpertStack::encode(&experts)?;
/// assert_eq!(stack.matrix().rows(), 3 * 64);
/// assert_eq!(stack.decode(1)?, experts[1].as_le_bytes());
/// // Some of them, for another GPU.
/// assert_eq!(stack.slice(1..3)?.decode(0)?, experts[1].as_le_bytes());
/// # Ok::<(), zipserv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExpertStack<'a> {
    matrix: CompressedMatrix<'a>,
    strips: Strips,
}

impl ExpertStack<'static> {
    /// Compresses the matrices of all experts, which have one shape, in one window.
    ///
    /// # Errors
    /// [`Error::Experts`] when there are none, or their shapes differ; as [`encode`](crate::encode()) when they are too
    /// large for the format.
    pub fn encode(experts: &[Matrix]) -> Result<Self, Error> {
        let count = experts.len();
        let (rows, cols) = experts.first().map_or((0, 0), |m| (m.rows(), m.cols()));
        if count == 0 || experts.iter().any(|m| (m.rows(), m.cols()) != (rows, cols)) {
            return Err(Error::Experts {
                experts: count,
                rows,
                found: experts.iter().map(Matrix::rows).sum(),
            });
        }
        let strips = Strips::aligned(count, rows).ok_or(Error::MatrixTooLarge { rows, cols })?;
        let mut exponents = Histogram::empty();
        for expert in experts {
            exponents += &Histogram::of(expert);
        }
        let each = strips.of_expert();
        let strip_of = |strip: usize| experts[strip / each].strip(strip % each);
        let matrix = encode_strips(strips, cols, &exponents, strip_of)?;
        Ok(Self { matrix, strips })
    }

    /// As [`encode`](Self::encode), of experts whose matrices follow one another in one that is dense.
    ///
    /// # Errors
    /// [`Error::Experts`] when its rows are not those of so many; as [`encode`](Self::encode).
    pub fn encode_stacked(experts: usize, matrix: &Matrix) -> Result<Self, Error> {
        let (all, cols) = (matrix.rows(), matrix.cols());
        let rows = all.checked_div(experts).unwrap_or(0);
        if experts == 0 || rows * experts != all {
            return Err(Error::Experts {
                experts,
                rows,
                found: all,
            });
        }
        let strips = Strips::aligned(experts, rows).ok_or(Error::MatrixTooLarge { rows, cols })?;
        let strip_of = |strip| matrix.rows_of(strips.rows(&(strip..strip + 1)));
        let matrix = encode_strips(strips, cols, &Histogram::of(matrix), strip_of)?;
        Ok(Self { matrix, strips })
    }

    /// The stack that compressed matrices become, all of one window and of one width. Each but the last of an expert has
    /// whole strips.
    pub(crate) fn concat(experts: usize, parts: &[CompressedMatrix]) -> Result<Self, Error> {
        let each = parts.len() / experts;
        let rows = parts[..each].iter().map(CompressedMatrix::rows).sum();
        Self::new(concat(parts)?, experts, rows)
    }
}

impl<'a> ExpertStack<'a> {
    /// The stack that a compressed matrix is, where an expert has so many rows.
    ///
    /// # Errors
    /// [`Error::Experts`] when the matrix has other rows than `experts` times `rows`, rounded up to whole strips.
    pub fn new(matrix: CompressedMatrix<'a>, experts: usize, rows: usize) -> Result<Self, Error> {
        match Strips::aligned(experts, rows) {
            Some(strips) if experts > 0 && strips.matrix_rows() == matrix.rows() => {
                Ok(Self { matrix, strips })
            }
            _ => Err(Error::Experts {
                experts,
                rows,
                found: matrix.rows(),
            }),
        }
    }

    /// All of it.
    pub fn matrix(&self) -> &CompressedMatrix<'a> {
        &self.matrix
    }

    /// How many experts there are.
    pub fn experts(&self) -> usize {
        self.strips.experts()
    }

    /// Output features of one, M.
    pub fn rows(&self) -> usize {
        self.strips.expert_rows()
    }

    /// Input features, K.
    pub fn cols(&self) -> usize {
        self.matrix.cols()
    }

    /// Restores the matrix of an expert, as little-endian bytes.
    ///
    /// # Errors
    /// [`Error::Expert`] when there is no such expert.
    pub fn decode(&self, expert: usize) -> Result<Vec<u8>, Error> {
        self.check(expert, self.experts())?;
        let mut bytes = zeroed(2 * self.rows() * self.cols());
        decode_expert(&self.matrix, self.strips, expert, &mut bytes);
        Ok(bytes)
    }

    /// The stack of some of the experts, as they are compressed.
    ///
    /// # Errors
    /// [`Error::Expert`] when one of them is none, or there is none among them.
    pub fn slice(&self, experts: Range<usize>) -> Result<ExpertStack<'static>, Error> {
        let Range { start, end } = experts;
        self.check(start, end.min(self.experts()))?;
        self.check(end - 1, self.experts())?;
        let stride = self.strips.stride();
        let matrix = self
            .matrix
            .slice(start * stride..end * stride, 0..self.cols())?;
        ExpertStack::new(matrix, experts.len(), self.rows())
    }

    /// Whether an expert is one of the first so many.
    fn check(&self, expert: usize, end: usize) -> Result<(), Error> {
        let experts = self.experts();
        match expert < end {
            true => Ok(()),
            false => Err(Error::Expert { expert, experts }),
        }
    }

    /// `Y[t, k] = X[t] W[e(t, k)]^T` on the CPU, plainly: what the kernels are compared with. Of each token's `top_k`
    /// experts, token after token, those that are none give zeros. Sums are FP32.
    ///
    /// # Errors
    /// [`Error::OutputSize`] when activations are not rows of K for each token.
    pub fn multiply(
        &self,
        x: &[bf16],
        experts_of: &[i64],
        top_k: usize,
    ) -> Result<Vec<f32>, Error> {
        let (k, m) = (self.cols(), self.rows());
        let expected = experts_of.len().checked_div(top_k).unwrap_or(0) * k;
        if x.len() != expected {
            let found = x.len();
            return Err(Error::OutputSize { expected, found });
        }
        let mut y = vec![0.0; experts_of.len() * m];
        for expert in 0..self.experts() {
            let is_asked = |&&e: &&i64| e == expert as i64;
            if !experts_of.iter().any(|e| is_asked(&e)) {
                continue;
            }
            let bytes = self.decode(expert)?;
            let weights: Vec<f32> = bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect();
            for (at, _) in experts_of.iter().enumerate().filter(|(_, e)| is_asked(e)) {
                let x = &x[at / top_k * k..][..k];
                for (y, weights) in y[at * m..][..m].iter_mut().zip(weights.chunks_exact(k)) {
                    *y = x.iter().zip(weights).map(|(x, w)| x.to_f32() * w).sum();
                }
            }
        }
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(experts: usize, rows: usize, cols: usize) -> (Vec<u16>, ExpertStack<'static>) {
        let bits: Vec<u16> = (0..experts * rows * cols)
            .map(|i| (0x3C00 + i * 7919 % 700) as u16 | ((i % 3 == 0) as u16) << 15)
            .collect();
        let matrices: Vec<_> = bits
            .chunks(rows * cols)
            .map(|bits| Matrix::from_bits(rows, cols, bits).unwrap())
            .collect();
        let stack = ExpertStack::encode(&matrices).unwrap();
        (bits, stack)
    }

    #[test]
    fn every_expert_comes_back() {
        for (experts, rows, cols) in [
            (1, 1, 1),
            (1, 40, 5),
            (3, 32, 64),
            (4, 33, 65),
            (5, 100, 70),
        ] {
            let (bits, stack) = stack(experts, rows, cols);
            assert_eq!(stack.matrix().rows(), experts * rows.next_multiple_of(32));
            for (expert, bits) in bits.chunks(rows * cols).enumerate() {
                let expected: &[u8] = bytemuck::cast_slice(bits);
                assert_eq!(stack.decode(expert).unwrap(), expected);
            }
            assert!(stack.decode(experts).is_err());
            assert!(stack.decode(usize::MAX).is_err());
            let again = ExpertStack::new(stack.matrix().clone(), experts, rows).unwrap();
            assert_eq!(again.decode(0).unwrap(), stack.decode(0).unwrap());
            for start in 0..experts {
                let slice = stack.slice(start..experts).unwrap();
                assert_eq!((slice.experts(), slice.rows()), (experts - start, rows));
                let last = slice.decode(experts - start - 1).unwrap();
                assert_eq!(last, stack.decode(experts - 1).unwrap());
            }
            for wrong in [0..0, 1..1, 0..experts + 1, 0..usize::MAX, experts..experts] {
                assert!(stack.slice(wrong).is_err());
            }
        }
    }

    #[test]
    fn empty_experts_are_a_stack() {
        for (rows, cols) in [(0, 5), (5, 0), (0, 0)] {
            let empty = Matrix::from_bits(rows, cols, &[]).unwrap();
            let stack = ExpertStack::encode(&[empty; 3]).unwrap();
            assert!(stack.decode(2).unwrap().is_empty());
            assert!(stack.slice(1..2).unwrap().decode(0).unwrap().is_empty());
        }
    }

    /// Whatever the weights beside it are: all are zero here, and a copy of them would be all patches.
    #[test]
    fn padding_takes_no_patches() {
        let mut bits = vec![0x3C00; 2 * 33 * 64];
        bits[32 * 64..33 * 64].fill(0);
        let experts: Vec<_> = bits.chunks(33 * 64).collect();
        let experts: Vec<_> = experts
            .iter()
            .map(|bits| Matrix::from_bits(33, 64, bits).unwrap())
            .collect();
        let stack = ExpertStack::encode(&experts).unwrap();
        assert_eq!(stack.matrix().outliers(), 64);
        let dense = stack.matrix().dense();
        // The second of the bands below an expert is padding alone.
        assert!(
            dense[2 * 2816 - 1408..2 * 2816]
                .iter()
                .all(|&byte| byte == 0)
        );
    }

    #[test]
    fn products_are_those_of_each_expert() {
        let (experts, rows, cols) = (3, 40, 20);
        let (bits, stack) = stack(experts, rows, cols);
        let x: Vec<bf16> = (0..4 * cols)
            .map(|i| bf16::from_f32(i as f32 / 64.0 - 0.5))
            .collect();
        let experts_of = [0, 2, 1, -1, 2, 2, 3, 0];
        let y = stack.multiply(&x, &experts_of, 2).unwrap();
        for (at, &expert) in experts_of.iter().enumerate() {
            for row in 0..rows {
                let exact: f64 = match usize::try_from(expert) {
                    Ok(expert) if expert < experts => (0..cols)
                        .map(|col| {
                            let w = bf16::from_bits(bits[(expert * rows + row) * cols + col]);
                            w.to_f64() * x[at / 2 * cols + col].to_f64()
                        })
                        .sum(),
                    _ => 0.0,
                };
                let value = f64::from(y[at * rows + row]);
                assert!(
                    (value - exact).abs() <= 1e-4 * exact.abs() + 1e-5,
                    "{value} {exact}"
                );
            }
        }
        assert!(stack.multiply(&x[1..], &experts_of, 2).is_err());
    }

    #[test]
    fn what_is_no_stack_is_refused() {
        let (_, stack) = stack(2, 32, 64);
        for (experts, rows) in [(0, 32), (3, 32), (1, 32), (2, 65), (usize::MAX, 32)] {
            assert!(ExpertStack::new(stack.matrix().clone(), experts, rows).is_err());
        }
        let bits = [0; 64];
        let (a, b) = (
            Matrix::from_bits(8, 8, &bits),
            Matrix::from_bits(4, 16, &bits),
        );
        assert!(ExpertStack::encode(&[a.unwrap(), b.unwrap()]).is_err());
        assert!(ExpertStack::encode(&[]).is_err());
    }
}
