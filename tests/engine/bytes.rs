//! A tokenizer and an executor that need no model.
#![allow(dead_code)]

use std::{collections::HashMap, fs};

use serde_json::json;
use tempfile::TempDir;
use zipserv_engine::{Chunk, Error, Executor, Logits, Result, Sampling, SequenceId, Tokenizer};

/// The token that ends a text.
pub const END: u32 = 256;
pub const VOCABULARY: usize = 258;

/// A folder with a tokenizer whose tokens are the bytes, and `<end>` and `<other>`.
pub fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    // As GPT-2 has it: bytes that print are themselves, others come after 255 in their order.
    let prints = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 256..;
    let vocabulary: HashMap<_, _> = (0..256)
        .map(|byte| {
            let c = if prints(byte) {
                byte
            } else {
                others.next().unwrap()
            };
            (char::from_u32(c).unwrap(), byte)
        })
        .collect();
    let special = |id, content| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": [special(END, "<end>"), special(257, "<other>")],
        "normalizer": null,
        "pre_tokenizer": level,
        "post_processor": null,
        "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::open(folder().path()).unwrap()
}

/// Gives the logits that a function has for all tokens of a sequence.
pub struct Fake<F> {
    logits: F,
    context: usize,
    sequences: HashMap<usize, Vec<u32>>,
    started: usize,
    /// Tokens that it was given, all together.
    pub given: usize,
    /// The most chunks, and the most tokens in one.
    pub batch: usize,
    pub chunk: usize,
    /// Whether it chooses tokens by itself.
    pub chooses: bool,
}

impl<F: Fn(&[u32]) -> Vec<f32>> Fake<F> {
    pub fn new(context: usize, logits: F) -> Self {
        Self {
            logits,
            context,
            sequences: HashMap::new(),
            started: 0,
            given: 0,
            batch: 0,
            chunk: 0,
            chooses: false,
        }
    }

    /// Sequences that were started and not ended.
    pub fn live(&self) -> usize {
        self.sequences.len()
    }
}

/// Logits by which a token is certain.
pub fn certain(token: u32) -> Vec<f32> {
    let mut logits = vec![0.0; VOCABULARY];
    logits[token as usize] = 100.0;
    logits
}

/// Logits that let a text follow each of its beginnings, then the end.
pub fn spelling(text: &str) -> impl Fn(&[u32]) -> Vec<f32> {
    move |tokens| {
        certain(
            text.as_bytes()
                .get(tokens.len())
                .map_or(END, |&byte| byte.into()),
        )
    }
}

/// Logits like random ones, other ones for each sequence.
pub fn noise(tokens: &[u32]) -> Vec<f32> {
    let hash = |state: u32, token: &u32| (state ^ token).wrapping_mul(0x0100_0193).rotate_left(7);
    let mut state = tokens.iter().fold(0x811c_9dc5, hash) | 1;
    let mut next = || {
        // The generator of Marsaglia.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 22) as f32
    };
    (0..VOCABULARY).map(|_| next()).collect()
}

impl<F: Fn(&[u32]) -> Vec<f32>> Executor for Fake<F> {
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
        self.sequences.remove(&sequence.0).expect("a sequence");
    }

    fn try_choose(
        &mut self,
        sequences: &[SequenceId],
        tokens: &[u32],
        sampling: &[Sampling],
        steps: usize,
    ) -> Result<Option<Vec<Vec<u32>>>> {
        if !self.chooses {
            return Ok(None);
        }
        let (mut chosen, mut next) = (Vec::new(), tokens.to_vec());
        for _ in 0..steps {
            let chunks = sequences.iter().zip(next.chunks(1));
            let chunks: Vec<_> = chunks
                .map(|(&sequence, tokens)| Chunk { sequence, tokens })
                .collect();
            let logits = self.forward(&chunks, Logits::Last)?;
            let rows = logits
                .chunks(VOCABULARY)
                .zip(sequences.iter().zip(sampling));
            let sample = |(row, (id, sampling)): (_, (&SequenceId, &Sampling))| {
                let position = self.sequences[&id.0].len();
                sampling.sample(row, position).unwrap_or(u32::MAX)
            };
            next = rows.map(sample).collect();
            chosen.push(next.clone());
        }
        Ok(Some(chosen))
    }

    fn truncate(&mut self, sequence: SequenceId, tokens: usize) {
        let there = self.sequences.get_mut(&sequence.0).expect("a sequence");
        assert!(there.len() >= tokens);
        there.truncate(tokens);
    }

    fn forward(&mut self, chunks: &[Chunk], wanted: Logits) -> Result<Vec<f32>> {
        self.batch = self.batch.max(chunks.len());
        let mut logits = Vec::new();
        for chunk in chunks {
            assert!(!chunk.tokens.is_empty());
            self.chunk = self.chunk.max(chunk.tokens.len());
            let tokens = self
                .sequences
                .get_mut(&chunk.sequence.0)
                .expect("a sequence");
            for (index, &token) in (1..).zip(chunk.tokens) {
                self.given += 1;
                tokens.push(token);
                if tokens.len() > self.context {
                    let (tokens, room) = (tokens.len(), self.context);
                    return Err(Error::Context { tokens, room });
                }
                let is_last = index == chunk.tokens.len();
                if wanted == Logits::All || wanted == Logits::Last && is_last {
                    logits.extend((self.logits)(tokens));
                }
            }
        }
        Ok(logits)
    }
}
