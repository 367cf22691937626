//! Each operator against the same in FP64, written by the formula.

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use zipserv_engine::{
    cpu::ops::{self, Rows, Tensor},
    models::Linear,
};

fn random(count: usize, seed: u64) -> Vec<f32> {
    let rng = SmallRng::seed_from_u64(seed);
    let values = rng.sample_iter::<f32, _>(StandardNormal);
    values.take(count).collect()
}

fn rows(width: usize, count: usize, seed: u64) -> Rows {
    Rows::new(width, random(width * count, seed))
}

/// A weight, and its values.
fn weight(width: usize, count: usize, seed: u64) -> (Tensor, Vec<f64>) {
    let values = random(width * count, seed);
    let values: Vec<_> = values.into_iter().map(bf16::from_f32).collect();
    let exact = values.iter().map(|value| value.to_f64()).collect();
    (Tensor::new(width, values), exact)
}

#[track_caller]
fn close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (index, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(found) - expected).abs();
        assert!(
            difference < 2e-5 * (1.0 + expected.abs()),
            "{index}: {found}, not {expected}"
        );
    }
}

#[test]
fn embedding() {
    let (table, exact) = weight(5, 9, 1);
    let found = ops::embed(&table, &[8, 0, 3, 3]);
    let expected = [8, 0, 3, 3].map(|token| &exact[5 * token..5 * token + 5]);
    close(found.values(), &expected.concat());
}

#[test]
fn linear() {
    for (outputs, inputs, tokens) in [(1, 1, 1), (37, 53, 3), (5, 16, 1), (64, 33, 20), (3, 7, 0)] {
        let x = rows(inputs, tokens, 1);
        let (w, exact) = weight(inputs, outputs, 2);
        let (b, exact_bias) = weight(outputs, 1, 3);
        let mut expected = Vec::new();
        for token in 0..tokens {
            for output in 0..outputs {
                let mut sum = exact_bias[output];
                for input in 0..inputs {
                    sum += exact[output * inputs + input] * f64::from(x.row(token)[input]);
                }
                expected.push(sum);
            }
        }
        let bias = Some(b);
        let found = ops::linear(&Linear { weight: w, bias }, &x);
        close(found.values(), &expected);
    }
}

#[test]
fn rms_norm_of_rows_and_of_heads() {
    for (width, heads) in [(7, 1), (10, 3), (96, 1)] {
        let mut x = rows(width * heads, 4, 1);
        let (gains, exact) = weight(width, 1, 2);
        let eps = 0.01;
        let mut expected = Vec::new();
        for head in x.values().chunks(width) {
            let squares: f64 = head.iter().map(|&x| f64::from(x).powi(2)).sum();
            let root = (squares / width as f64 + f64::from(eps)).sqrt();
            for (x, gain) in head.iter().zip(&exact) {
                expected.push(f64::from(*x) / root * gain);
            }
        }
        ops::rms_norm(&mut x, &gains, eps);
        close(x.values(), &expected);
    }
}

#[test]
fn rope() {
    let (head_dim, heads, positions) = (6, 3, [0, 1, 5, 1000]);
    let frequencies = [1.0, 0.3, 0.001f32];
    let mut x = rows(head_dim * heads, positions.len(), 1);
    let mut expected = Vec::new();
    for (row, position) in x.iter().zip(positions) {
        for element in 0..row.len() {
            let (head, element) = (element / head_dim, element % head_dim);
            let pair = element % 3;
            // A pair is a complex number, which turns.
            let re = f64::from(row[head * head_dim + pair]);
            let im = f64::from(row[head * head_dim + pair + 3]);
            let angle = position as f64 * f64::from(frequencies[pair]);
            let (radius, angle) = (re.hypot(im), im.atan2(re) + angle);
            expected.push(match element < 3 {
                true => radius * angle.cos(),
                false => radius * angle.sin(),
            });
        }
    }
    ops::rope(&mut x, &positions, &frequencies);
    close(x.values(), &expected);
}

