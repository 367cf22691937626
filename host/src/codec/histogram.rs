use std::ops::AddAssign;

use rayon::prelude::*;
use zipserv_gpu::format::window;

use super::Matrix;

/// How often each biased exponent occurs among BF16 weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; 256],
}

/// The run of eight consecutive exponents whose weights need no patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The lowest exponent of the window, biased.
    pub base: u8,
    /// Weights outside the window.
    pub outliers: u64,
}

impl Histogram {
    /// Counts the exponents of `matrix`, in parallel.
    pub fn of(matrix: &Matrix) -> Self {
        // Large enough that adding up the tables costs nothing, small enough that a 32-bit
        // count cannot overflow.
        const PIECE: usize = 1 << 20;
        matrix
            .as_le_bytes()
            .par_chunks(PIECE)
            .map(Self::of_piece)
            .reduce(Self::empty, |mut a, b| {
                a += &b;
                a
            })
    }

    pub(crate) fn empty() -> Self {
        Self { counts: [0; 256] }
    }

    /// Counts the exponents of less than 2^32 little-endian weights, on the current thread.
    pub(crate) fn of_piece(bytes: &[u8]) -> Self {
        let counts = count(bytes);
        Self { counts }
    }

    /// Weights with each biased exponent.
    pub fn counts(&self) -> &[u64; 256] {
        &self.counts
    }

    /// Weights counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The window that leaves the fewest outliers, of those that can be stored; the lowest of equals.
    pub fn window(&self) -> Window {
        let (base, outliers) = window::best(&self.counts);
        Window { base, outliers }
    }

    /// The share of the weights that lie in [`window`](Self::window); one for no weights.
    pub fn coverage(&self) -> f64 {
        1.0 - self.window().outliers as f64 / self.total().max(1) as f64
    }

    /// Bits a weight that no code of single exponents can beat: their entropy, plus eight bits
    /// for sign and mantissa, which trained weights fill almost evenly. Eight for no weights.
    pub fn entropy_bits(&self) -> f64 {
        let total = self.total() as f64;
        let bits = self.counts.iter().filter(|&&n| n > 0).map(|&n| {
            let p = n as f64 / total;
            -p * p.log2()
        });
        8.0 + bits.sum::<f64>()
    }
}

impl AddAssign<&Histogram> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }
}

/// Counts the exponents of little-endian BF16 weights. Four tables keep a run of equal
/// exponents from waiting on its own increments.
fn count(bytes: &[u8]) -> [u64; 256] {
    let mut tables = [[0u32; 256]; 4];
    let exponent = |high: u8, low: u8| usize::from(high << 1 | low >> 7);
    let mut groups = bytes.chunks_exact(8);
    for group in &mut groups {
        for (table, weight) in tables.iter_mut().zip(group.chunks_exact(2)) {
            table[exponent(weight[1], weight[0])] += 1;
        }
    }
    for weight in groups.remainder().chunks_exact(2) {
        tables[0][exponent(weight[1], weight[0])] += 1;
    }
    std::array::from_fn(|e| tables.iter().map(|table| u64::from(table[e])).sum())
}
