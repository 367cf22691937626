//! Llama (Touvron et al., [LLaMA](https://arxiv.org/abs/2302.13971)) and those that differ from it by little:
//!
//! | | biases of q, k, v | of attention's output | of the MLP | norms of heads |
//! |---|---|---|---|---|
//! | Llama | `attention_bias` | `attention_bias` | `mlp_bias` | no |
//! | [Mistral](https://arxiv.org/abs/2310.06825) | no | no | no | no |
//! | [Qwen2](https://arxiv.org/abs/2407.10671) | yes | no | no | no |
//! | [Qwen3](https://arxiv.org/abs/2505.09388) | `attention_bias` | `attention_bias` | no | yes |

use super::{Attention, FeedForward, HeadNorms, Layer, Scope};
use crate::{
    Result,
    config::{Architecture, Config},
};

pub fn layer<W>(config: &Config, index: usize, scope: &mut Scope<W>) -> Result<Layer<W>> {
    let bias = config.architecture == Architecture::Llama && config.mlp_bias;
    let mlp = |scope: &mut Scope<W>| {
        let mlp = scope.mlp(config.hidden, config.intermediate, bias)?;
        Ok(FeedForward::Dense(mlp))
    };
    layer_with(mlp, config, index, scope)
}

/// A layer with another block after attention.
pub fn layer_with<W>(
    feed_forward: impl FnOnce(&mut Scope<W>) -> Result<FeedForward<W>>,
    config: &Config,
    index: usize,
    scope: &mut Scope<W>,
) -> Result<Layer<W>> {
    Ok(Layer {
        attention_norm: scope.vector("input_layernorm", config.hidden)?,
        attention: attention(config, index, &mut scope.inside("self_attn"))?,
        feed_forward_norm: scope.vector("post_attention_layernorm", config.hidden)?,
        feed_forward: feed_forward(&mut scope.inside("mlp"))?,
    })
}

fn attention<W>(config: &Config, index: usize, scope: &mut Scope<W>) -> Result<Attention<W>> {
    let (qkv_bias, output_bias, head_norms) = match config.architecture {
        Architecture::Llama => (config.attention_bias, config.attention_bias, false),
        Architecture::Mistral => (false, false, false),
        Architecture::Qwen2 => (true, false, false),
        Architecture::Qwen3 | Architecture::Qwen3Moe => {
            (config.attention_bias, config.attention_bias, true)
        }
    };
    let (hidden, head_dim) = (config.hidden, config.head_dim);
    let (q_width, kv_width) = (config.heads * head_dim, config.kv_width());
    Ok(Attention {
        q: scope.linear("q_proj", q_width, hidden, qkv_bias)?,
        k: scope.linear("k_proj", kv_width, hidden, qkv_bias)?,
        v: scope.linear("v_proj", kv_width, hidden, qkv_bias)?,
        output: scope.linear("o_proj", hidden, q_width, output_bias)?,
        head_norms: match head_norms {
            true => Some(HeadNorms {
                q: scope.vector("q_norm", head_dim)?,
                k: scope.vector("k_norm", head_dim)?,
            }),
            false => None,
        },
        window: config.windows[index],
    })
}
