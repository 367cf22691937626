//! Rotary position embeddings (Su et al., [RoFormer](https://arxiv.org/abs/2104.09864)): their frequencies.

use std::f64::consts::TAU;

/// Rotary embeddings of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// What the wavelengths grow with: the longest is nearly `2 pi theta` tokens.
    pub theta: f64,
    /// How a model was made fit for longer texts than it was first trained with.
    pub scaling: Scaling,
}

/// How frequencies are changed for long texts. The names are those of `rope_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// All are divided by a factor.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Low ones are divided by a factor, high ones are not, and those between are in part: Llama 3.1's.
    Llama3 {
        /// By how much low ones are divided.
        factor: f64,
        /// Those that turn fewer times than this within the original context are low.
        low_freq_factor: f64,
        /// Those that turn more times are high.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original_context: u32,
    },
}

impl Rope {
    /// Radians a token by which each pair of a head's elements turns: one for each half of `head_dim`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let pairs = 0..head_dim / 2;
        let exponents = pairs.map(|pair| 2.0 * pair as f64 / head_dim as f64);
        let plain = exponents.map(|exponent| self.theta.powf(-exponent));
        plain.map(|f| self.scaling.of(f) as f32).collect()
    }
}

impl Scaling {
    fn of(&self, frequency: f64) -> f64 {
        match *self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let turns = f64::from(original_context) * frequency / TAU;
                let high = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let high = high.clamp(0.0, 1.0);
                high * frequency + (1.0 - high) * frequency / factor
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THETA: f64 = 500_000.0;

    fn rope(scaling: Scaling) -> Vec<f32> {
        let theta = THETA;
        Rope { theta, scaling }.frequencies(64)
    }

    #[test]
    fn the_first_turns_by_a_radian_and_the_others_ever_slower() {
        let plain = rope(Scaling::Default);
        assert_eq!((plain.len(), plain[0]), (32, 1.0));
        // theta^(-1/2) in the middle.
        assert!((plain[16] - 1.0 / 500_000f32.sqrt()).abs() < 1e-9);
        assert!(plain.is_sorted_by(|a, b| a > b));
        let linear = rope(Scaling::Linear { factor: 4.0 });
        assert!(linear.iter().zip(&plain).all(|(a, b)| *a == b / 4.0));
    }

    /// As the rule is written: by wavelengths.
    #[test]
    fn llama3_leaves_short_waves_and_stretches_long_ones() {
        let (factor, low, high, original) = (8.0, 1.0, 4.0, 8192.0);
        let scaled = rope(Scaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context: 8192,
        });
        let mut kinds = [0; 3];
        for (pair, &scaled) in scaled.iter().enumerate() {
            let frequency = 1.0 / THETA.powf(pair as f64 / 32.0);
            let wavelength = TAU / frequency;
            let expected = if wavelength < original / high {
                kinds[0] += 1;
                frequency
            } else if wavelength > original / low {
                kinds[1] += 1;
                frequency / factor
            } else {
                kinds[2] += 1;
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            };
            assert!((f64::from(scaled) / expected - 1.0).abs() < 1e-6);
        }
        assert!(kinds.iter().all(|&kind| kind > 0), "{kinds:?}");
    }
}
