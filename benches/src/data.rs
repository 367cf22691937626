use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal, StandardNormal};
use rayon::prelude::*;

/// Spread of the scales of rows and columns, as the standard deviation of their logarithm.
const SCALE_SPREAD: f32 = 0.1;

/// Bits of BF16 weights as trained layers have them: Gaussian, with log-normal scales of rows and
/// columns.
pub fn weights(rows: usize, cols: usize, seed: u64) -> Vec<u16> {
    let scale = LogNormal::new(0.0, SCALE_SPREAD).expect("a finite deviation");
    let mut rng = generator(seed, u64::MAX);
    let col_scales: Vec<f32> = scale.sample_iter(&mut rng).take(cols).collect();
    let mut weights = vec![0; rows * cols];
    let fill = |(row, weights): (usize, &mut [u16])| {
        let mut rng = generator(seed, row as u64);
        let row_scale = 0.02 * scale.sample(&mut rng);
        for (weight, col_scale) in weights.iter_mut().zip(&col_scales) {
            let normal: f32 = rng.sample(StandardNormal);
            *weight = bf16::from_f32(row_scale * col_scale * normal).to_bits();
        }
    };
    weights
        .par_chunks_mut(cols.max(1))
        .enumerate()
        .for_each(fill);
    weights
}

/// Bits of BF16 activations: Gaussian. The last tokens are the same whatever their number, so that
/// each is at another place among more of them.
pub fn activations(n: usize, k: usize, seed: u64) -> Vec<u16> {
    let mut activations = vec![0; n * k];
    let fill = |(token, activations): (usize, &mut [u16])| {
        // Not the generators of weights.
        let mut rng = generator(!seed, (n - 1 - token) as u64);
        for activation in activations {
            let normal: f32 = rng.sample(StandardNormal);
            *activation = bf16::from_f32(normal).to_bits();
        }
    };
    activations
        .par_chunks_mut(k.max(1))
        .enumerate()
        .for_each(fill);
    activations
}

/// A generator for each row, so that rows can be made in parallel.
fn generator(seed: u64, row: u64) -> SmallRng {
    // The odd constant spreads neighbouring rows over the seeds.
    SmallRng::seed_from_u64(seed ^ row.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tokens_are_the_same_of_any_number() {
        let (few, many) = (activations(3, 40, 7), activations(10, 40, 7));
        assert_eq!(few, many[7 * 40..]);
        assert_ne!(few, many[..3 * 40]);
    }
}