#[test]
fn attention_of_grouped_heads_and_parts_of_texts() {
    for (heads, kv_heads, head_dim) in [(6, 2, 10), (3, 1, 17), (4, 4, 2)] {
        let (keys, values) = (
            rows(kv_heads * head_dim, 33, 1),
            rows(kv_heads * head_dim, 33, 2),
        );
        let q = rows(heads * head_dim, 4, 3);
        let seen = [0..1, 0..33, 20..33, 7..12];
        let mut expected = Vec::new();
        for (q, seen) in q.iter().zip(&seen) {
            for head in 0..heads {
                let kv_head = head * kv_heads / heads;
                let score = |key: usize| {
                    let mut sum = 0.0;
                    for i in 0..head_dim {
                        let key = keys.row(key)[kv_head * head_dim + i];
                        sum += f64::from(q[head * head_dim + i]) * f64::from(key);
                    }
                    (sum / (head_dim as f64).sqrt()).exp()
                };
                let total: f64 = seen.clone().map(score).sum();
                for i in 0..head_dim {
                    let value = |key| f64::from(values.row(key)[kv_head * head_dim + i]);
                    let sum: f64 = seen
                        .clone()
                        .map(|key| score(key) / total * value(key))
                        .sum();
                    expected.push(sum);
                }
            }
        }
        let found = ops::attention(&q, head_dim, |token| (&keys, &values, seen[token].clone()));
        close(found.values(), &expected);
    }
}

#[test]
fn silu_mul() {
    let (mut gate, up) = (rows(13, 3, 1), rows(13, 3, 2));
    gate.row_mut(0)[..2].copy_from_slice(&[-200.0, 200.0]);
    let silu = |x: f64| x * (1.0 / (1.0 + (-x).exp()));
    let values = gate.values().iter().zip(up.values());
    let expected: Vec<_> = values
        .map(|(&g, &u)| silu(g.into()) * f64::from(u))
        .collect();
    ops::silu_mul(&mut gate, &up);
    close(gate.values(), &expected);
}

#[test]
fn routes_are_the_most_probable() {
    let logits = rows(11, 20, 1);
    for normalized in [false, true] {
        let found = ops::route(&logits, 4, normalized);
        for (logits, found) in logits.iter().zip(found) {
            let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let probability = |expert: usize| f64::from(logits[expert]).exp() / total;
            // An expert is chosen if fewer than four are more probable.
            let above = |x: f32| logits.iter().filter(|&&other| other > x).count();
            let mut chosen: Vec<_> = (0..11).filter(|&e| above(logits[e]) < 4).collect();
            let sum: f64 = chosen.iter().map(|&e| probability(e)).sum();
            let scale = if normalized { sum } else { 1.0 };
            let (mut experts, weights): (Vec<_>, Vec<_>) = found.iter().copied().unzip();
            let expected: Vec<_> = experts.iter().map(|&e| probability(e) / scale).collect();
            close(&weights, &expected);
            assert!(weights.is_sorted_by(|a, b| a >= b));
            experts.sort();
            chosen.sort();
            assert_eq!(experts, chosen);
        }
    }
}

#[test]
fn of_equally_probable_experts_those_with_low_numbers() {
    let logits = Rows::new(5, vec![1.0, 3.0, 1.0, 1.0, 3.0]);
    let found = ops::route(&logits, 3, true);
    assert_eq!(
        found[0].iter().map(|(e, _)| *e).collect::<Vec<_>>(),
        [1, 4, 0]
    );
}

#[test]
fn not_a_number_stays_in_its_row() {
    let mut x = rows(8, 3, 1);
    let clean = x.clone();
    x.row_mut(1)[4] = f32::NAN;
    let linear = Linear {
        weight: weight(8, 5, 2).0,
        bias: None,
    };
    let (found, expected) = (ops::linear(&linear, &x), ops::linear(&linear, &clean));
    let routes = ops::route(&x, 2, true);
    for row in [0, 2] {
        assert_eq!(found.row(row), expected.row(row));
        assert_eq!(routes[row], ops::route(&clean, 2, true)[row]);
    }
    assert!(found.row(1).iter().all(|value| value.is_nan()));
    assert!(
        routes[1]
            .iter()
            .all(|(expert, weight)| *expert < 8 && weight.is_nan())
    );
}
