//! Scores of texts, over an executor whose logits tell what it has seen.

use std::collections::BTreeMap;

use zipserv_engine::{
    Chunk, Executor, Logits, Result, SequenceId,
    perplexity::{Windows, log_probability, score},
};

const VOCABULARY: usize = 7;

/// A token's logits depend on all tokens before, and on their number.
#[derive(Default)]
struct Fake {
    context: usize,
    sequences: BTreeMap<usize, Vec<u32>>,
    started: usize,
}

fn logits(seen: &[u32]) -> [f32; VOCABULARY] {
    let hash = |hash: u32, token: &u32| hash.wrapping_mul(31).wrapping_add(token + 1);
    let hash = seen.iter().fold(17, hash);
    std::array::from_fn(|i| (hash.wrapping_mul(2 * i as u32 + 3) >> 20) as f32 / 1000.0)
}

impl Executor for Fake {
    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn context(&self) -> usize {
        self.context
    }

    fn start(&mut self) -> Result<SequenceId> {
        self.started += 1;
        self.sequences.insert(self.started, Vec::new());
        Ok(SequenceId(self.started))
    }

    fn end(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence.0);
    }

    fn forward(&mut self, chunks: &[Chunk], wanted: Logits) -> Result<Vec<f32>> {
        let mut found = Vec::new();
        for chunk in chunks {
            let seen = self.sequences.get_mut(&chunk.sequence.0).unwrap();
            for &token in chunk.tokens {
                seen.push(token);
                assert!(seen.len() <= self.context);
                if wanted == Logits::All {
                    found.extend(logits(seen));
                }
            }
        }
        Ok(found)
    }
}

fn plain(logits: &[f32], token: u32) -> f64 {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    (f64::from(logits[token as usize]).exp() / sum).ln()
}

fn text(len: usize) -> Vec<u32> {
    (0..len)
        .map(|i| (i * i + i / 3) as u32 % VOCABULARY as u32)
        .collect()
}

#[test]
fn windows() {
    for (len, length, stride) in [
        (2, 10, 5),
        (11, 10, 5),
        (12, 10, 5),
        (100, 10, 5),
        (100, 10, 10),
        (100, 10, 1),
        (101, 1, 1),
        (1300, 1200, 70),
    ] {
        let text = text(len);
        let mut fake = Fake {
            context: length,
            ..Fake::default()
        };
        let found = score(&mut fake, &text, Windows { length, stride }).unwrap();
        assert!(fake.sequences.is_empty());
        // The first window is full; each next one ends `stride` tokens later, or with the text.
        let mut expected = Vec::new();
        for index in 1..len {
            let mut end = length;
            while end < index {
                end = (end + stride).min(len - 1);
            }
            let start = end.min(len - 1).saturating_sub(length);
            expected.push(plain(&logits(&text[start..index]), text[index]));
        }
        assert_eq!(found.log_probabilities.len(), expected.len());
        for (found, expected) in found.log_probabilities.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-12);
        }
        let mean = expected.iter().sum::<f64>() / expected.len() as f64;
        assert!((found.mean() - mean).abs() < 1e-12);
        assert!((found.perplexity() - (-mean).exp()).abs() < 1e-9);
    }
}

#[test]
fn a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() {
    assert!((log_probability(&[3.5; 100], 7) + 100f64.ln()).abs() < 1e-12);
}

#[test]
fn log_probabilities_of_large_and_of_bad_logits() {
    assert_eq!(log_probability(&[1e38, 0.0], 0), 0.0);
    assert_eq!(log_probability(&[1e38, 0.0], 1), -f64::from(1e38f32));
    assert_eq!(
        log_probability(&[f32::NEG_INFINITY, 0.0], 0),
        f64::NEG_INFINITY
    );
    assert!(log_probability(&[f32::NAN, 0.0], 1).is_nan());
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let mut fake = Fake {
        context: 10,
        ..Fake::default()
    };
    let mut refused = |len, length, stride| {
        let error = score(&mut fake, &text(len), Windows { length, stride });
        error.unwrap_err().to_string()
    };
    let short = "a text of one token or none cannot be scored";
    assert_eq!(refused(0, 10, 5), short);
    assert_eq!(refused(1, 10, 5), short);
    assert_eq!(refused(5, 10, 0), "windows of 10 tokens cannot move by 0");
    assert_eq!(refused(5, 10, 11), "windows of 10 tokens cannot move by 11");
    assert_eq!(refused(5, 11, 5), "11 tokens, but there is room for 10");
}
