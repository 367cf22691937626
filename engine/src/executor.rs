//! What runs a model: it keeps weights, and keys and values of sequences.

use crate::{Error, Result, Sampling};

/// A sequence whose keys and values an executor keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId(pub usize);

/// Tokens that come next in a sequence: a prompt, a part of one, or what was sampled last.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Whose.
    pub sequence: SequenceId,
    /// At least one.
    pub tokens: &'a [u32],
}

/// Of which tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// The last of each chunk: what follows it is to be sampled.
    Last,
    /// All, to score a text.
    All,
    /// None: a chunk of a prompt with more to come.
    No,
}

/// Runs one model on one device, or on several that work as one.
pub trait Executor {
    /// Logits of a token: one for each entry of the vocabulary.
    fn vocabulary(&self) -> usize;

    /// Tokens that a sequence can have.
    fn context(&self) -> usize;

    /// Starts a sequence of no tokens.
    ///
    /// # Errors
    /// If there is no room for one more.
    fn start(&mut self) -> Result<SequenceId>;

    /// Forgets a sequence. Its number may be given again.
    fn end(&mut self, sequence: SequenceId);

    /// Adds tokens to sequences, at most one chunk each, and gives logits, a row of `vocabulary` for each token that they
    /// are wanted of, chunk by chunk.
    ///
    /// A token's logits depend on the tokens before it in its sequence, and neither on how these were cut into chunks
    /// nor on what runs beside them.
    ///
    /// # Errors
    /// If a sequence is unknown or has no room, or a token is none of the vocabulary; nothing is added then.
    fn forward(&mut self, chunks: &[Chunk], logits: Logits) -> Result<Vec<f32>>;

    /// Continues sequences by tokens that it chooses itself, if it does that faster than [`forward`](Self::forward) and
    /// [`Sampling::sample`] would, which choose the same: `tokens` come next in them, and `steps` tokens are chosen for
    /// each, as its `sampling` says, a row for each step. Of those, all but the last are added to the sequence. Where no
    /// logit is a number, or the largest is infinite, the token may be none of the vocabulary.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), if settings mean nothing, and if there are not as many tokens or settings as
    /// sequences.
    fn try_choose(
        &mut self,
        _sequences: &[SequenceId],
        _tokens: &[u32],
        _sampling: &[Sampling],
        _steps: usize,
    ) -> Result<Option<Vec<Vec<u32>>>> {
        Ok(None)
    }

    /// Forgets what a sequence has after so many tokens, which may be of those that [`try_choose`](Self::try_choose) has
    /// added.
    fn truncate(&mut self, _sequence: SequenceId, _tokens: usize) {}
}

/// Whether chunks can be added to sequences of so many `tokens`, if they exist, of at most `room` each.
pub(crate) fn check(
    chunks: &[Chunk],
    vocabulary: usize,
    room: usize,
    tokens: impl Fn(SequenceId) -> Option<usize>,
) -> Result<()> {
    let refused = |why: String| Err(Error::Request(why));
    for (index, chunk) in chunks.iter().enumerate() {
        let number = chunk.sequence.0;
        let Some(before) = tokens(chunk.sequence) else {
            return refused(format!("there is no sequence {number}"));
        };
        if chunks[..index].iter().any(|c| c.sequence == chunk.sequence) {
            return refused(format!("two chunks of sequence {number}"));
        }
        if chunk.tokens.is_empty() {
            return refused(format!("no tokens for sequence {number}"));
        }
        let known = |token: &u32| (*token as usize) < vocabulary;
        if let Some(token) = chunk.tokens.iter().find(|token| !known(token)) {
            return refused(format!("token {token}: the model has {vocabulary}"));
        }
        let tokens = before + chunk.tokens.len();
        if tokens > room {
            return Err(Error::Context { tokens, room });
        }
    }
    Ok(())
}
