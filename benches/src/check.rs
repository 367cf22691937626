use half::bf16;
use rayon::prelude::*;

/// Rows of the weights, and tokens at most, whose outputs are also computed in FP64.
const SAMPLED_ROWS: usize = 16;
const SAMPLED_TOKENS: usize = 128;

/// Values that a thread compares at a time.
const PIECE: usize = 1 << 16;

/// How far outputs may be from what they should be beyond half a unit in their last place, as a
/// share of their root mean square.
#[derive(Clone, Copy, Debug)]
pub enum Sums {
    /// FP32 sums in another order.
    Fp32,
    /// Partial sums may be BF16, as cuBLAS has them where it shares K among thread blocks.
    Bf16,
}

impl Sums {
    fn slack(self) -> f64 {
        match self {
            Self::Fp32 => 1e-3,
            Self::Bf16 => 3e-2,
        }
    }
}

/// Whether both are the same, bit for bit.
pub fn equal(a: &[u16], b: &[u16]) -> bool {
    let pieces = a.par_chunks(PIECE).zip(b.par_chunks(PIECE));
    a.len() == b.len() && pieces.all(|(a, b)| a == b)
}

/// Outputs of a layer's last tokens, of which larger numbers have all that smaller ones have, see
/// [`activations`](super::data::activations).
#[derive(Default)]
pub struct SameTokens(Vec<u16>);

impl SameTokens {
    /// Whether the tokens that these outputs and earlier ones have in common have the same bits.
    pub fn agree(&mut self, outputs: Vec<u16>) -> bool {
        let both = outputs.len().min(self.0.len());
        let last = |outputs: &[u16]| outputs.len() - both;
        let agree = equal(&outputs[last(&outputs)..], &self.0[last(&self.0)..]);
        if outputs.len() > self.0.len() {
            self.0 = outputs;
        }
        agree
    }
}

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

    /// Compares the outputs of all copies, of which there is at least one.
    pub fn check<E>(
        &self,
        copies: impl IntoIterator<Item = Result<Vec<u16>, E>>,
        sums: Sums,
    ) -> Result<Agreement, E> {
        let mut copies = copies.into_iter();
        let first = copies.next().expect("there is a copy")?;
        let slack = sums.slack() * self.rms;
        let value = |at: usize| bf16::from_bits(first[at]).to_f64();
        let near = |deviation: f64, exact: f64| deviation <= exact.abs() / 256.0 + slack;
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
        let mut same = true;
        for copy in copies {
            same &= equal(&copy?, &first);
        }
        Ok(Agreement {
            deviation: deviation / self.rms,
            correct: close && exact && same,
        })
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
        let correct = |copies: &[[f32; 2]], sums| {
            let copies = copies.iter().map(|copy| Ok::<_, ()>(bits(copy)));
            reference.check(copies, sums).unwrap().correct
        };
        let good = [11.0, 0.0];
        for sums in [Sums::Fp32, Sums::Bf16] {
            assert!(correct(&[good], sums));
            assert!(correct(&[good, good], sums));
            assert!(!correct(&[good, [11.0, 0.1]], sums));
            assert!(!correct(&[[11.5, 0.0]], sums));
            assert!(!correct(&[[f32::NAN, 0.0]], sums));
            assert!(!correct(&[good, [f32::NAN, 0.0]], sums));
        }
        // 11.2 is 11.1875 as BF16.
        assert!(!correct(&[[11.2, 0.0]], Sums::Fp32));
        assert!(correct(&[[11.2, 0.0]], Sums::Bf16));
        assert!(reference.check([Err(())], Sums::Fp32).is_err());
        assert!(!Reference::new(vec![12.0, 0.0], &x, &w, 2).is_sound());
    }

    #[test]
    fn the_last_tokens_agree() {
        let mut same = SameTokens::default();
        assert!(same.agree(vec![3, 4]));
        assert!(same.agree(vec![1, 2, 3, 4]));
        assert!(same.agree(vec![2, 3, 4]));
        assert!(!same.agree(vec![1, 2, 3]));
        // The most tokens so far are what others are compared with.
        assert!(!same.agree(vec![5, 2, 3, 4]));
        assert!(!same.agree(vec![0, 9, 2, 3, 4]));
        assert!(same.agree(vec![9, 2, 3, 4]));
    }

    #[test]
    fn compares_lengths_too() {
        assert!(equal(&[1, 2], &[1, 2]));
        assert!(!equal(&[1, 2], &[1, 3]));
        assert!(!equal(&[1, 2], &[1]));
    }
}
