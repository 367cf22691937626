//! What models are made of: their parts, generic over what stands for a weight, and which weights an architecture has.
//!
//! An architecture is a function that asks for each of its weights by name and shape, and puts what it is given in
//! place. Whoever calls it decides what that is: the weight in memory or on a device, a check, or the bytes it takes.

mod llama;
mod qwen3_moe;

use crate::{
    Result,
    config::{Architecture, Config},
};

/// A weight that a model wants: BF16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// As the checkpoint has it.
    pub name: String,
    /// One dimension, or outputs and inputs of a matrix.
    pub shape: Vec<u64>,
}

/// Gives what stands for a weight.
pub type Load<'a, W> = dyn FnMut(Weight) -> Result<W> + 'a;

/// A language model.
#[derive(Clone, Debug)]
pub struct Model<W> {
    /// A row for each token of the vocabulary.
    pub embedding: W,
    /// What a token's state goes through, one after the other.
    pub layers: Vec<Layer<W>>,
    /// Gains of the norm after them.
    pub norm: W,
    /// Makes logits; nothing if that is the embedding.
    pub head: Option<W>,
}

/// `x += attention(norm(x))`, then `x += feed_forward(norm(x))`.
#[derive(Clone, Debug)]
pub struct Layer<W> {
    /// Gains of the norm before attention.
    pub attention_norm: W,
    /// Looks at the tokens before.
    pub attention: Attention<W>,
    /// Gains of the norm before what comes next.
    pub feed_forward_norm: W,
    /// Works on each token alone.
    pub feed_forward: FeedForward<W>,
}

/// Grouped-query attention (Ainslie et al., [GQA](https://arxiv.org/abs/2305.13245)) with rotary embeddings.
#[derive(Clone, Debug)]
pub struct Attention<W> {
    /// Queries.
    pub q: Linear<W>,
    /// Keys.
    pub k: Linear<W>,
    /// Values.
    pub v: Linear<W>,
    /// Takes the heads' outputs, side by side.
    pub output: Linear<W>,
    /// Gains of norms of each head's queries and keys, before they are rotated.
    pub head_norms: Option<HeadNorms<W>>,
    /// The last tokens that a query sees, its own included; nothing if all.
    pub window: Option<usize>,
}

/// Gains of norms of single heads.
#[derive(Clone, Debug)]
pub struct HeadNorms<W> {
    /// For queries.
    pub q: W,
    /// For keys.
    pub k: W,
}

/// `y = weight x + bias`.
#[derive(Clone, Debug)]
pub struct Linear<W> {
    /// A row for each output.
    pub weight: W,
    /// One for each output.
    pub bias: Option<W>,
}

/// What follows attention.
#[derive(Clone, Debug)]
pub enum FeedForward<W> {
    /// The same for each token.
    Dense(Mlp<W>),
    /// A few of many for each token.
    Experts(Experts<W>),
}

/// `down(silu(gate(x)) * up(x))` (Shazeer, [SwiGLU](https://arxiv.org/abs/2002.05202)).
#[derive(Clone, Debug)]
pub struct Mlp<W> {
    /// What is gated with.
    pub gate: Linear<W>,
    /// What is gated.
    pub up: Linear<W>,
    /// Back to the width of the state.
    pub down: Linear<W>,
}

/// A router and the experts that it chooses of: the sum of those with the highest probabilities, times these.
#[derive(Clone, Debug)]
pub struct Experts<W> {
    /// A row for each expert.
    pub router: W,
    /// All of them.
    pub experts: Vec<Mlp<W>>,
    /// How many a token is sent to.
    pub per_token: usize,
    /// Whether their probabilities are first divided by their sum.
    pub normalized: bool,
}

impl<W> Model<W> {
    /// The model that a configuration describes, of what `load` gives for each weight.
    ///
    /// # Errors
    /// The first of `load`, which is not called again then.
    pub fn new(config: &Config, load: &mut Load<W>) -> Result<Self> {
        let layer = match config.architecture {
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Qwen2
            | Architecture::Qwen3 => llama::layer,
            Architecture::Qwen3Moe => qwen3_moe::layer,
        };
        let (vocabulary, hidden) = (config.vocabulary, config.hidden);
        let mut top = Scope {
            prefix: String::new(),
            load,
        };
        let embedding = top.matrix("model.embed_tokens", vocabulary, hidden)?;
        let layers = (0..config.layers).map(|index| {
            layer(
                config,
                index,
                &mut top.inside(&format!("model.layers.{index}")),
            )
        });
        Ok(Self {
            embedding,
            layers: layers.collect::<Result<_>>()?,
            norm: top.vector("model.norm", hidden)?,
            head: match config.tied {
                true => None,
                false => Some(top.matrix("lm_head", vocabulary, hidden)?),
            },
        })
    }

    /// What makes logits.
    pub fn head(&self) -> &W {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

/// Where names of weights start alike.
struct Scope<'a, 'b, W> {
    prefix: String,
    load: &'a mut Load<'b, W>,
}

impl<'b, W> Scope<'_, 'b, W> {
    fn inside(&mut self, name: &str) -> Scope<'_, 'b, W> {
        Scope {
            prefix: format!("{}{name}.", self.prefix),
            load: self.load,
        }
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<W> {
        (self.load)(Weight {
            name: format!("{}{name}", self.prefix),
            shape: shape.iter().map(|&size| size as u64).collect(),
        })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<W> {
        self.weight(&format!("{name}.weight"), &[len])
    }

    fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<W> {
        self.weight(&format!("{name}.weight"), &[outputs, inputs])
    }

    fn linear(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Linear<W>> {
        Ok(Linear {
            weight: self.matrix(name, outputs, inputs)?,
            bias: match bias {
                true => Some(self.weight(&format!("{name}.bias"), &[outputs])?),
                false => None,
            },
        })
    }

    fn mlp(&mut self, hidden: usize, inner: usize, bias: bool) -> Result<Mlp<W>> {
        Ok(Mlp {
            gate: self.linear("gate_proj", inner, hidden, bias)?,
            up: self.linear("up_proj", inner, hidden, bias)?,
            down: self.linear("down_proj", hidden, inner, bias)?,
        })
    }
}
