"""The plug-in for vLLM, as far as it goes without a GPU: its layers, loaded by vLLM's own loaders, on the CPU."""

import contextlib
import json
import pathlib

import pytest
import torch
from torch import nn
from weights import bits, like_trained

pytest.importorskip("vllm", reason="vLLM is not installed")

from safetensors.torch import save_file
from vllm.config import DeviceConfig, LoadConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor import parameter
from vllm.model_executor.layers import linear as layers
from vllm.model_executor.layers import vocab_parallel_embedding as embeddings
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.utils.quant_utils import get_and_maybe_dequant_weights
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_processing
from vllm.model_executor.model_loader.utils import process_weights_after_loading

import zipserv
import zipserv.vllm
from zipserv.torch import ops
from zipserv.vllm import config, loading

HIDDEN, INNER, VOCABULARY = 1024, 1536, 1280


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """vLLM's layers want to know their place among the processes of a model, even of one."""
    zipserv.vllm.register()
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
        at = tmp_path_factory.mktemp("group") / "store"
        parallel_state.init_distributed_environment(1, 0, f"file://{at}", 0, "gloo")
        parallel_state.initialize_model_parallel()
        yield
        parallel_state.cleanup_dist_env_and_memory()


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(loading.current_platform, "device_type", "cpu", raising=False)
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")


class Model(nn.Module):
    """A block with merged layers, a bias, embeddings and a head, which loads itself as vLLM's models do."""

    MERGED = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")}
    MERGED |= {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}

    def __init__(self, is_tied=False, **options):
        super().__init__()
        quant = config.ZipservConfig(**options)
        quant._may_tie = is_tied
        args = {"quant_config": quant, "params_dtype": torch.bfloat16}
        self.embed = VocabParallelEmbedding(VOCABULARY, HIDDEN, prefix="embed", **args)
        self.qkv_proj = layers.QKVParallelLinear(HIDDEN, 128, 8, 2, bias=True, prefix="qkv_proj", **args)
        self.gate_up_proj = layers.MergedColumnParallelLinear(
            HIDDEN, [INNER] * 2, bias=False, prefix="gate_up_proj", **args
        )
        self.act_fn = SiluAndMul()
        self.down_proj = layers.RowParallelLinear(INNER, HIDDEN, bias=False, prefix="down_proj", **args)
        self.small = layers.ReplicatedLinear(HIDDEN, 64, bias=False, prefix="small", **args)
        self.head = ParallelLMHead(VOCABULARY, HIDDEN, prefix="head", **args)
        if is_tied:
            self.head = self.head.tie_weights(self.embed)

    def load_weights(self, weights):
        parameters = dict(self.named_parameters())
        for name, weight in weights:
            layer, kind = name.rsplit(".", 1)
            if layer in self.MERGED:
                layer, shard = self.MERGED[layer]
                parameter = parameters[f"{layer}.{kind}"]
                parameter.weight_loader(parameter, weight, shard)
            else:
                parameter = parameters[name]
                parameter.weight_loader(parameter, weight)


def dense_weights(is_tied=False):
    weights = {
        "embed.weight": like_trained(VOCABULARY, HIDDEN),
        "gate_proj.weight": like_trained(INNER, HIDDEN),
        "up_proj.weight": like_trained(INNER, HIDDEN),
        "down_proj.weight": like_trained(HIDDEN, INNER),
        "small.weight": like_trained(64, HIDDEN),
        "head.weight": like_trained(VOCABULARY, HIDDEN),
    }
    for name, rows in (("q_proj", 1024), ("k_proj", 256), ("v_proj", 256)):
        # Biases come first, as they do in files.
        weights |= {f"{name}.bias": torch.randn(rows).bfloat16(), f"{name}.weight": like_trained(rows, HIDDEN)}
    if is_tied:
        del weights["head.weight"]
    return weights


def merged(weights, *names, kind="weight"):
    return torch.cat([weights[f"{name}.{kind}"] for name in names])


