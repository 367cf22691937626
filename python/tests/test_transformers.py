"""Models of transformers: loaded compressed, packed as they load, saved. On the CPU they equal dense ones."""

import copy
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import zipserv

transformers = pytest.importorskip("transformers", minversion="5.17")

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, StaticCache  # noqa: E402
from transformers.distributed import DistributedConfig  # noqa: E402

from zipserv.torch import Embedding, Experts, Linear  # noqa: E402
from zipserv.transformers import ZipservConfig  # noqa: E402

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}
MOE = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
# A family's class of configuration, and the layers whose weights are compressed: seven in a block, and two more.
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False, "attention_bias": True}, 16),
    "mistral": (transformers.MistralConfig, {"tie_word_embeddings": False}, 16),
    "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": False}, 16),
    "qwen3-tied": (transformers.Qwen3Config, {"tie_word_embeddings": True}, 16),
    # Its embedding is another class, which scales, and is tied to the head.
    "gemma2": (transformers.Gemma2Config, {}, 14),
    # Routers and routed experts are other classes.
    "qwen3-moe": (transformers.Qwen3MoeConfig, {"tie_word_embeddings": False, **MOE}, 10),
}
IDS = torch.arange(1, 9)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a family's dense model, and that of its compressed one."""
    made = {}

    def make(family, sharded=False):
        if (family, sharded) not in made:
            torch.manual_seed(1)
            root = tmp_path_factory.mktemp(family)
            config, options, _ = FAMILIES[family]
            model = AutoModelForCausalLM.from_config(config(**SIZES, **options), dtype=torch.bfloat16)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    nn.init.normal_(parameter)
            model.save_pretrained(root / "dense", max_shard_size="200KB" if sharded else "1GB")
            zipserv.compress(root / "dense", root / "small", progress=False)
            made[family, sharded] = root / "dense", root / "small"
        return made[family, sharded]

    return make


def compressed_layers(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, (Linear, Embedding))]


def load(path, **options):
    return AutoModelForCausalLM.from_pretrained(path, **options)


def check_equal(model, dense):
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, dense(IDS).logits)
        options = {"max_new_tokens": 12, "do_sample": False}
        assert torch.equal(model.generate(IDS, **options), dense.generate(IDS, **options))


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressed_folder_loads(family, sharded, folder):
    dense, small = folder(family, sharded)
    model, info = load(small, output_loading_info=True)
    assert len(compressed_layers(model)) == FAMILIES[family][2]
    assert not any(info.values())
    check_equal(model, load(dense))


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_archive_loads(family, sharded, folder, tmp_path):
    dense, _ = folder(family, sharded)
    zipserv.compress(dense, tmp_path / "archive", archive=True, progress=False)
    model, info = load(tmp_path / "archive", output_loading_info=True)
    assert len(compressed_layers(model)) == FAMILIES[family][2]
    assert not any(info.values())
    check_equal(model, load(dense))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_packed_as_it_loads(family, folder):
    dense, _ = folder(family)
    model, info = load(dense, quantization_config=ZipservConfig(), output_loading_info=True)
    assert len(compressed_layers(model)) == FAMILIES[family][2]
    assert not any(info.values())
    assert model.get_memory_footprint() < load(dense).get_memory_footprint()
    check_equal(model, load(dense))


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_load_again(family, sharded, folder, tmp_path):
    dense, small = folder(family)
    (tmp_path / "tokenizer.json").write_text("{}")
    load(small).save_pretrained(tmp_path, max_shard_size="200KB" if sharded else "1GB")
    names = {path.name for path in tmp_path.iterdir()}
    assert ("model.zipserv.safetensors" in names) is not sharded
    assert ("model.zipserv.safetensors.index.json" in names) is sharded
    assert "tokenizer.json" in names and not any(name.startswith(".") for name in names)
    model = load(tmp_path)
    assert len(compressed_layers(model)) == FAMILIES[family][2]
    check_equal(model, load(dense))


def test_what_is_saved_is_a_compressed_folder(folder, tmp_path):
    dense, _ = folder("llama")
    config = ZipservConfig(batch_invariant=True)
    load(dense, quantization_config=config).save_pretrained(tmp_path / "small")
    zipserv.decompress(tmp_path / "small", tmp_path / "restored", progress=False)
    assert "quantization_config" not in json.loads((tmp_path / "restored" / "config.json").read_text())
    assert (tmp_path / "restored" / "model.safetensors").read_bytes() == (dense / "model.safetensors").read_bytes()


def test_saving_into_a_folder_replaces_its_weights(folder, tmp_path):
    dense, _ = folder("llama", sharded=True)
    copied = tmp_path / "copy"
    shutil.copytree(dense, copied)
    load(copied, quantization_config=ZipservConfig()).save_pretrained(copied)
    weights = {path.name for path in copied.glob("model*")}
    assert weights == {"model.zipserv.safetensors"}
    check_equal(load(copied), load(dense))


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("saved", [False, True], ids=["compressed", "saved"])
def test_without_the_plugin_it_is_an_error(sharded, saved, folder, tmp_path):
    _, small = folder("llama", sharded)
    if saved:
        load(small).save_pretrained(tmp_path, max_shard_size="200KB" if sharded else "1GB")
        small = tmp_path
    code = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, str(small)], capture_output=True, text=True)
    assert run.returncode != 0 and "OSError" in run.stderr and "model.safetensors" in run.stderr


