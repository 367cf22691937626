use std::ops::Range;

use rayon::prelude::*;

use super::{Rows, dot, softmax};

/// The heads' outputs, side by side, for each row of queries. `seen` gives keys and values of a row's sequence, and
/// which of them it sees. Keys and values may have fewer heads: as many heads of queries in a row share one.
pub fn attention<'a>(
    q: &Rows,
    head_dim: usize,
    seen: impl Fn(usize) -> (&'a Rows, &'a Rows, Range<usize>) + Sync,
) -> Rows {
    let heads = q.width() / head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut outputs = Rows::zeros(q.width(), q.len());
    let all = outputs.values_mut().par_chunks_exact_mut(head_dim);
    all.enumerate().for_each(|(index, output)| {
        let (token, head) = (index / heads, index % heads);
        let (keys, values, tokens) = seen(token);
        let kv_heads = keys.width() / head_dim;
        let kv_head = head / (heads / kv_heads);
        let part = |rows: &'a Rows, row, head| &rows.row(row)[head * head_dim..][..head_dim];
        let q = &q.row(token)[head * head_dim..][..head_dim];

        let scores = tokens
            .clone()
            .map(|key| scale * dot(q, part(keys, key, kv_head)));
        let mut weights: Vec<_> = scores.collect();
        softmax(&mut weights);
        for (token, weight) in tokens.zip(weights) {
            for (output, value) in output.iter_mut().zip(part(values, token, kv_head)) {
                *output += weight * value;
            }
        }
    });
    outputs
}
