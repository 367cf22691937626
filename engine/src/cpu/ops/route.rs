use super::{Rows, softmax};

/// The experts of each token, from the router's logits: the `per_token` with the highest probabilities, of equal ones
/// those with the lowest numbers, and these probabilities, divided by their sum if `normalized`.
pub fn route(logits: &Rows, per_token: usize, normalized: bool) -> Vec<Vec<(usize, f32)>> {
    let token = |logits: &[f32]| {
        let mut probabilities = logits.to_vec();
        softmax(&mut probabilities);
        let mut all: Vec<_> = probabilities.into_iter().enumerate().collect();
        all.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        all.truncate(per_token);
        if normalized {
            let sum: f32 = all.iter().map(|(_, probability)| probability).sum();
            for (_, probability) in &mut all {
                *probability /= sum;
            }
        }
        all
    };
    logits.iter().map(token).collect()
}
