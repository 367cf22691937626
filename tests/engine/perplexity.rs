//! Scores of texts, over an executor whose logits tell what it has seen.

use zipserv_engine::perplexity::{Windows, log_probability, score};

use crate::bytes::{Fake, VOCABULARY, noise};

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
        let mut fake = Fake::new(length, noise);
        let found = score(&mut fake, &text, Windows { length, stride }).unwrap();
        assert_eq!(fake.live(), 0);
        // The first window is full; each next one ends `stride` tokens later, or with the text.
        let mut expected = Vec::new();
        for index in 1..len {
            let mut end = length;
            while end < index {
                end = (end + stride).min(len - 1);
            }
            let start = end.min(len - 1).saturating_sub(length);
            expected.push(plain(&noise(&text[start..index]), text[index]));
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
    let mut fake = Fake::new(10, noise);
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
