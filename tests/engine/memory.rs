//! Bytes of published models, by the numbers of parameters that their publishers give.

use std::path::Path;

use serde_json::{Value, json};
use zipserv_engine::{Config, memory};

use crate::support;

fn parse(config: Value) -> Config {
    Config::parse(Path::new("config.json"), &config.to_string()).unwrap()
}

#[test]
fn weights_of_published_models() {
    let llama_3_1_8b = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072
    });
    let qwen_2_5_05b = json!({
        "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "tie_word_embeddings": true
    });
    let mistral_7b = json!({
        "architectures": ["MistralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 32768
    });
    let qwen3_30b_a3b = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936, "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "max_position_embeddings": 40960, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768
    });
    for (config, parameters) in [
        (llama_3_1_8b, 8_030_261_248),
        (qwen_2_5_05b, 494_032_768),
        (mistral_7b, 7_241_732_096),
        (qwen3_30b_a3b, 30_532_122_624),
    ] {
        assert_eq!(memory::weights(&parse(config)), 2 * parameters);
    }
}

#[test]
fn keys_and_values() {
    let mut config = parse(support::config("LlamaForCausalLM", json!({})));
    // Llama-3.1-8B's: 128 KiB a token in BF16.
    (config.layers, config.kv_heads, config.head_dim) = (32, 8, 128);
    assert_eq!(memory::keys_and_values(&config, 1, 1, 2), 128 << 10);
    assert_eq!(memory::keys_and_values(&config, 8, 4096, 4), 8 << 30);
    assert_eq!(memory::keys_and_values(&config, u64::MAX, 2, 2), u64::MAX);
}

/// The largest sizes that a configuration may have do not overflow.
#[test]
fn largest_model() {
    let largest = json!({
        "vocab_size": 1 << 20, "hidden_size": 1 << 20, "intermediate_size": 1 << 20, "num_hidden_layers": 1000,
        "num_attention_heads": 1 << 19, "num_key_value_heads": 1 << 19, "head_dim": 2,
        "max_position_embeddings": u32::MAX, "num_experts": 1000, "moe_intermediate_size": 1 << 20
    });
    let config = parse(support::config("Qwen3MoeForCausalLM", largest));
    let experts = 1_000_000 * 3 * (2u64 << 40);
    assert!(memory::weights(&config) > experts);
}
