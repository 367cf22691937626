//! Configurations as they are published, as they are wrong, and as they are hostile.

use std::{fs, path::Path};

use serde_json::{Value, json};
use zipserv_engine::{
    Config,
    config::Architecture,
    rope::{Rope, Scaling},
};

use crate::support::{config, merge};

fn parse(config: &Value) -> Result<Config, String> {
    let parsed = Config::parse(Path::new("MODEL/config.json"), &config.to_string());
    parsed.map_err(|error| error.to_string())
}

fn llama(changes: Value) -> Config {
    parse(&config("LlamaForCausalLM", changes)).unwrap()
}

#[test]
fn sizes_that_are_absent_follow_from_others() {
    let mut keys = config(
        "LlamaForCausalLM",
        json!({"head_dim": null, "num_key_value_heads": null}),
    );
    let found = parse(&keys).unwrap();
    assert_eq!(
        (found.head_dim, found.kv_heads, found.norm_eps),
        (6, 6, 1e-6)
    );
    assert!(!found.tied && !found.attention_bias && found.experts.is_none());
    assert_eq!(
        (found.architecture, found.eos),
        (Architecture::Llama, vec![2])
    );
    keys["architectures"] = json!(["Qwen3ForCausalLM"]);
    assert_eq!(parse(&keys).unwrap().head_dim, 128);
}

#[test]
fn rope_of_both_versions() {
    let scaling = Scaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    let expected = Rope {
        theta: 500_000.0,
        scaling,
    };
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let older = json!({"rope_theta": 500000, "rope_scaling": llama3});
    assert_eq!(llama(older).rope, expected);
    let mut newer = llama3;
    merge(&mut newer, json!({"rope_theta": 5e5}));
    assert_eq!(llama(json!({"rope_parameters": newer})).rope, expected);

    let linear = json!({"rope_scaling": {"type": "linear", "factor": 2}});
    let rope = |theta, scaling| Rope { theta, scaling };
    assert_eq!(
        llama(linear).rope,
        rope(1e4, Scaling::Linear { factor: 2.0 })
    );
    assert_eq!(llama(json!({})).rope, rope(1e4, Scaling::Default));
    let null = json!({"rope_theta": 1e6, "rope_scaling": null});
    assert_eq!(llama(null).rope, rope(1e6, Scaling::Default));
    let default = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}});
    assert_eq!(llama(default).rope, rope(3e5, Scaling::Default));
}

#[test]
fn windows_of_each_architecture() {
    let windows = |name: &str, changes| {
        let name = format!("{name}ForCausalLM");
        parse(&config(&name, changes)).unwrap().windows
    };
    let used = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1});
    let unused = json!({"use_sliding_window": false, "sliding_window": 5, "max_window_layers": 0});
    assert_eq!(windows("Llama", used.clone()), [None, None]);
    assert_eq!(windows("Mistral", json!({})), [Some(4096), Some(4096)]);
    assert_eq!(
        windows("Mistral", json!({"sliding_window": null})),
        [None, None]
    );
    assert_eq!(
        windows("Mistral", json!({"sliding_window": 9})),
        [Some(9), Some(9)]
    );
    for name in ["Qwen2", "Qwen3"] {
        assert_eq!(windows(name, used.clone()), [None, Some(5)]);
        assert_eq!(windows(name, unused.clone()), [None, None]);
        let mut by_layer = used.clone();
        by_layer["layer_types"] = json!(["sliding_attention", "full_attention"]);
        assert_eq!(windows(name, by_layer), [Some(5), None]);
    }
    assert_eq!(windows("Qwen3Moe", used), [Some(5), Some(5)]);
    assert_eq!(windows("Qwen3Moe", unused), [None, None]);
}

