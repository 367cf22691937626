use super::Rows;

/// Turns each head by the positions of its row's token: elements `i` and `i + head_dim / 2` are a pair, which turns by
/// `frequencies[i]` radians a token. A head has two elements for each frequency.
pub fn rope(x: &mut Rows, positions: &[usize], frequencies: &[f32]) {
    let pairs = frequencies.len();
    for (row, &position) in x.iter_mut().zip(positions) {
        let turns = frequencies.iter().map(|f| (position as f32 * f).sin_cos());
        let turns: Vec<_> = turns.collect();
        for head in row.chunks_exact_mut(2 * pairs) {
            let (low, high) = head.split_at_mut(pairs);
            for ((low, high), (sin, cos)) in low.iter_mut().zip(high).zip(&turns) {
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
    }
}
