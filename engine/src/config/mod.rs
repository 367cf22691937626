//! What `config.json` says of a model: the keys of transformers, versions 4 and 5, checked.

mod keys;

use std::{fmt, path::Path};

use serde::Deserialize;

use self::keys::{Keys, TokenIds};
use crate::{
    Result,
    files::{parse, read, wrong},
    rope::Rope,
};

/// The architectures that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`, Qwen2.5's too.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
    /// `Qwen3MoeForCausalLM`.
    Qwen3Moe,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
    ];

    /// As `architectures` in `config.json` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A model's sizes and options. All sizes are at least 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which model it is.
    pub architecture: Architecture,
    /// Tokens that there are, `vocab_size`.
    pub vocabulary: usize,
    /// Elements of a token's state, `hidden_size`.
    pub hidden: usize,
    /// Inner elements of a dense feed-forward block, `intermediate_size`.
    pub intermediate: usize,
    /// Layers, `num_hidden_layers`.
    pub layers: usize,
    /// Heads of queries, `num_attention_heads`: a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and of values, `num_key_value_heads`.
    pub kv_heads: usize,
    /// Elements of a head: an even number.
    pub head_dim: usize,
    /// Tokens that a sequence can have, `max_position_embeddings`.
    pub context: usize,
    /// What is added to a mean square before its root is taken, `rms_norm_eps`.
    pub norm_eps: f32,
    /// How positions are told.
    pub rope: Rope,
    /// The last tokens that each layer's queries see, their own included; nothing if all.
    pub windows: Vec<Option<usize>>,
    /// Whether attention has biases, `attention_bias`, where the architecture leaves that open.
    pub attention_bias: bool,
    /// Whether feed-forward blocks have biases, `mlp_bias`, likewise.
    pub mlp_bias: bool,
    /// Whether the head is the embedding, `tie_word_embeddings`.
    pub tied: bool,
    /// A mixture's experts; nothing in a dense model.
    pub experts: Option<ExpertsConfig>,
    /// The tokens that end a text, from `generation_config.json` if that has any.
    pub eos: Vec<u32>,
}

/// Routed experts of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// How many there are in a layer, `num_experts`.
    pub count: usize,
    /// How many a token is sent to, `num_experts_per_tok`.
    pub per_token: usize,
    /// Inner elements of each, `moe_intermediate_size`.
    pub intermediate: usize,
    /// Whether the weights of a token's experts are made to add up to 1, `norm_topk_prob`.
    pub normalized: bool,
    /// Whether each layer has experts; else it has a dense block.
    pub layers: Vec<bool>,
}

impl Config {
    /// Reads `config.json` and, if it is there, `generation_config.json` of a folder.
    ///
    /// # Errors
    /// Names the file and the key: if it is absent or out of range, or asks for what is not built.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("config.json");
        let mut config = Self::parse(&path, &read(&path)?)?;
        let path = folder.join("generation_config.json");
        if path.exists() {
            let generation: Generation = parse(&path, &read(&path)?)?;
            if let Some(eos) = generation.eos_token_id {
                config.eos = eos.0;
            }
        }
        Ok(config)
    }

    /// Takes the text of `config.json`; `path` is for errors.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn parse(path: &Path, json: &str) -> Result<Self> {
        // Other architectures may have other keys: which one it is comes first.
        let architecture = architecture(path, &parse(path, json)?)?;
        let keys: Keys = parse(path, json)?;
        keys.check(architecture).map_err(|why| wrong(path, why))
    }

    /// Elements of a token's keys in a layer, and of its values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

fn architecture(path: &Path, kind: &Kind) -> Result<Architecture> {
    if let Some(quantization) = &kind.quantization_config
        && quantization.quant_method != "zipserv"
    {
        let method = &quantization.quant_method;
        let why = format!(
            "quantization_config: weights by {method:?} are not read, only BF16, as they are or packed by zipserv"
        );
        return Err(wrong(path, why));
    }
    let name = kind.architectures.iter().flatten().next();
    let name = name.ok_or_else(|| wrong(path, "architectures: absent or empty"))?;
    let mut all = Architecture::ALL.into_iter();
    all.find(|known| known.name() == name).ok_or_else(|| {
        let all = Architecture::ALL.map(Architecture::name).join(", ");
        let why = format!("architectures: {name:?} does not run; those that do: {all}");
        wrong(path, why)
    })
}

#[derive(Deserialize)]
struct Kind {
    architectures: Option<Vec<String>>,
    quantization_config: Option<Quantization>,
}

#[derive(Deserialize)]
struct Quantization {
    #[serde(default)]
    quant_method: String,
}

#[derive(Deserialize)]
struct Generation {
    eos_token_id: Option<TokenIds>,
}
