"""Folders of transformers: compressed, verified and restored byte for byte."""

import json

import pytest
import torch

import zipserv

transformers = pytest.importorskip("transformers")


@pytest.fixture(params=["1GB", "200KB"], ids=["single", "sharded"])
def folder(request, tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=512
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model", max_shard_size=request.param)
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "1.0"}')
    return tmp_path / "model"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_byte_comes_back(folder, tmp_path):
    small, restored = tmp_path / "small", tmp_path / "restored"
    zipserv.compress(folder, small, progress=False)
    assert zipserv.verify(small, folder, progress=False)
    zipserv.decompress(small, restored, progress=False)
    assert contents(restored) == contents(folder)
    size = sum(map(len, contents(folder).values()))
    assert sum(map(len, contents(small).values())) < 0.85 * size


def test_loaders_find_no_weights_that_they_would_mistake(folder, tmp_path):
    small = tmp_path / "small"
    zipserv.compress(folder, small, progress=False)
    config = json.loads((small / "config.json").read_text())
    method = config.pop("quantization_config")
    assert config == json.loads((folder / "config.json").read_text())
    assert method["quant_method"] == "zipserv" and (small / method["weights"]).is_file()
    for path in small.glob("*.safetensors*"):
        assert ".zipserv.safetensors" in path.name
    if method["weights"].endswith(".index.json"):
        names = json.loads((small / method["weights"]).read_text())["weight_map"]
        assert all((small / file).is_file() for file in names.values())
        assert "lm_head.weight.zipserv" in names
