//! What is sampled, against a plain reference: the steps of transformers, one by one.

use std::fs;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use zipserv_engine::Sampling;
use zipserv_engine_kernels::sampling;

/// The probability of each token.
fn reference(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let mut scores: Vec<f64> = logits
        .iter()
        .map(|&logit| f64::from(logit) / sampling.temperature)
        .collect();
    if let Some(k) = sampling.top_k {
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let least = sorted[k.min(sorted.len()) - 1];
        scores
            .iter_mut()
            .filter(|score| **score < least)
            .for_each(|score| *score = f64::NEG_INFINITY);
    }
    if sampling.top_p < 1.0 {
        let probabilities = softmax(&scores);
        let mut ascending: Vec<_> = (0..scores.len()).collect();
        ascending.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut sum = 0.0;
        for &token in &ascending[..scores.len() - 1] {
            sum += probabilities[token];
            if sum <= 1.0 - sampling.top_p {
                scores[token] = f64::NEG_INFINITY;
            }
        }
    }
    softmax(&scores)
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let sum: f64 = scores.iter().map(|score| score.exp()).sum();
    scores.iter().map(|score| score.exp() / sum).collect()
}

/// How often each token comes at positions up to `draws`.
fn frequencies(logits: &[f32], sampling: &Sampling, draws: usize) -> Vec<f64> {
    let mut counts = vec![0u32; logits.len()];
    for position in 0..draws {
        counts[sampling.sample(logits, position).unwrap() as usize] += 1;
    }
    let counts = counts.into_iter();
    counts
        .map(|count| f64::from(count) / draws as f64)
        .collect()
}