@pytest.mark.parametrize("cls", [transformers.LlamaForCausalLM, AutoModel])
def test_other_classes_load_it(cls, folder):
    dense, small = folder("llama")
    expected, found = (cls.from_pretrained(path)(IDS)[0] for path in (dense, small))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("packing", [False, True])
def test_tied_weights_are_one(packing, folder):
    dense, small = folder("qwen3-tied")
    model = load(dense, quantization_config=ZipservConfig()) if packing else load(small)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, Embedding) and isinstance(head, Linear)
    assert head.weight is embedding.weight and head.weight.dtype == torch.uint8


@pytest.mark.parametrize("packing", [False, True])
def test_options(packing, folder):
    dense, small = folder("llama")
    config = ZipservConfig(modules_to_not_convert=["lm_head", "layers.0.mlp.up_proj"], batch_invariant=True)
    model = load(dense if packing else small, quantization_config=config)
    layer = model.model.layers[0].mlp
    assert type(model.lm_head) is nn.Linear and type(layer.up_proj) is nn.Linear
    assert layer.down_proj.batch_invariant
    assert len(compressed_layers(model)) == 14
    check_equal(model, load(dense))


def test_a_folder_becomes_a_dense_model(folder, tmp_path):
    dense, small = folder("qwen3-moe")
    model = load(small, quantization_config=ZipservConfig(dequantize=True))
    assert not compressed_layers(model) and not hasattr(model.config, "quantization_config")
    check_equal(model, load(dense))
    model.save_pretrained(tmp_path)
    check_equal(load(tmp_path), load(dense))


def test_what_stays_dense_is_said(folder, caplog):
    _, small = folder("qwen3-moe")
    with caplog.at_level("WARNING", "zipserv"):
        load(small)
    (record,) = [record for record in caplog.records if record.name == "zipserv"]
    assert "stay dense" in record.message and "experts" in record.message


@pytest.mark.parametrize("packing", [False, True])
def test_experts(packing, folder, tmp_path):
    dense, small = folder("qwen3-moe")
    config = ZipservConfig(experts=True, modules_to_not_convert=["layers.1.mlp.experts"])
    model = load(dense if packing else small, quantization_config=config)
    expected = load(dense)
    first, second = (layer.mlp.experts for layer in model.model.layers)
    assert isinstance(first, Experts) and not isinstance(second, Experts)
    stacks = expected.model.layers[0].mlp.experts
    assert torch.equal(first.dense()[0], stacks.gate_up_proj) and torch.equal(first.dense()[1], stacks.down_proj)
    with torch.no_grad():
        logits, dense_logits = model(IDS).logits, expected(IDS).logits
    # Sums are rounded once, and not at each step.
    assert torch.allclose(logits, dense_logits, atol=0.03 * dense_logits.abs().max().item())
    model.save_pretrained(tmp_path)
    check_equal(load(tmp_path), expected)


def test_other_dtypes_are_refused(folder):
    dense, small = folder("llama")
    for path, options in ((small, {}), (dense, {"quantization_config": ZipservConfig()})):
        with pytest.raises(ValueError, match="torch.bfloat16, not torch.float16"):
            load(path, dtype=torch.float16, **options)
    single = load(small, dtype=torch.float32, quantization_config=ZipservConfig(dequantize=True))
    check_equal(single, load(dense, dtype=torch.float32))


def test_sharding_is_refused(folder):
    for path, options in zip(folder("llama"), ({"quantization_config": ZipservConfig()}, {}), strict=True):
        config = AutoConfig.from_pretrained(path)
        config.distributed_config = DistributedConfig(tp_size=2)
        with pytest.raises(ValueError, match="cannot be sharded"):
            load(path, config=config, **options)


def test_weights_on_disk(folder, tmp_path):
    pytest.importorskip("accelerate")
    dense, small = folder("qwen3")
    parts = "model.embed_tokens", "model.rotary_emb", "model.norm", "model.layers.0", "lm_head"
    devices = {"model.layers.1": "disk", **dict.fromkeys(parts, "cpu")}
    options = {"device_map": devices, "offload_folder": tmp_path}
    check_equal(load(small, **options), load(dense))
    with pytest.raises(ValueError, match="compressed already"):
        load(dense, quantization_config=ZipservConfig(), **options)


