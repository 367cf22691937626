//! The plain reference: BF16 weights, all arithmetic and keys and values in FP32.
//!
//! Each output of an operator is worked out by itself and always in the same order, so neither how texts are cut into
//! chunks nor what runs beside them changes a bit.

pub mod ops;

use std::path::Path;

use self::ops::{Rows, Tensor};
use crate::{
    Chunk, Config, Executor, Logits, Result, SequenceId,
    executor::check,
    models::{Attention, Experts, FeedForward, Layer, Mlp, Model},
    weights::Weights,
};

/// Runs a model on the CPU, on the current rayon pool.
pub struct CpuExecutor {
    config: Config,
    model: Model<Tensor>,
    /// Of rotary embeddings.
    frequencies: Vec<f32>,
    /// By their numbers, with gaps where sequences have ended.
    sequences: Vec<Option<Sequence>>,
}

/// Keys and values of a sequence.
struct Sequence {
    tokens: usize,
    layers: Vec<KeysAndValues>,
}

/// A layer's, a row for each token.
struct KeysAndValues {
    keys: Rows,
    values: Rows,
}

/// A token of a chunk: its sequence's index and its position there.
#[derive(Clone, Copy)]
struct Place {
    sequence: usize,
    position: usize,
}

impl CpuExecutor {
    /// Loads the model of a Hugging Face folder, compressed by zipserv or not.
    ///
    /// # Errors
    /// If its architecture does not run here, its configuration is wrong, or a weight is absent, of another shape or
    /// not BF16; also if a file cannot be read or is damaged.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config = Config::open(folder)?;
        let weights = Weights::open(folder, &config)?;
        let model = Model::new(&config, &mut |weight| {
            let width = weight.shape[weight.shape.len() - 1] as usize;
            Ok(Tensor::new(width, weights.read(&weight)?))
        })?;
        Ok(Self {
            frequencies: config.rope.frequencies(config.head_dim),
            config,
            model,
            sequences: Vec::new(),
        })
    }

    /// Of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(id.0)?.as_ref()
    }

    /// Whether chunks can be added.
    fn check(&self, chunks: &[Chunk]) -> Result<()> {
        let tokens = |id| self.sequence(id).map(|sequence| sequence.tokens);
        check(chunks, self.config.vocabulary, self.config.context, tokens)
    }

    fn layer(&mut self, index: usize, x: &mut Rows, places: &[Place]) {
        let Self {
            config,
            model,
            frequencies,
            sequences,
        } = self;
        let Layer {
            attention_norm,
            attention,
            feed_forward_norm,
            feed_forward,
        } = &model.layers[index];

        let mut h = x.clone();
        ops::rms_norm(&mut h, attention_norm, config.norm_eps);
        let mut layers: Vec<_> = sequences
            .iter_mut()
            .map(|sequence| sequence.as_mut().map(|s| &mut s.layers[index]))
            .collect();
        x.add(&attend(
            attention,
            config,
            frequencies,
            &h,
            places,
            &mut layers,
        ));

        let mut h = x.clone();
        ops::rms_norm(&mut h, feed_forward_norm, config.norm_eps);
        x.add(&match feed_forward {
            FeedForward::Dense(block) => mlp(block, &h),
            FeedForward::Experts(block) => experts(block, &h),
        });
    }
}

impl Executor for CpuExecutor {
    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn context(&self) -> usize {
        self.config.context
    }

    fn start(&mut self) -> Result<SequenceId> {
        let empty = || Rows::new(self.config.kv_width(), Vec::new());
        let layer = || KeysAndValues {
            keys: empty(),
            values: empty(),
        };
        let sequence = Sequence {
            tokens: 0,
            layers: self.model.layers.iter().map(|_| layer()).collect(),
        };
        let free = self.sequences.iter().position(Option::is_none);
        let number = free.unwrap_or(self.sequences.len());
        match free {
            Some(free) => self.sequences[free] = Some(sequence),
            None => self.sequences.push(Some(sequence)),
        }
        Ok(SequenceId(number))
    }

