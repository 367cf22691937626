use half::bf16;
use zipserv_gpu::layout::TILE_ROWS;

use super::{CompressedMatrix, Matrix, decode_rows, encode};
use crate::Error;

/// The matrices of a mixture's experts, compressed as one: they follow one another, each from a strip of 32 rows of its
/// own on, so that a kernel finds each. An expert whose rows are no multiple of 32 is filled up with copies of its last
/// row, which nothing reads.
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
/// # Ok::<(), zipserv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExpertStack<'a> {
    matrix: CompressedMatrix<'a>,
    experts: usize,
    rows: usize,
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
        let (width, stride) = (2 * cols, rows.next_multiple_of(TILE_ROWS));
        let all = count.checked_mul(stride);
        let all = all.ok_or(Error::MatrixTooLarge { rows, cols })?;
        // Whether it can be, before memory is taken.
        super::MatrixHeader::new(all, cols, 0, 0)?;
        let mut bytes = Vec::with_capacity(all * width);
        for expert in experts {
            let weights = expert.as_le_bytes();
            bytes.extend_from_slice(weights);
            for _ in rows..stride {
                bytes.extend_from_slice(&weights[weights.len() - width..]);
            }
        }
        let matrix = encode(&Matrix::from_le_bytes(all, cols, &bytes)?)?;
        Ok(Self {
            matrix,
            experts: count,
            rows,
        })
    }
}

impl<'a> ExpertStack<'a> {
    /// The stack that a compressed matrix is, such as a tensor of three dimensions of a checkpoint, where an expert has
    /// so many rows.
    ///
    /// # Errors
    /// [`Error::Experts`] when the matrix has other rows than `experts` times `rows`, rounded up to whole strips.
    pub fn new(matrix: CompressedMatrix<'a>, experts: usize, rows: usize) -> Result<Self, Error> {
        let expected = experts.checked_mul(rows.next_multiple_of(TILE_ROWS));
        if experts == 0 || expected != Some(matrix.rows()) {
            return Err(Error::Experts {
                experts,
                rows,
                found: matrix.rows(),
            });
        }
        Ok(Self {
            matrix,
            experts,
            rows,
        })
    }

    /// All of it.
    pub fn matrix(&self) -> &CompressedMatrix<'a> {
        &self.matrix
    }

    /// How many experts there are.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Output features of one, M.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features, K.
    pub fn cols(&self) -> usize {
        self.matrix.cols()
    }

    /// Restores the matrix of an expert, as little-endian bytes.
    ///
    /// # Errors
    /// [`Error::Row`] when there is no such expert.
    pub fn decode(&self, expert: usize) -> Result<Vec<u8>, Error> {
        let first = expert.saturating_mul(self.rows.next_multiple_of(TILE_ROWS));
        let numbers: Vec<usize> = (0..self.rows)
            .map(|row| first.saturating_add(row))
            .collect();
        let mut bytes = vec![0; self.rows * 2 * self.cols()];
        decode_rows(&self.matrix, &numbers, &mut bytes)?;
        Ok(bytes)
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
        let (k, m) = (self.cols(), self.rows);
        let expected = experts_of.len().checked_div(top_k).unwrap_or(0) * k;
        if x.len() != expected {
            let found = x.len();
            return Err(Error::OutputSize { expected, found });
        }
        let mut y = vec![0.0; experts_of.len() * m];
        for expert in 0..self.experts {
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
        for (experts, rows, cols) in [(1, 1, 1), (3, 32, 64), (4, 33, 65), (5, 100, 70)] {
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
        }
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