@pytest.fixture
def report(caplog):
    """What transformers reports while it loads."""
    transformers.logging.enable_propagation()
    yield lambda: caplog.text
    transformers.logging.disable_propagation()


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_damage_is_an_error(family, folder, tmp_path, report):
    _, small = folder(family)
    shutil.copytree(small, tmp_path / "bad")
    file = tmp_path / "bad" / "model.zipserv.safetensors"
    data = file.read_bytes()
    # A byte of the payload of every matrix. Planes are shorter.
    parts = data.split(b"ZIPSERV\0")
    assert len(parts) > 10
    damaged = (part[:200] + bytes(byte ^ 1 for byte in part[200:201]) + part[201:] for part in parts[1:])
    file.write_bytes(b"ZIPSERV\0".join([parts[0], *damaged]))
    with pytest.raises(RuntimeError, match="report"):
        load(tmp_path / "bad")
    for name in ["lm_head.weight", *(["experts.0.gate_proj.weight"] if family == "qwen3-moe" else [])]:
        assert f"{name}`: checksum" in report()
    assert f"{file}: " in report()


def test_a_model_of_another_shape_is_refused(folder, tmp_path, report):
    _, small = folder("llama")
    shutil.copytree(small, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "vocab_size": 1024}))
    with pytest.raises(RuntimeError, match="report"):
        load(tmp_path / "other")
    assert "tensor `lm_head.weight`: a weight of shape [512, 128], but the model wants [1024, 128]" in report()


def test_copies_work(folder, tmp_path):
    dense, small = folder("qwen3-tied")
    model = load(small)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        check_equal(other, load(dense))
        other.save_pretrained(tmp_path)
        check_equal(load(tmp_path), load(dense))
        shutil.rmtree(tmp_path)


def static_step(model, **options):
    """One compiled forward of a prompt and of a token after it, with a cache of fixed size."""
    torch._dynamo.reset()
    cache = StaticCache(config=model.config, max_cache_len=32)
    step = torch.compile(model, fullgraph=True, **options)
    with torch.inference_mode():
        prompt = step(IDS, past_key_values=cache).logits
        token = step(IDS[:, :1], past_key_values=cache).logits
    return prompt, token


@pytest.mark.parametrize("family", ["llama", "qwen3-tied"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_whole(family, backend, folder):
    dense, small = folder(family)
    both = (static_step(load(path), backend=backend) for path in (dense, small))
    for expected, found in zip(*both, strict=True):
        if backend == "aot_eager":
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_generate_compiles(folder):
    dense, small = folder("llama")
    compiling = transformers.CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compiling._compile_all_devices = True
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static", "compile_config": compiling}
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = load(small).generate(IDS, **options)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert torch.equal(found, load(dense).generate(IDS, **options))


def test_adapters_train(folder):
    """The gradients of low-rank adapters before, between and after compressed layers."""
    gradients = []
    for path in folder("llama"):
        model = load(path)
        assert path.name == "dense" or model.hf_quantizer.is_trainable
        model.requires_grad_(False)
        torch.manual_seed(2)
        adapters = nn.ModuleList()
        for block in model.model.layers:
            low = nn.Sequential(nn.Linear(128, 4, bias=False), nn.Linear(4, 128, bias=False)).bfloat16()
            block.self_attn.q_proj.register_forward_hook(lambda _, inputs, out, low=low: out + low(inputs[0]))
            adapters.append(low)
        model.train()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in adapters.parameters()])
    for expected, found in zip(*gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu(family, packing, folder):
    dense, small = folder(family)
    expected = load(dense, device_map="cuda")
    config = {"quantization_config": ZipservConfig()} if packing else {}
    model = load(dense if packing else small, device_map="cuda", **config)
    assert len(compressed_layers(model)) == FAMILIES[family][2]
    ids = IDS.cuda()
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=0.05, atol=0.05)
        plain = model.generate(ids, max_new_tokens=8, do_sample=False)
        # Compiled, with CUDA graphs.
        static = model.generate(ids, max_new_tokens=8, do_sample=False, cache_implementation="static")
        assert plain.shape == static.shape
    for name in compressed_layers(model):
        layer, other = model.get_submodule(name), expected.get_submodule(name)
        assert torch.equal(layer.dense(), other.weight)


@pytest.mark.gpu
def test_packing_takes_little_memory(tmp_path):
    sizes = {**SIZES, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    dense = load(tmp_path).get_memory_footprint()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load(tmp_path, device_map="cuda", quantization_config=ZipservConfig())
    peak = torch.cuda.max_memory_allocated() - before
    packed = model.get_memory_footprint()
    assert packed < 0.75 * dense
    # And the layers under way: dense, compressed, and what the encoder wants.
    assert peak < packed + 4 * 2 * 1024 * 4096


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one NVIDIA GPU")
@pytest.mark.parametrize("packing", [False, True])
def test_on_two_gpus(packing, folder):
    dense, small = folder("qwen3")
    config = {"quantization_config": ZipservConfig()} if packing else {}
    first = "model.embed_tokens", "model.rotary_emb", "model.layers.0"
    devices = {**dict.fromkeys(first, 0), **dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), 1)}
    model = load(dense if packing else small, device_map=devices, **config)
    assert {weight.device.index for weight in model.parameters()} == {0, 1}
    with torch.inference_mode():
        expected = load(dense, device_map="cuda")(IDS.cuda()).logits
        torch.testing.assert_close(model(IDS.cuda()).logits.to(0), expected, rtol=0.05, atol=0.05)