class Loader(DefaultModelLoader):
    """vLLM's loader, of a folder or of weights in memory."""

    def __init__(self, weights):
        super().__init__(LoadConfig())
        self._weights = weights

    def get_all_weights(self, model_config, model):
        if isinstance(self._weights, pathlib.Path):
            return self._get_weights_iterator(DefaultModelLoader.Source(str(self._weights), revision=None))
        return self._weights


class ModelConfig:
    model, quantization, dtype = "a model", "zipserv", torch.bfloat16

    def __getattr__(self, name):
        # What vLLM's loader asks for mixtures of experts, which this is none of.
        return None


def load(model, weights):
    Loader(weights.items() if isinstance(weights, dict) else weights).load_weights(model, ModelConfig())
    finalize_layerwise_processing(model, ModelConfig())
    process_weights_after_loading(model, ModelConfig(), torch.device("cpu"))
    return model


def decoded(layer):
    return ops.decompress(layer.zipserv_weight, *layer.zipserv_shape)


@pytest.mark.parametrize("is_tied", [False, True])
def test_layers_are_packed_bit_for_bit(is_tied):
    weights = dense_weights(is_tied)
    model = load(Model(is_tied), weights)
    qkv = merged(weights, "q_proj", "k_proj", "v_proj")
    assert torch.equal(bits(decoded(model.qkv_proj)), bits(qkv))
    assert torch.equal(bits(decoded(model.gate_up_proj)), bits(merged(weights, "gate_proj", "up_proj")))
    assert torch.equal(bits(decoded(model.down_proj)), bits(weights["down_proj.weight"]))
    assert torch.equal(bits(decoded(model.embed)), bits(weights["embed.weight"]))
    head = weights["embed.weight" if is_tied else "head.weight"]
    assert torch.equal(bits(decoded(model.head)), bits(head))
    assert (model.head.weight is model.embed.weight) == is_tied
    assert model.small.weight.dtype == torch.bfloat16

    x = torch.randn(3, HIDDEN).bfloat16()
    bias = merged(weights, "q_proj", "k_proj", "v_proj", kind="bias")
    assert torch.equal(model.qkv_proj(x)[0], nn.functional.linear(x, qkv, bias))
    assert torch.equal(model.head.quant_method.apply(model.head, x), nn.functional.linear(x, head))
    ids = torch.tensor([[0, 7], [VOCABULARY - 1, 3]])
    assert torch.equal(model.embed(ids), weights["embed.weight"][ids])


def silu_and_mul(y):
    gate, up = y.float().chunk(2, -1)
    return nn.functional.silu(gate) * up


def test_the_first_product_of_a_gated_mlp_does_the_activation_too():
    weights = dense_weights()
    model = load(Model(), weights)
    x = torch.randn(5, HIDDEN).bfloat16()
    dense = nn.functional.linear(x, merged(weights, "gate_proj", "up_proj"))
    products = model.gate_up_proj(x)[0]
    assert products.shape == (5, INNER)
    assert model.act_fn(products) is products
    torch.testing.assert_close(products.float(), silu_and_mul(dense), rtol=2**-7, atol=1e-6)
    # What is not packed leaves it to the activation.
    assert model.act_fn(dense).shape == (5, INNER)


def test_activations_stay_where_adapters_or_others_come_between(monkeypatch):
    class Adapters:
        lora_config = object()

    monkeypatch.setattr(loading, "get_current_vllm_config", Adapters)
    x = torch.randn(5, HIDDEN).bfloat16()
    assert load(Model(), dense_weights()).gate_up_proj(x)[0].shape == (5, 2 * INNER)
    monkeypatch.undo()
    monkeypatch.setattr(loading.current_platform, "device_type", "cpu", raising=False)
    model = Model()
    model.act_fn = GeluAndMul()
    assert load(model, dense_weights()).gate_up_proj(x)[0].shape == (5, 2 * INNER)


def test_compiled_code_does_not_see_lengths():
    model = load(Model(), dense_weights())
    assert model.qkv_proj.weight.numel() != model.gate_up_proj.weight.numel()
    assert model.qkv_proj.zipserv_weight.shape == model.gate_up_proj.zipserv_weight.shape
    assert model.qkv_proj.zipserv_weight.data_ptr() == model.qkv_proj.weight.data_ptr()


