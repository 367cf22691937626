//! The keys of `config.json`, and what is wrong with their values.

use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::{Architecture, Config, ExpertsConfig};
use crate::rope::{Rope, Scaling};

/// No model is larger in any dimension; so no product of sizes overflows.
const MAX_SIZE: u32 = 1 << 20;
/// No model has more layers, nor more experts in one.
const MAX_COUNT: u32 = 1000;

/// `config.json`. Defaults are those of transformers, where all these architectures have the same.
#[derive(Deserialize)]
pub struct Keys {
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    max_position_embeddings: u32,
    #[serde(default = "default_eps")]
    rms_norm_eps: f32,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    eos_token_id: Option<TokenIds>,

    rope_theta: Option<f64>,
    rope_parameters: Option<RopeKeys>,
    rope_scaling: Option<RopeKeys>,
    partial_rotary_factor: Option<f64>,

    /// Absent is not null: that is no window.
    #[serde(default = "default_window")]
    sliding_window: Option<u32>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "default_window_layers")]
    max_window_layers: u32,
    layer_types: Option<Vec<String>>,

    /// `num_local_experts` in files of some versions.
    #[serde(alias = "num_local_experts")]
    num_experts: Option<u32>,
    num_experts_per_tok: Option<u32>,
    moe_intermediate_size: Option<u32>,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default = "one")]
    decoder_sparse_step: u32,
    mlp_only_layers: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct RopeKeys {
    rope_type: Option<String>,
    /// The same, in older files.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u32>,
    partial_rotary_factor: Option<f64>,
    /// Embeddings that differ from layer to layer, which are not built.
    full_attention: Option<IgnoredAny>,
    sliding_attention: Option<IgnoredAny>,
}

fn default_eps() -> f32 {
    1e-6
}

fn default_window() -> Option<u32> {
    Some(4096)
}

fn default_window_layers() -> u32 {
    28
}

fn one() -> u32 {
    1
}

/// What is wrong with a key, which it starts with.
type Checked<T> = std::result::Result<T, String>;

/// A size that is neither 0 nor absurd.
fn size(key: &str, value: u32, max: u32) -> Checked<usize> {
    match value {
        0 => Err(format!("{key}: 0")),
        value if value > max => Err(format!("{key}: {value}, more than {max}")),
        value => Ok(value as usize),
    }
}

fn present<T>(key: &str, value: Option<T>) -> Checked<T> {
    value.ok_or_else(|| format!("{key}: absent"))
}

fn positive(key: &str, value: f64) -> Checked<f64> {
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(format!("{key}: {value}, not a positive number")),
    }
}