    fn end(&mut self, sequence: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(sequence.0) {
            *sequence = None;
        }
    }

    fn forward(&mut self, chunks: &[Chunk], logits: Logits) -> Result<Vec<f32>> {
        self.check(chunks)?;
        let (mut tokens, mut places, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in chunks {
            let sequence = chunk.sequence.0;
            let state = self.sequences[sequence].as_mut().expect("it was checked");
            let positions = state.tokens..state.tokens + chunk.tokens.len();
            state.tokens = positions.end;
            places.extend(positions.map(|position| Place { sequence, position }));
            tokens.extend(chunk.tokens);
            match logits {
                Logits::Last => wanted.push(tokens.len() - 1),
                Logits::All => wanted.extend(tokens.len() - chunk.tokens.len()..tokens.len()),
                Logits::No => {}
            }
        }

        let mut x = ops::embed(&self.model.embedding, &tokens);
        for index in 0..self.model.layers.len() {
            self.layer(index, &mut x, &places);
        }
        let mut x = x.select(&wanted);
        ops::rms_norm(&mut x, &self.model.norm, self.config.norm_eps);
        Ok(ops::matmul(self.model.head(), &x).into_values())
    }
}

/// Keeps keys and values of new tokens, and looks at those of all before.
fn attend(
    attention: &Attention<Tensor>,
    config: &Config,
    frequencies: &[f32],
    x: &Rows,
    places: &[Place],
    sequences: &mut [Option<&mut KeysAndValues>],
) -> Rows {
    let mut q = ops::linear(&attention.q, x);
    let mut k = ops::linear(&attention.k, x);
    let v = ops::linear(&attention.v, x);
    if let Some(norms) = &attention.head_norms {
        ops::rms_norm(&mut q, &norms.q, config.norm_eps);
        ops::rms_norm(&mut k, &norms.k, config.norm_eps);
    }
    let positions: Vec<_> = places.iter().map(|place| place.position).collect();
    ops::rope(&mut q, &positions, frequencies);
    ops::rope(&mut k, &positions, frequencies);

    for ((place, k), v) in places.iter().zip(k.iter()).zip(v.iter()) {
        let kept = sequences[place.sequence].as_mut().expect("it is running");
        kept.keys.push(k);
        kept.values.push(v);
    }
    let seen = |token: usize| {
        let Place { sequence, position } = places[token];
        let kept = sequences[sequence].as_ref().expect("it is running");
        let first = attention
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        (&kept.keys, &kept.values, first..position + 1)
    };
    let heads = ops::attention(&q, config.head_dim, seen);
    ops::linear(&attention.output, &heads)
}

fn mlp(mlp: &Mlp<Tensor>, x: &Rows) -> Rows {
    let mut inner = ops::linear(&mlp.gate, x);
    ops::silu_mul(&mut inner, &ops::linear(&mlp.up, x));
    ops::linear(&mlp.down, &inner)
}

/// A token's experts add up in the order of their numbers.
fn experts(block: &Experts<Tensor>, x: &Rows) -> Rows {
    let routes = ops::route(
        &ops::matmul(&block.router, x),
        block.per_token,
        block.normalized,
    );
    let mut sum = Rows::zeros(x.width(), x.len());
    for (index, expert) in block.experts.iter().enumerate() {
        let sent = routes.iter().enumerate().filter_map(|(token, route)| {
            let chosen = route.iter().find(|(expert, _)| *expert == index);
            chosen.map(|(_, weight)| (token, *weight))
        });
        let (tokens, weights): (Vec<_>, Vec<_>) = sent.unzip();
        if tokens.is_empty() {
            continue;
        }
        let y = mlp(expert, &x.select(&tokens));
        for ((&token, weight), y) in tokens.iter().zip(weights).zip(y.iter()) {
            for (sum, y) in sum.row_mut(token).iter_mut().zip(y) {
                *sum += weight * y;
            }
        }
    }
    sum
}