def test_a_layer_is_packed_as_soon_as_its_weights_have_come():
    model, weights = Model(), dense_weights()
    dense = []

    def watched():
        for name, weight in weights.items():
            yield name, weight
            dense.append({n for n, p in model.named_parameters() if p.dtype == torch.bfloat16 and not p.is_meta})

    Loader(watched()).load_weights(model, ModelConfig())
    stays = {"embed.weight", "qkv_proj.bias"}
    assert all(names <= stays | {"small.weight"} for names in dense)
    assert model.head.weight.dtype == torch.uint8, "an untied head, too"
    assert "embed.weight" in dense[-1], "models may tie to it in ways of their own"


def test_a_loader_that_a_model_sets_is_used():
    """As Mamba 2 does: the parameter's loader is replaced after the layer was made."""
    model, weights = Model(), dense_weights()

    def reversed_rows(param, loaded_weight):
        param.data.copy_(loaded_weight.flip(0))

    model.down_proj.weight.weight_loader = reversed_rows
    load(model, weights)
    assert torch.equal(bits(decoded(model.down_proj)), bits(weights["down_proj.weight"].flip(0)))


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_packs_its_shard(rank, monkeypatch):
    """With tensor parallelism: rows of layers that split their outputs, columns of those that split their inputs."""
    for module in (layers, embeddings, parameter):
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 2)
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
    monkeypatch.setattr("zipserv.vllm.layers._LEAST_WEIGHTS", 1)
    weights = dense_weights()
    model = load(Model(), weights)

    def shard(name, dim=0):
        return weights[f"{name}.weight"].chunk(2, dim)[rank]

    def rows(*names):
        return torch.cat([shard(name) for name in names])

    assert torch.equal(bits(decoded(model.qkv_proj)), bits(rows("q_proj", "k_proj", "v_proj")))
    assert torch.equal(bits(decoded(model.gate_up_proj)), bits(rows("gate_proj", "up_proj")))
    assert torch.equal(bits(decoded(model.down_proj)), bits(shard("down_proj", 1)))
    assert torch.equal(bits(decoded(model.embed)), bits(shard("embed")))


def test_layers_whose_weights_do_not_come_are_an_error():
    weights = dense_weights()
    del weights["down_proj.weight"]
    with pytest.raises(ValueError, match="no weights of down_proj in a model"):
        load(Model(), weights)


def test_vllm_does_not_take_packed_bytes_for_weights():
    """Latent attention folds a layer's weights into others."""
    weights = dense_weights()
    model = load(Model(), weights)
    found = get_and_maybe_dequant_weights(model.down_proj, out_dtype=torch.bfloat16)
    assert torch.equal(found, weights["down_proj.weight"])


def test_layers_stay_dense_when_asked():
    weights = dense_weights()
    model = load(Model(modules_to_not_convert=["*down*"]), weights)
    assert torch.equal(model.down_proj.weight, weights["down_proj.weight"])


def routed_experts(experts=4, inner=96, **options):
    moe = FusedMoEConfig(
        num_experts=experts,
        experts_per_token=2,
        hidden_dim=HIDDEN,
        intermediate_size=inner,
        num_local_experts=experts,
        num_logical_experts=experts,
        activation=MoEActivation.SILU,
        device="cpu",
        routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
        **options,
    )
    place = ExpertMapManager(
        max_num_batched_tokens=64,
        top_k=2,
        global_num_experts=experts,
        num_redundant_experts=0,
        num_expert_group=None,
        moe_parallel_config=moe.moe_parallel_config,
        placement_strategy="linear",
        enable_eplb=False,
    )
    return RoutedExperts("experts", torch.bfloat16, moe, config.ZipservConfig(), place)