#[test]
fn frequencies_are_the_probabilities_of_the_reference() {
    let logits = [
        0.5,
        2.0,
        -1.0,
        1.25,
        1.0,
        0.0,
        -3.0,
        1.75,
        -0.5,
        f32::NEG_INFINITY,
        0.75,
    ];
    let draws = 40_000;
    for temperature in [0.3, 1.0, 2.5] {
        for top_k in [None, Some(1), Some(3), Some(7), Some(1000)] {
            for top_p in [1.0, 0.95, 0.6, 0.2, 1e-9] {
                let sampling = Sampling {
                    temperature,
                    top_k,
                    top_p,
                    seed: 7,
                };
                let expected = reference(&logits, &sampling);
                let found = frequencies(&logits, &sampling, draws);
                for (token, (&p, &q)) in expected.iter().zip(&found).enumerate() {
                    // Five standard deviations.
                    let margin = 5.0 * (p * (1.0 - p) / draws as f64).sqrt();
                    assert!(
                        (p - q).abs() <= margin + 1e-12,
                        "{sampling:?}, token {token}: {p} and {q}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_as_probable_as_the_last_of_the_top_stays() {
    let logits = [1.0, 3.0, 1.0, 0.0];
    let sampling = Sampling {
        temperature: 1.0,
        top_k: Some(2),
        ..Sampling::default()
    };
    let found = frequencies(&logits, &sampling, 2000);
    assert!(
        found[0] > 0.05 && found[2] > 0.05 && found[3] == 0.0,
        "{found:?}"
    );
}

/// The tokens that are kept, by probabilities in FP64, with all that are equal to the last; and how near a sum of them is
/// to what top-p asks for, where rounding may keep others.
fn kept(logits: &[f32], sampling: &Sampling) -> (Vec<usize>, f64) {
    let power = |token: usize| (f64::from(logits[token]) / sampling.temperature).exp();
    let mut tokens: Vec<_> = (0..logits.len()).collect();
    tokens.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let upto = |tokens: &mut Vec<usize>, last: usize| {
        let least = logits[tokens[last]];
        tokens.retain(|&token| logits[token] >= least);
    };
    if let Some(k) = sampling.top_k {
        let last = k.min(tokens.len()) - 1;
        upto(&mut tokens, last);
    }
    let mut margin = f64::INFINITY;
    if sampling.top_p < 1.0 {
        let all: f64 = tokens.iter().map(|&token| power(token)).sum();
        let mut reached = 0.0;
        let sums = tokens.iter().map(|&token| {
            reached += power(token) / all;
            reached
        });
        let sums: Vec<_> = sums.collect();
        let ends = (0..tokens.len()).filter(|&at| {
            tokens
                .get(at + 1)
                .is_none_or(|&next| logits[next] < logits[tokens[at]])
        });
        let distances = ends.map(|at| (sums[at] - sampling.top_p).abs());
        margin = distances.fold(margin, f64::min);
        let last = sums.iter().position(|&sum| sum >= sampling.top_p);
        let last = last.unwrap_or(tokens.len() - 1);
        upto(&mut tokens, last);
    }
    tokens.sort();
    (tokens, margin)
}

#[test]
fn kept_tokens_are_those_of_a_plain_search_and_all_equal_ones() {
    let (mut rng, mut checked) = (SmallRng::seed_from_u64(3), 0);
    for _ in 0..60 {
        let logits: Vec<f32> = (0..12)
            .map(|_| rng.random_range(-2..3) as f32 / 2.0)
            .collect();
        let sampling = Sampling {
            temperature: rng.random_range(0.7..2.0),
            top_k: rng.random_bool(0.6).then(|| rng.random_range(1..14)),
            top_p: *[1.0, 0.9, 0.5, 0.1].get(rng.random_range(0..4)).unwrap(),
            seed: rng.random(),
        };
        let (kept, margin) = kept(&logits, &sampling);
        if margin < 1e-5 {
            continue;
        }
        // Each comes with a probability of a percent at least.
        let found = frequencies(&logits, &sampling, 3000);
        let found: Vec<_> = (0..logits.len())
            .filter(|&token| found[token] > 0.0)
            .collect();
        assert_eq!(found, kept, "{sampling:?} {logits:?}");
        checked += 1;
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn tokens_are_those_of_the_inverse_distribution() {
    let mut rng = SmallRng::seed_from_u64(4);
    let (mut checked, mut on_an_edge) = (0, 0);
    for round in 0..40 {
        let logits: Vec<f32> = (0..700)
            .map(|_| 3.0 * rng.sample::<f32, _>(StandardNormal))
            .collect();
        let sampling = Sampling {
            temperature: [0.6, 1.0, 1.7][round % 3],
            top_k: [None, Some(40)][round % 2],
            top_p: [1.0, 0.9, 0.6, 0.99][round % 4],
            seed: round as u64,
        };
        let (kept, margin) = kept(&logits, &sampling);
        if margin < 1e-6 {
            continue;
        }
        let powers = kept
            .iter()
            .map(|&token| (f64::from(logits[token]) / sampling.temperature).exp());
        let powers: Vec<_> = powers.collect();
        let all: f64 = powers.iter().sum();
        for position in 0..100 {
            let random = sampling.random(position) as f64 / 2f64.powi(64);
            let mut upto = 0.0;
            let sums = powers.iter().map(|power| {
                upto += power / all;
                upto
            });
            let sums: Vec<_> = sums.collect();
            if sums.iter().any(|sum| (sum - random).abs() < 1e-6) {
                on_an_edge += 1;
                continue;
            }
            let expected = kept[sums.iter().position(|&sum| sum > random).unwrap()];
            let found = sampling.sample(&logits, position).unwrap();
            assert_eq!(found as usize, expected, "{sampling:?} {position}");
            checked += 1;
        }
    }
    assert!(checked > 3500 && on_an_edge < 20, "{checked} {on_an_edge}");
}

#[test]
fn weights_are_exponentials() {
    let mut rng = SmallRng::seed_from_u64(5);
    for temperature in [1e-300, 0.01, 0.5, 1.0, 3.0, 1e5, 1e300] {
        let scale = sampling::scale(temperature);
        let largest: f32 = rng.random_range(-20.0..30.0);
        let mut logits: Vec<f32> = (0..5000)
            .map(|_| largest - rng.random_range(0f32..40.0).powi(2))
            .collect();
        logits.extend([largest, f32::MIN, f32::NEG_INFINITY]);
        logits.sort_by(|a, b| b.total_cmp(a));
        let mut before = u64::MAX;
        for logit in logits {
            let weight = sampling::weight(logit, largest, scale);
            assert!(weight <= before, "{logit} {temperature}");
            before = weight;
            let exponent =
                (f64::from(largest) - f64::from(logit)) / temperature * std::f64::consts::LOG2_E;
            let expected = (f64::from(sampling::WEIGHT_BITS) - exponent).exp2();
            // Two roundings of the exponent, and one to its last bit.
            let relative = (exponent + 2.0) * 2f64.powi(-23);
            let margin = if exponent < 64.0 {
                expected * relative + 1.0
            } else {
                1.0
            };
            // Differences that are no number of FP32, or so small a scale, are of no use to anyone.
            if temperature < 1e40 {
                assert!(
                    (weight as f64 - expected).abs() <= margin,
                    "{logit} {temperature}: {weight} {expected}"
                );
            }
        }
        assert_eq!(
            sampling::weight(largest, largest, scale),
            1 << sampling::WEIGHT_BITS
        );
        assert_eq!(sampling::weight(f32::NEG_INFINITY, largest, scale), 0);
    }
}

#[test]
fn greedy_takes_the_first_of_the_best() {
    let greedy = Sampling::default();
    assert_eq!(greedy.sample(&[1.0, 5.0, 5.0, -7.0], 3).unwrap(), 1);
    assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -1e30], 0).unwrap(), 1);
    // So does sampling where no other token has a chance.
    let cold = Sampling {
        temperature: 1e-300,
        ..greedy
    };
    assert_eq!(cold.sample(&[1.0, 1.5, 1.25], 3).unwrap(), 1);
}

#[test]
fn seed_and_position_are_all_that_counts() {
    let logits = [0.0; 64];
    let sampling = |seed| Sampling {
        temperature: 1.0,
        seed,
        ..Sampling::default()
    };
    let tokens = |seed| {
        let positions = 0..200;
        positions
            .map(|position| sampling(seed).sample(&logits, position).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(1), tokens(1));
    let same = tokens(1).into_iter().zip(tokens(2)).filter(|(a, b)| a == b);
    assert!(same.count() < 20);
    // Neighbours at the next position are not the same numbers again.
    let shifted = tokens(1)
        .into_iter()
        .zip(tokens(2).into_iter().skip(1))
        .filter(|(a, b)| a == b);
    assert!(shifted.count() < 20);
}

#[test]
fn what_means_nothing_is_refused() {
    let of =
        |sampling: Sampling, logits: &[f32]| sampling.sample(logits, 0).unwrap_err().to_string();
    let greedy = Sampling::default();
    let warm = Sampling {
        temperature: 1.0,
        ..greedy
    };
    for sampling in [greedy, warm] {
        assert_eq!(
            of(sampling, &[0.0, f32::NAN]),
            "the logit of token 1 is NaN"
        );
        assert_eq!(
            of(sampling, &[0.0, f32::INFINITY]),
            "the greatest logit is inf"
        );
        assert_eq!(
            of(sampling, &[f32::NEG_INFINITY; 2]),
            "the greatest logit is -inf"
        );
        assert_eq!(of(sampling, &[]), "the greatest logit is -inf");
    }
    for temperature in [-1.0, f64::NAN, f64::INFINITY] {
        let said = of(
            Sampling {
                temperature,
                ..warm
            },
            &[0.0],
        );
        assert_eq!(
            said,
            format!("a temperature of {temperature} is none: 0 or more")
        );
    }
    for top_p in [0.0, -0.5, 1.5, f64::NAN] {
        let said = of(Sampling { top_p, ..warm }, &[0.0]);
        assert_eq!(said, format!("top-p of {top_p} is no probability above 0"));
    }
    assert_eq!(
        of(
            Sampling {
                top_k: Some(0),
                ..warm
            },
            &[0.0]
        ),
        "top-k of 0 leaves no token"
    );
}

#[test]
fn a_folder_may_recommend_how_to_sample() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Sampling::open(folder.path());
    let write = |text: &str| fs::write(folder.path().join("generation_config.json"), text).unwrap();
    let greedy = Sampling::default();
    assert_eq!(open().unwrap(), greedy);
    write(r#"{"temperature": 0.6, "top_k": 20}"#);
    assert_eq!(open().unwrap(), greedy);
    write(
        r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}"#,
    );
    let expected = Sampling {
        temperature: 0.6,
        top_k: Some(20),
        top_p: 0.95,
        seed: 0,
    };
    assert_eq!(open().unwrap(), expected);
    write(r#"{"do_sample": true}"#);
    let expected = Sampling {
        temperature: 1.0,
        top_k: Some(50),
        ..greedy
    };
    assert_eq!(open().unwrap(), expected);
    write(r#"{"do_sample": true, "top_k": 0}"#);
    assert_eq!(open().unwrap().top_k, None);
    for (text, reason) in [
        (r#"{"do_sample": true, "top_p": 7}"#, "top-p of 7"),
        (r#"{"do_sample": 3}"#, "do_sample: "),
        (r#"{"do_sample": true, "top_k": -1}"#, "top_k: "),
        ("{", "EOF"),
    ] {
        write(text);
        let said = open().unwrap_err().to_string();
        assert!(
            said.contains("generation_config.json: ") && said.contains(reason),
            "{said}"
        );
    }
}
