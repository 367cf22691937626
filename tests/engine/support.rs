//! Small random models in folders.

use std::{collections::BTreeMap, fs, path::Path};

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use zipserv_engine::{
    Config, CpuExecutor,
    models::{Model, Weight},
};

pub const VOCABULARY: u32 = 61;
pub const CONTEXT: usize = 48;
/// Standard deviation of random weights.
pub const DEVIATION: f32 = 0.3;

/// Tensors by their names: dtype, shape, bytes.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A configuration of an architecture, with other keys or other values.
pub fn config(architecture: &str, changes: Value) -> Value {
    let mut config = json!({
        "architectures": [architecture],
        "vocab_size": VOCABULARY,
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": 2,
    });
    if architecture == "Qwen3MoeForCausalLM" {
        merge(
            &mut config,
            json!({"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 22}),
        );
    }
    merge(&mut config, changes);
    config
}

pub fn merge(config: &mut Value, changes: Value) {
    let Value::Object(changes) = changes else {
        panic!("keys and values");
    };
    config.as_object_mut().unwrap().extend(changes);
}

/// One of each architecture; windows, biases and the ways to rotate are among them.
pub fn configs() -> Vec<Value> {
    let llama3 = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    vec![
        config(
            "LlamaForCausalLM",
            json!({"attention_bias": true, "mlp_bias": true, "rope_scaling": llama3}),
        ),
        config("MistralForCausalLM", json!({"sliding_window": 7})),
        config("Qwen2ForCausalLM", json!({"tie_word_embeddings": true})),
        config(
            "Qwen3ForCausalLM",
            json!({"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": true,
                "sliding_window": 5}),
        ),
        config(
            "Qwen3MoeForCausalLM",
            json!({"norm_topk_prob": true, "mlp_only_layers": [0]}),
        ),
    ]
}

/// All weights that a configuration asks for.
pub fn wanted(config: &Value) -> Vec<Weight> {
    let config = Config::parse(Path::new("config.json"), &config.to_string()).unwrap();
    let mut weights = Vec::new();
    Model::new(&config, &mut |weight| {
        weights.push(weight);
        Ok(())
    })
    .unwrap();
    weights
}

/// Random weights for a configuration.
pub fn tensors(config: &Value) -> Tensors {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut random = |Weight { name, shape }| {
        let mean = if name.ends_with("norm.weight") {
            1.0
        } else {
            0.0
        };
        let shape: Vec<_> = shape.iter().map(|&size| size as usize).collect();
        let count: usize = shape.iter().product();
        let bytes = (0..count).flat_map(|_| {
            let weight: f32 = rng.sample(StandardNormal);
            bf16::from_f32(mean + DEVIATION * weight).to_le_bytes()
        });
        let bytes = bytes.collect();
        (name, (Dtype::BF16, shape, bytes))
    };
    wanted(config).into_iter().map(&mut random).collect()
}

/// A folder of a configuration and tensors.
pub fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).unwrap();
        (name, view)
    });
    let path = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    folder
}

/// A random model of a configuration.
pub fn executor(config: &Value) -> CpuExecutor {
    let folder = folder(config, &tensors(config));
    CpuExecutor::open(folder.path()).unwrap()
}

/// Random tokens, others for each seed.
pub fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..count)
        .map(|_| rng.random_range(0..VOCABULARY))
        .collect()
}