def test_routed_experts():
    experts, inner = 4, 96
    layer = routed_experts(experts, inner)
    model = nn.ModuleList([layer])
    names = {"w1": (inner, HIDDEN), "w3": (inner, HIDDEN), "w2": (HIDDEN, inner)}
    dense = {(e, name): like_trained(*shape) for e in range(experts) for name, shape in names.items()}
    for (expert, name), weight in dense.items():
        assert layer.w13_weight.is_meta
        parameter = layer.w2_weight if name == "w2" else layer.w13_weight
        parameter.weight_loader(parameter, weight, f"experts.{expert}.{name}.weight", name, expert)
    assert layer.w13_weight.dtype == layer.w2_weight.dtype == torch.uint8
    finalize_layerwise_processing(model, ModelConfig())
    process_weights_after_loading(model, ModelConfig(), torch.device("cpu"))
    gate_up = torch.stack([torch.cat([dense[e, "w1"], dense[e, "w3"]]) for e in range(experts)])
    stored = ops.decompress(layer.w13_weight, experts * 2 * inner, HIDDEN)
    assert torch.equal(bits(stored), bits(gate_up.flatten(0, 1)))

    x, ids = torch.randn(5, HIDDEN).bfloat16(), torch.randint(experts, (5, 2), dtype=torch.int32)
    scales = torch.rand(5, 2)
    y = layer.quant_method.apply(layer, x, scales, ids, None, None)
    for token in range(5):
        expected = 0
        for expert, scale in zip(ids[token].tolist(), scales[token], strict=True):
            gate, up, down = (dense[expert, name].double() for name in ("w1", "w3", "w2"))
            row = x[token].double()
            # Rounded between the products, as the operator does.
            gate, up = ((w @ row).bfloat16().double() for w in (gate, up))
            inside = (nn.functional.silu(gate) * up).bfloat16().double()
            expected += scale * (down @ inside)
        assert torch.allclose(y[token].double(), expected, rtol=2.0**-7, atol=1e-3)


@pytest.mark.parametrize(
    "options, why",
    [({"has_bias": True}, "biases"), ({"inner": 100}, "multiples of 32"), ({"is_lora_enabled": True}, "adapters")],
)
def test_experts_that_cannot_be_compressed(options, why, monkeypatch):
    said = []
    monkeypatch.setattr(config, "stays_dense", lambda what, why: said.append(why))
    # There is no kernel for dense experts on a machine without a GPU.
    with contextlib.suppress(Exception):
        routed_experts(**options)
    assert len(said) == 1 and why in said[0]


@pytest.fixture(params=[False, True], ids=["matrices", "archive"])
def folder(request, tmp_path):
    weights = dense_weights()
    dense = tmp_path / "dense"
    dense.mkdir()
    (dense / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    zipserv.compress(dense, tmp_path / "small", archive=request.param, progress=False)
    return tmp_path / "small", weights


def test_compressed_folders(folder):
    small, weights = folder
    model = load(Model(), small)
    assert torch.equal(bits(decoded(model.gate_up_proj)), bits(merged(weights, "gate_proj", "up_proj")))
    assert torch.equal(bits(decoded(model.embed)), bits(weights["embed.weight"]))
    assert torch.equal(model.small.weight, weights["small.weight"])


def test_damaged_folders_name_file_and_tensor(folder):
    small, _ = folder
    (file,) = small.glob("*.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(zipserv.Error, match=f"{file.name}.*tensor `"):
        load(Model(), small)


def test_configuration():
    made = get_quantization_config("zipserv").from_config({"quant_method": "zipserv"})
    assert made.get_supported_act_dtypes() == [torch.bfloat16]
    assert made.get_config_filenames() == []
    with pytest.raises(ValueError, match="NVIDIA GPUs"):
        made.maybe_update_config("a model")


@pytest.mark.parametrize("ties", [False, True])
def test_models_that_tie_keep_their_head_until_the_end(ties, monkeypatch):
    class HfConfig:
        tie_word_embeddings = ties

        def get_text_config(self):
            return self

    monkeypatch.setattr(type(config.current_platform), "is_cuda", lambda self: True)
    made = config.ZipservConfig()
    made.maybe_update_config("a model", HfConfig())
    head = ParallelLMHead(VOCABULARY, HIDDEN, quant_config=made, params_dtype=torch.bfloat16)
    assert head.weight.is_meta != ties
