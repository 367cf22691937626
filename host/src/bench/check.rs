use half::bf16;
use rayon::prelude::*;

/// Rows of the weights, and tokens at most, whose outputs are also computed in FP64.
const SAMPLED_ROWS: usize = 16;
const SAMPLED_TOKENS: usize = 128;

/// The outputs that a multiplication should have, in FP32, and in FP64 for some rows and tokens.
pub struct Reference {
    fp32: Vec<f32>,
    /// Index of an output, and its value.
    fp64: Vec<(usize, f64)>,
    rms: f64,
}

/// How far outputs are from a [`Reference`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// The largest deviation, as a share of the root mean square.
    pub deviation: f64,
    /// Whether all of them are as close as BF16 lets them be.
    pub correct: bool,
}

impl Reference {
    /// From the FP32 outputs of another implementation; `x` is `n` rows of `k`, `w` rows of `k`.
    pub fn new(fp32: Vec<f32>, x: &[u16], w: &[u16], k: usize) -> Self {
        let (n, m) = (x.len() / k, w.len() / k);
        // The last ones, where a kernel's special cases are, then some from all over.
        let sample = |from: usize, most: usize| (0..from).rev().step_by(from.div_ceil(most));
        let value = |bits: &u16| bf16::from_bits(*bits).to_f64();
        let of_row = |row: usize| {
            let w = &w[row * k..][..k];
            sample(n, SAMPLED_TOKENS).map(move |token| {
                let x = &x[token * k..][..k];
                let sum = x.iter().zip(w).map(|(x, w)| value(x) * value(w)).sum();
                (token * m + row, sum)
            })
        };
        let rows: Vec<usize> = sample(m, SAMPLED_ROWS).collect();
        let fp64 = rows.into_par_iter().flat_map_iter(of_row).collect();
        let squares: f64 = fp32.par_iter().map(|&y| f64::from(y).powi(2)).sum();
        let rms = (squares / fp32.len() as f64).sqrt();
        Self { fp32, fp64, rms }
    }

    /// Whether the FP32 outputs are themselves near the FP64 ones.
    pub fn is_sound(&self) -> bool {
        let near = |&(at, exact): &(usize, f64)| {
            (f64::from(self.fp32[at]) - exact).abs() <= 1e-3 * self.rms
        };
        self.rms.is_finite() && self.rms > 0.0 && self.fp64.iter().all(near)
    }

    /// Compares the outputs of all copies.
    pub fn check(&self, copies: &[Vec<u16>]) -> Agreement {
        let first = &copies[0];
        let value = |at: usize| bf16::from_bits(first[at]).to_f64();
        // Half a unit in the last place of BF16, and what FP32 sums in another order differ.
        let near = |deviation: f64, exact: f64| deviation <= exact.abs() / 256.0 + 1e-3 * self.rms;
        let (deviation, close) = (0..self.fp32.len())
            .into_par_iter()
            .map(|at| {
                let exact = f64::from(self.fp32[at]);
                let deviation = (value(at) - exact).abs();
                (deviation, near(deviation, exact))
            })
            // `f64::max` would lose a NaN, but no NaN is near.
            .reduce(|| (0.0, true), |a, b| (a.0.max(b.0), a.1 && b.1));
        let exact = self
            .fp64
            .iter()
            .all(|&(at, exact)| near((value(at) - exact).abs(), exact));
        let same = copies.par_iter().all(|copy| copy == first);
        Agreement {
            deviation: deviation / self.rms,
            correct: close && exact && same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_what_is_wrong() {
        let bits = |values: &[f32]| -> Vec<u16> {
            values
                .iter()
                .map(|&v| bf16::from_f32(v).to_bits())
                .collect()
        };
        let (x, w) = (bits(&[1.0, 2.0]), bits(&[3.0, 4.0, -1.0, 0.5]));
        let reference = Reference::new(vec![11.0, 0.0], &x, &w, 2);
        assert!(reference.is_sound());
        let good = bits(&[11.0, 0.0]);
        assert!(reference.check(&[good.clone(), good.clone()]).correct);
        assert!(!reference.check(&[good.clone(), bits(&[11.0, 0.1])]).correct);
        assert!(!reference.check(&[bits(&[11.2, 0.0])]).correct);
        assert!(!reference.check(&[bits(&[f32::NAN, 0.0])]).correct);
        assert!(!Reference::new(vec![12.0, 0.0], &x, &w, 2).is_sound());
    }
}
