//! What folders have, and what they lack.

use safetensors::Dtype;
use serde_json::json;
use zipserv::checkpoint::{self, Options};
use zipserv_engine::{Chunk, CpuExecutor, Executor, Logits};

use crate::support::*;

#[test]
fn compressed_weights_give_the_same_bits() {
    // Wide enough for matrices to be compressed.
    let changes = json!({"hidden_size": 128, "intermediate_size": 320, "head_dim": 32});
    for architecture in ["LlamaForCausalLM", "Qwen3MoeForCausalLM"] {
        let config = config(architecture, changes.clone());
        let dense = folder(&config, &tensors(&config));
        let logits = |path: &std::path::Path| {
            let mut executor = CpuExecutor::open(path).unwrap();
            let (sequence, tokens) = (executor.start().unwrap(), &tokens(30, 1));
            executor
                .forward(&[Chunk { sequence, tokens }], Logits::All)
                .unwrap()
        };
        let expected = logits(dense.path());
        assert!(expected.iter().all(|logit| logit.is_finite()));
        for archive in [false, true] {
            let small = tempfile::tempdir().unwrap();
            let path = small.path().join("small");
            let options = Options::default().archive(archive);
            let report = checkpoint::compress(dense.path(), &path, &options).unwrap();
            assert!(report.ratio() < 0.9);
            assert!(logits(&path) == expected);
        }
    }
}

#[test]
fn wrong_weights_are_named() {
    let config = config("Qwen2ForCausalLM", json!({}));
    let good = tensors(&config);
    let name = "model.layers.1.self_attn.k_proj.bias";
    let error = |tensors: &Tensors| {
        let folder = folder(&config, tensors);
        let error = CpuExecutor::open(folder.path()).err().unwrap().to_string();
        error.replace(folder.path().to_str().unwrap(), "MODEL")
    };

    let mut tensors = good.clone();
    tensors.remove(name);
    assert!(
        error(&tensors).contains(&format!("no tensor `{name}`")),
        "{}",
        error(&tensors)
    );

    let mut tensors = good.clone();
    tensors.insert(name.into(), (Dtype::F16, vec![20], vec![0; 40]));
    let start = format!("MODEL/model.safetensors: tensor {name}: ");
    assert_eq!(error(&tensors), format!("{start}F16, but only BF16 runs"));

    let mut tensors = good.clone();
    tensors.insert(name.into(), (Dtype::BF16, vec![20, 1], vec![0; 40]));
    assert_eq!(
        error(&tensors),
        format!("{start}has shape [20, 1], but by config.json [20]")
    );
}

/// Only what is there is read: a configuration alone makes nothing large.
#[test]
fn large_sizes_are_refused_before_memory_is_taken() {
    let config = config("LlamaForCausalLM", json!({}));
    let tensors = tensors(&config);
    for (key, size, tensor) in [
        ("hidden_size", 1 << 20, "model.embed_tokens.weight"),
        ("vocab_size", 1 << 20, "model.embed_tokens.weight"),
        (
            "num_hidden_layers",
            1000,
            "model.layers.2.input_layernorm.weight",
        ),
        (
            "head_dim",
            100_000,
            "model.layers.0.self_attn.q_proj.weight",
        ),
        (
            "intermediate_size",
            1 << 20,
            "model.layers.0.mlp.gate_proj.weight",
        ),
    ] {
        let mut config = config.clone();
        config[key] = size.into();
        let folder = folder(&config, &tensors);
        let error = CpuExecutor::open(folder.path()).err().unwrap();
        assert!(error.to_string().contains(tensor), "{error}");
    }
}
