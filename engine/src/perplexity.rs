//! How well a model foretells a text.

use rayon::prelude::*;

use crate::{Chunk, Error, Executor, Logits, Result, SequenceId};

/// Logits that are asked for at a time: 64 MB.
const LOGITS: usize = 16 << 20;

/// What a model makes of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The natural logarithm of each token's probability after those before it, but for the first.
    pub log_probabilities: Vec<f64>,
}

/// How a text that may be longer than the context is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Most tokens that one is foretold from.
    pub length: usize,
    /// Tokens that each window but the first foretells: after so many it moves on.
    pub stride: usize,
}

impl Windows {
    /// As long as the model's context, but no longer than 2,048 tokens, and moved by half of that: every token but
    /// the first ones is foretold from 1,024 tokens or more.
    pub fn of(executor: &(impl Executor + ?Sized)) -> Self {
        let length = executor.context().min(2048);
        Self {
            length,
            stride: length.div_ceil(2),
        }
    }
}

impl Score {
    /// Mean of the logarithms.
    pub fn mean(&self) -> f64 {
        self.log_probabilities.iter().sum::<f64>() / self.log_probabilities.len() as f64
    }

    /// `exp(-mean)`: the text is as hard to foretell as that many tokens of equal probability.
    pub fn perplexity(&self) -> f64 {
        (-self.mean()).exp()
    }
}

/// Scores a text of at least two tokens.
///
/// # Errors
/// If it has fewer, or windows are empty or longer than the context; also those of [`Executor::forward`].
pub fn score(
    executor: &mut (impl Executor + ?Sized),
    tokens: &[u32],
    windows: Windows,
) -> Result<Score> {
    let Windows { length, stride } = windows;
    if tokens.len() < 2 {
        let why = "a text of one token or none cannot be scored";
        return Err(Error::Request(why.into()));
    }
    if stride == 0 || stride > length {
        let why = format!("windows of {length} tokens cannot move by {stride}");
        return Err(Error::Request(why));
    }
    if length > executor.context() {
        let (tokens, room) = (length, executor.context());
        return Err(Error::Context { tokens, room });
    }
    let mut log_probabilities = Vec::with_capacity(tokens.len() - 1);
    let mut scored = 1;
    while scored < tokens.len() {
        let first = if scored == 1 { length } else { stride };
        let end = tokens.len().min(scored + first);
        let start = (end - 1).saturating_sub(length);
        let sequence = executor.start()?;
        let window = Window {
            sequence,
            context: &tokens[start..scored - 1],
            foretelling: &tokens[scored - 1..end - 1],
            foretold: &tokens[scored..end],
        };
        let found = window.score(executor);
        executor.end(sequence);
        log_probabilities.extend(found?);
        scored = end;
    }
    Ok(Score { log_probabilities })
}

/// Tokens of a text of which each of `foretold` follows that of `foretelling`.
struct Window<'a> {
    sequence: SequenceId,
    context: &'a [u32],
    foretelling: &'a [u32],
    foretold: &'a [u32],
}

impl Window<'_> {
    fn score(&self, executor: &mut (impl Executor + ?Sized)) -> Result<Vec<f64>> {
        let vocabulary = executor.vocabulary();
        // Few enough at a time for logits and activations both.
        let chunk = (LOGITS / vocabulary).clamp(1, 512);
        let sequence = self.sequence;
        for tokens in self.context.chunks(chunk) {
            executor.forward(&[Chunk { sequence, tokens }], Logits::No)?;
        }
        let mut found = Vec::new();
        let next = self.foretold.chunks(chunk);
        for (tokens, next) in self.foretelling.chunks(chunk).zip(next) {
            let logits = executor.forward(&[Chunk { sequence, tokens }], Logits::All)?;
            let rows = logits.par_chunks_exact(vocabulary).zip(next);
            found.par_extend(rows.map(|(logits, &token)| log_probability(logits, token)));
        }
        Ok(found)
    }
}

/// The natural logarithm of a token's probability, by logits of the whole vocabulary.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: f32| f64::from(logit) - f64::from(max);
    let sum: f64 = logits.iter().map(|&logit| above(logit).exp()).sum();
    above(logits[token as usize]) - sum.ln()
}