impl Keys {
    /// Takes them for a model of an architecture.
    pub fn check(mut self, architecture: Architecture) -> Checked<Config> {
        let hidden = size("hidden_size", self.hidden_size, MAX_SIZE)?;
        let layers = size("num_hidden_layers", self.num_hidden_layers, MAX_COUNT)?;
        let heads = size("num_attention_heads", self.num_attention_heads, MAX_SIZE)?;
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let kv_heads = size("num_key_value_heads", kv_heads, MAX_SIZE)?;
        if heads % kv_heads != 0 {
            return Err(format!(
                "num_attention_heads: {heads}, not a multiple of num_key_value_heads, {kv_heads}"
            ));
        }
        let act = self.hidden_act.take().unwrap_or("silu".into());
        if act != "silu" {
            return Err(format!("hidden_act: {act:?} is not built, only \"silu\""));
        }
        let eps = self.rms_norm_eps;
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(format!("rms_norm_eps: {eps}"));
        }
        Ok(Config {
            architecture,
            vocabulary: size("vocab_size", self.vocab_size, MAX_SIZE)?,
            hidden,
            intermediate: size("intermediate_size", self.intermediate_size, MAX_SIZE)?,
            layers,
            heads,
            kv_heads,
            head_dim: self.head_dim(architecture)?,
            context: size(
                "max_position_embeddings",
                self.max_position_embeddings,
                u32::MAX,
            )?,
            norm_eps: eps,
            rope: self.rope()?,
            windows: self.windows(architecture)?,
            attention_bias: self.attention_bias,
            mlp_bias: self.mlp_bias,
            tied: self.tie_word_embeddings,
            experts: match architecture {
                Architecture::Qwen3Moe => Some(self.experts()?),
                _ => None,
            },
            eos: self.eos_token_id.take().map_or(Vec::new(), |ids| ids.0),
        })
    }

    fn head_dim(&self, architecture: Architecture) -> Checked<usize> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        let head_dim = match (self.head_dim, architecture) {
            (Some(head_dim), _) => head_dim,
            (None, Architecture::Qwen3) => 128,
            (None, _) if hidden % heads == 0 => hidden / heads,
            (None, _) => {
                return Err(format!(
                    "head_dim: absent, and hidden_size, {hidden}, is not a multiple of num_attention_heads, {heads}"
                ));
            }
        };
        let head_dim = size("head_dim", head_dim, MAX_SIZE / heads.min(MAX_SIZE))?;
        match head_dim % 2 {
            0 => Ok(head_dim),
            _ => Err(format!("head_dim: {head_dim}, not an even number")),
        }
    }

    fn rope(&self) -> Checked<Rope> {
        // The older key wins, as in transformers.
        let (section, keys) = match (&self.rope_scaling, &self.rope_parameters) {
            (Some(keys), _) => ("rope_scaling", Some(keys)),
            (None, keys) => ("rope_parameters", keys.as_ref()),
        };
        let at = |key: &str| format!("{section}.{key}");
        if keys.is_some_and(|k| k.full_attention.is_some() || k.sliding_attention.is_some()) {
            return Err(format!(
                "{section}: one for each kind of layer is not built"
            ));
        }
        let partial = keys.and_then(|keys| keys.partial_rotary_factor);
        if let Some(part) = partial.or(self.partial_rotary_factor)
            && part != 1.0
        {
            return Err(format!(
                "partial_rotary_factor: {part} is not built, only 1"
            ));
        }
        let theta = keys.and_then(|keys| keys.rope_theta).or(self.rope_theta);
        let theta = positive("rope_theta", theta.unwrap_or(10_000.0))?;
        let Some(keys) = keys else {
            let scaling = Scaling::Default;
            return Ok(Rope { theta, scaling });
        };
        let number = |key: &str, value| positive(&at(key), present(&at(key), value)?);
        let kind = keys.rope_type.as_ref().or(keys.r#type.as_ref());
        let scaling = match kind.map_or("default", String::as_str) {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear {
                factor: number("factor", keys.factor)?,
            },
            "llama3" => {
                let original = keys.original_max_position_embeddings;
                let original = original.unwrap_or(self.max_position_embeddings);
                let low = number("low_freq_factor", keys.low_freq_factor)?;
                let high = number("high_freq_factor", keys.high_freq_factor)?;
                if low >= high {
                    let key = at("low_freq_factor");
                    return Err(format!("{key}: {low}, not below high_freq_factor, {high}"));
                }
                Scaling::Llama3 {
                    factor: number("factor", keys.factor)?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: original,
                }
            }
            other => {
                let key = at("rope_type");
                return Err(format!(
                    "{key}: {other:?} is not built, only default, linear and llama3"
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }

    /// The window of each layer.
    fn windows(&self, architecture: Architecture) -> Checked<Vec<Option<usize>>> {
        let window = match self.sliding_window {
            Some(window) => Some(size("sliding_window", window, u32::MAX)?),
            None => None,
        };
        let used = window.filter(|_| self.use_sliding_window);
        let layers = self.num_hidden_layers as usize;
        Ok(match architecture {
            Architecture::Llama => vec![None; layers],
            Architecture::Mistral => vec![window; layers],
            Architecture::Qwen3Moe => vec![used; layers],
            Architecture::Qwen2 | Architecture::Qwen3 => match &self.layer_types {
                Some(types) if types.len() != layers => {
                    let types = types.len();
                    return Err(format!(
                        "layer_types: {types} of them, but num_hidden_layers is {layers}"
                    ));
                }
                Some(types) => {
                    let types = types.iter().map(|kind| match (kind.as_str(), used) {
                        ("full_attention", _) => Ok(None),
                        ("sliding_attention", Some(window)) => Ok(Some(window)),
                        ("sliding_attention", None) => {
                            Err("layer_types: some slide, but sliding_window is not used".into())
                        }
                        (other, _) => Err(format!("layer_types: {other:?} is not built")),
                    });
                    types.collect::<Checked<_>>()?
                }
                None => {
                    let first = self.max_window_layers as usize;
                    let slides = (0..layers).map(|layer| used.filter(|_| layer >= first));
                    slides.collect()
                }
            },
        })
    }

    fn experts(&self) -> Checked<ExpertsConfig> {
        let count = size(
            "num_experts",
            present("num_experts", self.num_experts)?,
            MAX_COUNT,
        )?;
        let per_token = present("num_experts_per_tok", self.num_experts_per_tok)?;
        let per_token = size("num_experts_per_tok", per_token, count as u32)?;
        let intermediate = present("moe_intermediate_size", self.moe_intermediate_size)?;
        let step = size("decoder_sparse_step", self.decoder_sparse_step, u32::MAX)?;
        let dense = self.mlp_only_layers.as_deref().unwrap_or_default();
        let layers = 0..self.num_hidden_layers;
        let sparse =
            |layer: u32| !dense.contains(&layer) && (layer as usize + 1).is_multiple_of(step);
        Ok(ExpertsConfig {
            count,
            per_token,
            intermediate: size("moe_intermediate_size", intermediate, MAX_SIZE)?,
            normalized: self.norm_topk_prob,
            layers: layers.map(sparse).collect(),
        })
    }
}

/// A number or a list of them.
pub struct TokenIds(pub Vec<u32>);

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a token's number or a list of them")]
        enum Ids {
            One(u32),
            Many(Vec<u32>),
        }
        Ok(Self(match Ids::deserialize(deserializer)? {
            Ids::One(id) => vec![id],
            Ids::Many(ids) => ids,
        }))
    }
}
