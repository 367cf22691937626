//! What is sampled, in integers: sums are the same in any order, so host and device choose the same token bit by bit.
//!
//! - The weight of a token is `2^((logit - largest) log2(e) / temperature)`, in units of 2^-40. A token that is less
//!   probable than 2^-40 of the most probable one never comes.
//! - Top-k keeps what is as large as the k-th largest logit.
//! - Top-p takes, of these, the most probable tokens until their weights reach that part of the sum, and what is as large
//!   as the last of them.
//! - The token is the first one whose weight, with those of all kept tokens before it, is above a random part of the sum
//!   of all that are kept.
//!
//! The exponent is a difference and a product of FP32, of which 24 bits behind the point count; its power is a polynomial
//! of integers. Neither rounds differently anywhere. The relative error of a weight is at most 2^-23 for each unit of the
//! exponent and two more, and what is less than 2^-40 is lost.

/// Bits of weights behind the point.
pub const WEIGHT_BITS: u32 = 40;

/// Bits of exponents behind the point.
const EXPONENT_BITS: u32 = 24;

/// Tokens of a vocabulary, at most: so that sums fit.
pub const MOST_TOKENS: usize = 1 << 22;

/// How the tokens of a sequence are sampled.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// See [`scale`]; 0 takes the largest logit.
    pub scale: f32,
    /// 0: all.
    pub top_k: u32,
    /// See [`fraction`]; 0: all.
    pub top_p: u64,
}

impl Settings {
    /// As kernels load them.
    pub const fn words(self) -> [u32; 4] {
        let Self {
            scale,
            top_k,
            top_p,
        } = self;
        [scale.to_bits(), top_k, top_p as u32, (top_p >> 32) as u32]
    }

    /// Of [`words`](Self::words).
    pub const fn from_words([scale, top_k, low, high]: [u32; 4]) -> Self {
        Self {
            scale: f32::from_bits(scale),
            top_k,
            top_p: (high as u64) << 32 | low as u64,
        }
    }

    /// Whether the token of the largest logit is taken.
    pub const fn is_greedy(self) -> bool {
        self.scale == 0.0
    }
}

/// What differences of logits are multiplied by at a temperature above 0.
pub const fn scale(temperature: f64) -> f32 {
    let scale = core::f64::consts::LOG2_E / temperature * (1u64 << EXPONENT_BITS) as f64;
    // So that the product is a number, whatever the difference.
    (scale as f32).clamp(f32::MIN_POSITIVE, f32::MAX)
}

/// A probability above 0 and below 1 as the 64 bits behind the point, at least one of which is set.
pub const fn fraction(probability: f64) -> u64 {
    let bits = (probability * 18_446_744_073_709_551_616.0) as u64;
    if bits == 0 { 1 } else { bits }
}

/// That part of the whole which has 64 bits behind the point.
pub const fn part(fraction: u64, whole: u64) -> u64 {
    ((fraction as u128 * whole as u128) >> 64) as u64
}

/// What weights have to reach for top-p.
pub const fn enough(top_p: u64, sum: u64) -> u64 {
    let enough = part(top_p, sum);
    if enough == 0 { 1 } else { enough }
}

/// What weights have to reach for the token that comes.
pub const fn drawn(random: u64, sum: u64) -> u64 {
    part(random, sum) + 1
}

/// The weight of a logit that is a number. The largest is finite.
#[inline(always)]
pub const fn weight(logit: f32, largest: f32, scale: f32) -> u64 {
    // What does not fit is the largest integer, of which nothing is left.
    let exponent = ((largest - logit) * scale) as u32;
    let shift = exponent >> EXPONENT_BITS;
    let shift = if shift > 63 { 63 } else { shift };
    power(exponent << (32 - EXPONENT_BITS)) << (WEIGHT_BITS - 32) >> shift
}

/// Two to the power of minus a fraction of 32 bits, with 32 bits behind the point: a polynomial, by Remez's exchange,
/// within 2^-28.
#[inline(always)]
const fn power(fraction: u32) -> u64 {
    const fn times(a: u32, b: u32) -> u32 {
        ((a as u64 * b as u64) >> 32) as u32
    }
    let mut sum = 468_251;
    sum = 5_475_002 - times(sum, fraction);
    sum = 41_142_264 - times(sum, fraction);
    sum = 238_330_987 - times(sum, fraction);
    sum = 1_031_755_804 - times(sum, fraction);
    sum = 2_977_043_973 - times(sum, fraction);
    (1 << 32) - times(sum, fraction) as u64
}
