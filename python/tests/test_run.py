"""The program's own arithmetic against that of transformers, on random small models of each architecture and option."""

import json
import subprocess
import sys

import pytest
import torch

import zipserv

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = 320
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 168,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 20}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

MODELS = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 34, "num_key_value_heads": 6, "rms_norm_eps": 1e-3}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama, llama3": (
        "Llama",
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5, "original_max_position_embeddings": 64}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 17, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2, windows above": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3, biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3, windows": (
        "Qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mixture": ("Qwen3Moe", EXPERTS),
    "mixture, normalized": ("Qwen3Moe", EXPERTS | {"norm_topk_prob": True, "attention_bias": True}),
    "mixture, some dense": (
        "Qwen3Moe",
        EXPERTS | {"decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 30},
    ),
    "mixture, first dense": ("Qwen3Moe", EXPERTS | {"mlp_only_layers": [0]}),
}


def save_tokenizer(folder):
    """Each number below the vocabulary's size is a token."""
    words = {str(number): number for number in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def save_model(folder, name, options):
    config = getattr(transformers, f"{name}Config")(**SIZES | options)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for key, weight in model.named_parameters():
        # Larger than new models have, so that each option shows in the logits.
        gain = key.endswith("norm.weight")
        torch.nn.init.normal_(weight, mean=float(gain), std=0.2 if gain or key.endswith("bias") else 0.15)
    model.bfloat16().save_pretrained(folder)
    save_tokenizer(folder)


def expected(folder, tokens, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[1:, None])[:, 0]


def run(folder, text):
    program = [sys.executable, "-c", "from zipserv._program import main; main()"]
    arguments = ["run", str(folder), "--perplexity", str(text), "--json"]
    return subprocess.run(program + arguments, capture_output=True, text=True)


def log_probabilities(folder, text):
    result = run(folder, text)
    assert result.returncode == 0, result.stderr
    return torch.tensor(json.loads(result.stdout)["log_probabilities"], dtype=torch.float64)


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (SIZES["max_position_embeddings"] // 2,)).tolist()


@pytest.fixture
def text(tmp_path, tokens):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(map(str, tokens)))
    return path


@pytest.mark.parametrize(("name", "options"), MODELS.values(), ids=MODELS)
def test_logits_are_those_of_transformers(name, options, tmp_path, tokens, text):
    model = tmp_path / "model"
    save_model(model, name, options)
    found, wanted = log_probabilities(model, text), expected(model, tokens)
    noise = (expected(model, tokens, torch.bfloat16) - wanted).abs().max()
    difference = (found - wanted).abs().max()
    print(f"{name} {options}: off by {difference:.1e}, BF16 by {noise:.1e}")
    assert difference < 1e-4
    assert difference < noise / 100


def test_compressed_weights_give_the_same_bits(tmp_path, text):
    model = tmp_path / "model"
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    save_model(model, "Qwen3Moe", EXPERTS | sizes | {"mlp_only_layers": [1]})
    wanted = log_probabilities(model, text)
    for archive in [False, True]:
        small = tmp_path / f"small {archive}"
        report = zipserv.compress(model, small, archive=archive, progress=False)
        assert report.ratio < 0.9
        assert torch.equal(log_probabilities(small, text), wanted)


def test_shards_are_one_model(tmp_path, text):
    model = tmp_path / "model"
    save_model(model, "Llama", {})
    wanted = log_probabilities(model, text)
    shards = tmp_path / "shards"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    loaded.save_pretrained(shards, max_shard_size="100KB")
    save_tokenizer(shards)
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert torch.equal(log_probabilities(shards, text), wanted)


def refused(folder, text):
    result = run(folder, text)
    assert result.returncode != 0 and not result.stdout
    return result.stderr


def test_other_models_are_refused_by_name(tmp_path, text):
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=VOCABULARY)
    transformers.GPT2LMHeadModel(config).bfloat16().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    error = refused(tmp_path, text)
    assert '"GPT2LMHeadModel" does not run' in error and "Qwen3MoeForCausalLM" in error


def test_other_dtypes_are_refused_by_tensor(tmp_path, text):
    save_model(tmp_path, "Llama", {})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    assert "model.embed_tokens.weight: F16, but only BF16 runs" in refused(tmp_path, text)