#[test]
fn layers_with_experts() {
    let layers = |changes| {
        let mut all = json!({"num_hidden_layers": 6});
        merge(&mut all, changes);
        let config = parse(&config("Qwen3MoeForCausalLM", all)).unwrap();
        let layers = config.experts.unwrap().layers.into_iter().enumerate();
        layers
            .filter_map(|(layer, sparse)| sparse.then_some(layer))
            .collect::<Vec<_>>()
    };
    assert_eq!(layers(json!({})), [0, 1, 2, 3, 4, 5]);
    assert_eq!(layers(json!({"decoder_sparse_step": 2})), [1, 3, 5]);
    assert_eq!(
        layers(json!({"decoder_sparse_step": 3, "mlp_only_layers": [5]})),
        [2]
    );
    assert_eq!(layers(json!({"mlp_only_layers": [0, 1, 9]})), [2, 3, 4, 5]);
}

#[test]
fn ends_of_texts_are_those_of_generation() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, json: Value| {
        fs::write(folder.path().join(name), json.to_string()).unwrap();
    };
    let eos = || Config::open(folder.path()).unwrap().eos;
    write(
        "config.json",
        config("LlamaForCausalLM", json!({"eos_token_id": [7, 8]})),
    );
    assert_eq!(eos(), [7, 8]);
    write("generation_config.json", json!({"temperature": 0.6}));
    assert_eq!(eos(), [7, 8]);
    write("generation_config.json", json!({"eos_token_id": 3}));
    assert_eq!(eos(), [3]);
    write("generation_config.json", json!({"eos_token_id": [3, 4, 5]}));
    assert_eq!(eos(), [3, 4, 5]);
    write(
        "config.json",
        config("LlamaForCausalLM", json!({"eos_token_id": null})),
    );
    write("generation_config.json", json!({}));
    assert_eq!(eos(), [0; 0]);
    write("generation_config.json", json!({"eos_token_id": -1}));
    let error = Config::open(folder.path()).unwrap_err().to_string();
    let name = folder
        .path()
        .join("generation_config.json")
        .display()
        .to_string();
    let reason = "eos_token_id: a token's number or a list of them";
    assert!(error.starts_with(&format!("{name}: {reason}")), "{error}");
}

#[test]
fn other_architectures_and_weights_are_refused_by_name() {
    let error = parse(&json!({"architectures": ["MambaForCausalLM"]})).unwrap_err();
    assert_eq!(
        error,
        "MODEL/config.json: architectures: \"MambaForCausalLM\" does not run; those that do: LlamaForCausalLM, \
         MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM"
    );
    for none in [
        json!({}),
        json!({"architectures": []}),
        json!({"architectures": null}),
    ] {
        let error = parse(&none).unwrap_err();
        assert_eq!(error, "MODEL/config.json: architectures: absent or empty");
    }
    let quantized = |method: Value| json!({"quantization_config": {"quant_method": method}});
    let error = parse(&config("LlamaForCausalLM", quantized("gptq".into()))).unwrap_err();
    assert!(
        error.starts_with("MODEL/config.json: quantization_config: weights by \"gptq\""),
        "{error}"
    );
    parse(&config("LlamaForCausalLM", quantized("zipserv".into()))).unwrap();
}

