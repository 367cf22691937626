//! Matrices, and what multiplying by them gives.

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use rayon::prelude::*;

/// A kind of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// As trained layers have them.
    Gaussian,
    /// Any bits.
    Random,
    /// Exponents so far apart that any window misses most of them.
    Outliers,
    /// Most tiles without outliers, and in some nothing else.
    OutlierTiles,
    /// Every third NaN or infinite.
    Nan,
    /// Only zeros of both signs.
    Zero,
    /// No exponent but that of zero.
    Subnormal,
    /// As trained layers have them, but every seventh with the exponent of zero.
    Pruned,
    /// The largest exponents of finite weights.
    Large,
    /// The smallest exponents of normal weights.
    Tiny,
}

pub const KINDS: [Kind; 10] = [
    Kind::Gaussian,
    Kind::Random,
    Kind::Outliers,
    Kind::OutlierTiles,
    Kind::Nan,
    Kind::Zero,
    Kind::Subnormal,
    Kind::Pruned,
    Kind::Large,
    Kind::Tiny,
];

const SIGN_AND_MANTISSA: u16 = 0x807F;

impl Kind {
    /// Bits of a matrix.
    pub fn weights(self, rows: usize, cols: usize) -> Vec<u16> {
        let mut rng = SmallRng::seed_from_u64((rows * 31 + cols) as u64);
        let bits = (0..rows * cols).map(|index| {
            let tile = index / cols / 32 + index % cols / 64;
            let any: u16 = rng.random();
            let mut with = |exponents: std::ops::Range<u16>| {
                any & SIGN_AND_MANTISSA | rng.random_range(exponents) << 7
            };
            match self {
                Self::Gaussian => gaussian(&mut rng, 0.02),
                Self::Random => any,
                Self::Outliers => any & SIGN_AND_MANTISSA | (90 + rng.random_range(0..9) * 5) << 7,
                Self::OutlierTiles if tile % 5 == 1 => with(98..106),
                Self::OutlierTiles => with(114..122),
                Self::Nan if index % 3 == 0 => any | 0x7F80,
                Self::Nan => with(114..122),
                Self::Zero => any & 0x8000,
                Self::Subnormal => any & SIGN_AND_MANTISSA,
                Self::Pruned if index % 7 == 0 => any & SIGN_AND_MANTISSA,
                Self::Pruned => gaussian(&mut rng, 0.02),
                Self::Large => with(247..255),
                Self::Tiny => with(1..9),
            }
        });
        bits.collect()
    }

    /// Activations whose products with the weights stay in the range of BF16.
    pub fn activations(self, n: usize, k: usize) -> Vec<u16> {
        let mut rng = SmallRng::seed_from_u64((n * 17 + k) as u64);
        let scale = match self {
            Self::Large => 2f32.powi(-100),
            Self::Tiny => 2f32.powi(60),
            _ => 1.0,
        };
        (0..n * k).map(|_| gaussian(&mut rng, scale)).collect()
    }
}

fn gaussian(rng: &mut SmallRng, scale: f32) -> u16 {
    let normal: f32 = rng.sample(StandardNormal);
    bf16::from_f32(normal * scale).to_bits()
}

/// Y = X W^T in FP64.
pub struct Product {
    m: usize,
    sums: Vec<(f64, f64)>,
}

impl Product {
    pub fn new(x: &[u16], w: &[u16], k: usize) -> Self {
        let values = |bits: &[u16]| -> Vec<f64> {
            bits.iter().map(|&b| bf16::from_bits(b).to_f64()).collect()
        };
        let (x, w, m) = (values(x), values(w), w.len() / k);
        let of_token = |x: &[f64]| -> Vec<(f64, f64)> {
            let sum = |w: &[f64]| {
                let terms = x.iter().zip(w).map(|(x, w)| x * w);
                terms.fold((0.0, 0.0), |(sum, all), term| {
                    (sum + term, all + term.abs())
                })
            };
            w.chunks(k).map(sum).collect()
        };
        let sums = x.par_chunks(k).flat_map_iter(of_token).collect();
        Self { m, sums }
    }

    /// Each sum, and the sum of its terms' magnitudes.
    pub fn sums(&self) -> &[(f64, f64)] {
        &self.sums
    }

    /// Fails unless `y`, the outputs of the first tokens, are as close as FP32 sums and BF16
    /// outputs let them be.
    pub fn check(&self, y: &[u16], what: &dyn std::fmt::Display) {
        for (at, (&bits, &(exact, all))) in y.iter().zip(&self.sums).enumerate() {
            let value = bf16::from_bits(bits).to_f64();
            let close = if exact.is_nan() {
                value.is_nan()
            } else if exact.is_infinite() {
                value == exact
            } else {
                // Past what FP32 holds, parts of the sum may be infinite.
                let may_overflow = all > f64::from(f32::MAX) && !value.is_finite();
                may_overflow || (value - exact).abs() <= exact.abs() / 200.0 + all * 2e-6 + 1e-38
            };
            let (token, row) = (at / self.m, at % self.m);
            assert!(
                close,
                "{what}: token {token}, row {row}: {value:e}, not {exact:e}"
            );
        }
    }

    /// Whether the first and the last `sample` tokens of `y` are the product of all of `x` and `w`.
    pub fn check_ends(
        [x, w, y]: [&[u16]; 3],
        k: usize,
        sample: usize,
        what: &dyn std::fmt::Display,
    ) {
        let m = w.len() / k;
        for first in [0, x.len() / k - sample] {
            let product = Self::new(&x[first * k..][..sample * k], w, k);
            product.check(&y[first * m..][..sample * m], what);
        }
    }
}
