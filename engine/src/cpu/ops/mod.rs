//! The operators, on rows of FP32 values: one for each token.

mod attention;
mod linear;
mod norm;
mod rope;
mod route;
mod rows;

use half::slice::HalfFloatSliceExt;

pub use self::{
    attention::attention,
    linear::{linear, matmul},
    norm::rms_norm,
    rope::rope,
    route::route,
    rows::{Rows, Tensor},
};

/// The embedding's row of each token.
pub fn embed(embedding: &Tensor, tokens: &[u32]) -> Rows {
    let mut x = Rows::new(embedding.width(), Vec::new());
    for &token in tokens {
        x.push(&embedding.row(token as usize).to_f32_vec());
    }
    x
}

/// `silu(gate) * up`, where `silu(x) = x / (1 + exp(-x))`.
pub fn silu_mul(gate: &mut Rows, up: &Rows) {
    for (gate, up) in gate.iter_mut().zip(up.iter()) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    }
}

/// Sixteen sums side by side, which are vector instructions, then all of them: the same order for all of one length.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

/// Turns logits into probabilities that add up to 1.
fn softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = (*logit - max).exp();
        sum += *logit;
    }
    for probability in logits {
        *probability /= sum;
    }
}