#[test]
fn wrong_values_are_named() {
    let base = |architecture: &str| config(&format!("{architecture}ForCausalLM"), json!({}));
    let refused = |architecture: &str, changes: Value, expected: &str| {
        let mut keys = base(architecture);
        merge(&mut keys, changes.clone());
        let error = parse(&keys).expect_err(&changes.to_string());
        let start = format!("MODEL/config.json: {expected}");
        assert!(error.starts_with(&start), "{changes}: {error}, not {start}");
    };
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ] {
        refused("Llama", json!({key: 0}), &format!("{key}: 0"));
        refused(
            "Llama",
            json!({key: -1}),
            &format!("{key}: invalid value: integer `-1`"),
        );
        refused(
            "Llama",
            json!({key: 1e99}),
            &format!("{key}: invalid type: floating point `1e+99`"),
        );
        refused(
            "Llama",
            json!({key: "12"}),
            &format!("{key}: invalid type: string \"12\""),
        );
        if key != "max_position_embeddings" {
            refused(
                "Llama",
                json!({key: u32::MAX}),
                &format!("{key}: 4294967295, more than "),
            );
        }
        if !["num_key_value_heads", "head_dim"].contains(&key) {
            let mut keys = base("Llama");
            keys.as_object_mut().unwrap().remove(key);
            let error = parse(&keys).unwrap_err();
            assert!(error.contains(&format!("missing field `{key}`")), "{error}");
        }
    }
    let heads = "num_attention_heads: 6, not a multiple of num_key_value_heads, 4";
    refused("Llama", json!({"num_key_value_heads": 4}), heads);
    refused(
        "Llama",
        json!({"head_dim": 7}),
        "head_dim: 7, not an even number",
    );
    let absent =
        "head_dim: absent, and hidden_size, 35, is not a multiple of num_attention_heads, 6";
    refused(
        "Llama",
        json!({"head_dim": null, "hidden_size": 35}),
        absent,
    );
    refused(
        "Llama",
        json!({"hidden_act": "gelu"}),
        "hidden_act: \"gelu\" is not built",
    );
    refused("Llama", json!({"rms_norm_eps": -1.0}), "rms_norm_eps: -1");
    refused("Llama", json!({"rms_norm_eps": 1e300}), "rms_norm_eps: ");

    let rope = |changes| json!({"rope_scaling": changes});
    let yarn = "rope_scaling.rope_type: \"yarn\" is not built, only default, linear and llama3";
    refused(
        "Llama",
        rope(json!({"rope_type": "yarn", "factor": 4.0})),
        yarn,
    );
    refused(
        "Llama",
        rope(json!({"type": "linear"})),
        "rope_scaling.factor: absent",
    );
    let negative = rope(json!({"type": "linear", "factor": -2}));
    refused(
        "Llama",
        negative,
        "rope_scaling.factor: -2, not a positive number",
    );
    refused(
        "Llama",
        json!({"rope_theta": 0}),
        "rope_theta: 0, not a positive number",
    );
    let equal =
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4});
    refused(
        "Llama",
        rope(equal),
        "rope_scaling.low_freq_factor: 4, not below high_freq_factor, 4",
    );
    let nested = json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}});
    refused(
        "Llama",
        nested,
        "rope_parameters: one for each kind of layer is not built",
    );
    refused(
        "Llama",
        json!({"partial_rotary_factor": 0.5}),
        "partial_rotary_factor: 0.5 is not built",
    );

    refused("Mistral", json!({"sliding_window": 0}), "sliding_window: 0");
    let types = |types: Value| json!({"layer_types": types});
    refused(
        "Qwen3",
        types(json!(["full_attention"])),
        "layer_types: 1 of them, but num_hidden_layers is 2",
    );
    let unused = "layer_types: some slide, but sliding_window is not used";
    refused(
        "Qwen3",
        types(json!(["full_attention", "sliding_attention"])),
        unused,
    );
    let linear = "layer_types: \"linear_attention\" is not built";
    refused(
        "Qwen3",
        types(json!(["full_attention", "linear_attention"])),
        linear,
    );

    refused(
        "Qwen3Moe",
        json!({"num_experts": null}),
        "num_experts: absent",
    );
    refused(
        "Qwen3Moe",
        json!({"num_experts": 1_000_000}),
        "num_experts: 1000000, more than 1000",
    );
    refused(
        "Qwen3Moe",
        json!({"num_experts_per_tok": 6}),
        "num_experts_per_tok: 6, more than 5",
    );
    refused(
        "Qwen3Moe",
        json!({"decoder_sparse_step": 0}),
        "decoder_sparse_step: 0",
    );
}

#[test]
fn what_is_no_configuration_is_an_error() {
    for json in [
        "",
        "[]",
        "{",
        "null",
        "{\"architectures\": 3}",
        &"[".repeat(100_000),
    ] {
        let error = Config::parse(Path::new("c"), json).unwrap_err().to_string();
        assert!(error.starts_with("c: "), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = Config::open(folder.path()).unwrap_err().to_string();
    let path = folder.path().join("config.json");
    assert!(
        error.starts_with(&format!("{}: ", path.display())),
        "{error}"
    );
    // A hole, which takes no room on the disk.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = Config::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("longer than "), "{error}");
}
