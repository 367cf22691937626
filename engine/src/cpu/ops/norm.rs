use half::slice::HalfFloatSliceExt;

use super::{Rows, Tensor, dot};

/// Divides values by the root of their mean square plus `eps`, and multiplies them by gains (Zhang and Sennrich,
/// [RMSNorm](https://arxiv.org/abs/1910.07467)). If there are fewer gains than a row has values, each head of so many
/// is normalized by itself.
pub fn rms_norm(x: &mut Rows, gains: &Tensor, eps: f32) {
    let gains = gains.row(0).to_f32_vec();
    for head in x.values_mut().chunks_exact_mut(gains.len()) {
        let mean_square = dot(head, head) / head.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for (value, gain) in head.iter_mut().zip(&gains) {
            *value = *value * scale * gain;
        }
    }
}
