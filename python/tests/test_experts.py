"""Operators on the weights of experts, on the CPU and, where there is one, a GPU. The reference is float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from weights import bits, like_trained

import zipserv
import zipserv.torch as zt
from zipserv.torch.stored import stored_tensors


def stacked(experts, rows, cols, device):
    return like_trained(experts * rows, cols, device).view(experts, rows, cols)


def experts_of(tokens, top_k, experts, device, dtype=torch.int64):
    return torch.randint(experts, (tokens, top_k), dtype=dtype).to(device)


def reference(x, dense, numbers, is_gated=False):
    """In float64, and how large the terms are."""
    w = dense.double()[numbers.clamp(0, len(dense) - 1).long()]
    y = torch.einsum("tk,tekn->ten", x.double(), w.transpose(-1, -2))
    if is_gated:
        # Rounded before they go on, as the operators do.
        gate, up = y.bfloat16().double().chunk(2, -1)
        y = F.silu(gate) * up
    return torch.where(((numbers >= 0) & (numbers < len(dense)))[..., None], y, 0)


def close(y, expected):
    """Twice BF16's last place: what was rounded before may have gone to the other neighbour."""
    return torch.allclose(y.double(), expected, rtol=2.0**-6, atol=1e-3)


@pytest.mark.parametrize(
    "experts, rows, cols", [(4, 64, 72), (16, 96, 200), (1, 32, 8), (3, 128, 512), (3, 45, 30), (1, 7, 3)]
)
@pytest.mark.parametrize("tokens, top_k", [(1, 1), (5, 2), (40, 3), (0, 2), (300, 2)])
@pytest.mark.parametrize("is_gated", [False, True])
def test_grouped_linear(experts, rows, cols, tokens, top_k, is_gated, device):
    if is_gated and rows % 64:
        pytest.skip("halves of whole tiles")
    dense = stacked(experts, rows, cols, device)
    weight = zt.encode_experts(dense)
    x = torch.randn(tokens, cols).bfloat16().to(device)
    numbers = experts_of(tokens, top_k, experts, device)
    y = zt.grouped_linear(x, weight, numbers, experts, rows, is_gated=is_gated)
    assert y.shape == (tokens, top_k, rows // 2 if is_gated else rows) and y.dtype == torch.bfloat16
    assert close(y, reference(x, dense, numbers, is_gated))
    # A prefix stands for the weight, and numbers may have 32 bits.
    again = zt.grouped_linear(x, zt.prefix(weight), numbers.int(), experts, rows, is_gated=is_gated)
    assert torch.equal(again, y)


@pytest.mark.parametrize("tokens", [1, 7, 64, 200, 600])
@pytest.mark.parametrize("top_k", [1, 4])
def test_experts_mlp(tokens, top_k, device):
    experts, hidden, inner = 8, 192, 96
    gate_up, down = stacked(experts, 2 * inner, hidden, device), stacked(experts, hidden, inner, device)
    packed = zt.encode_experts(gate_up), zt.encode_experts(down)
    x = torch.randn(tokens, hidden).bfloat16().to(device)
    numbers = experts_of(tokens, top_k, experts, device)
    scales = torch.rand(tokens, top_k).to(device)
    y = zt.experts_mlp(x, *packed, numbers, scales, experts, inner)
    inside = reference(x, gate_up, numbers, is_gated=True).bfloat16()
    parts = torch.einsum("tek,tehk->teh", inside.double(), down.double()[numbers])
    assert close(y, (parts * scales.double()[..., None]).sum(1))


@pytest.mark.parametrize("experts", [4, 16, 40])
@pytest.mark.parametrize("rows, cols", [(64, 72), (320, 33)])
@pytest.mark.parametrize("is_gated", [False, True])
def test_many_tokens_an_expert(experts, rows, cols, is_gated, device):
    dense = stacked(experts, rows, cols, device)
    weight, x = zt.encode_experts(dense), torch.randn(800, cols).bfloat16().to(device)
    # Some of no expert, and rows of activations apart from one another.
    numbers = experts_of(800, 2, experts + 1, device)
    y = zt.grouped_linear(x, weight, numbers, experts, rows, is_gated=is_gated)
    expected = reference(x, dense, numbers, is_gated)
    assert close(y, expected)
    wide = torch.randn(800, 2 * cols).bfloat16().to(device)
    wide[:, :cols] = x
    assert torch.equal(zt.grouped_linear(wide[:, :cols], weight, numbers, experts, rows, is_gated=is_gated), y)


def test_assignments_to_no_expert_are_left_out(device):
    dense = stacked(4, 64, 64, device)
    weight, x = zt.encode_experts(dense), torch.randn(6, 64).bfloat16().to(device)
    numbers = torch.tensor([[0, -1], [3, 1], [4, 4], [-1, -1], [2, 0], [1 << 20, 3]]).to(device)
    y = zt.grouped_linear(x, weight, numbers, 4, 64)
    assert close(y, reference(x, dense, numbers))
    assert (y[3] == 0).all()


def test_nans_of_an_expert_stay_with_its_tokens(device):
    dense = stacked(4, 64, 64, device)
    dense[1] = torch.nan
    weight, x = zt.encode_experts(dense), torch.randn(40, 64).bfloat16().to(device)
    numbers = (torch.arange(40) % 4)[:, None].to(device)
    y = zt.grouped_linear(x, weight, numbers, 4, 64)
    assert torch.equal(y.isnan().any(-1), numbers == 1) and torch.equal(y.isnan().all(-1), numbers == 1)


def test_opcheck(device):
    experts, hidden, inner = 4, 64, 32
    gate_up = zt.encode_experts(stacked(experts, 2 * inner, hidden, device))
    down = zt.encode_experts(stacked(experts, hidden, inner, device))
    x, numbers = torch.randn(3, hidden).bfloat16().to(device), experts_of(3, 2, experts, device)
    scales = torch.rand(3, 2).to(device)
    ops = torch.ops.zipserv
    torch.library.opcheck(ops.grouped_linear, (x, gate_up, numbers, experts, 2 * inner, True, False))
    torch.library.opcheck(ops.experts_mlp, (x, gate_up, down, numbers, scales, experts, inner, False))


def test_compiled(device):
    experts, hidden, inner = 4, 64, 32
    gate_up = zt.encode_experts(stacked(experts, 2 * inner, hidden, device))
    down = zt.encode_experts(stacked(experts, hidden, inner, device))
    numbers, scales = experts_of(5, 2, experts, device), torch.rand(5, 2).to(device)

    def layer(x):
        return zt.experts_mlp(x * 2, gate_up, down, numbers, scales, experts, inner) + x

    x = torch.randn(5, hidden).bfloat16().to(device)
    with torch.inference_mode():
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.gpu
def test_captured():
    experts, hidden, inner = 8, 128, 64
    gate_up = zt.encode_experts(stacked(experts, 2 * inner, hidden, "cuda"))
    down = zt.encode_experts(stacked(experts, hidden, inner, "cuda"))
    x, numbers = torch.randn(9, hidden).bfloat16().cuda(), experts_of(9, 2, experts, "cuda")
    scales = torch.rand(9, 2).cuda()

    def layer():
        return zt.experts_mlp(x, gate_up, down, numbers, scales, experts, inner)

    layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer()
    for _ in range(20):
        # Other tokens, and other experts, in the same graph.
        x.normal_()
        numbers.random_(experts)
        graph.replay()
        assert torch.equal(y, layer())


def test_what_does_not_fit_is_refused(device):
    weight = zt.encode_experts(stacked(2, 32, 64, device))
    x, numbers = torch.zeros(3, 64).bfloat16().to(device), torch.zeros(3, 1, dtype=torch.int64).to(device)
    with pytest.raises(TypeError, match="bfloat16"):
        zt.grouped_linear(x.float(), weight, numbers, 2, 32)
    with pytest.raises(TypeError, match="int32 or int64"):
        zt.grouped_linear(x, weight, numbers.float(), 2, 32)
    with pytest.raises(ValueError, match="top_k"):
        zt.grouped_linear(x, weight, numbers[:2], 2, 32)
    with pytest.raises((ValueError, RuntimeError), match="rows|are 64 x 64"):
        zt.grouped_linear(x, weight, numbers, 2, 33)
    with pytest.raises(ValueError, match="multiple of 64"):
        zt.grouped_linear(x, weight, numbers, 2, 32, is_gated=True)
    with pytest.raises(TypeError, match="experts, rows, cols"):
        zt.encode_experts(x)


def test_a_mixture_of_transformers(device):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    model = transformers.Qwen3MoeForCausalLM(config).to(device, torch.bfloat16).eval()
    ids = torch.randint(128, (2, 9)).to(device)
    dense = {name: p.detach().clone() for name, p in model.named_parameters() if "experts" in name}
    with torch.inference_mode():
        expected = model(ids).logits.float()
        zt.compress(model, experts=True)
        got = model(ids).logits.float()
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            assert isinstance(module, zt.Experts)
            for stack, of in zip(module.dense(), ("gate_up_proj", "down_proj"), strict=True):
                assert torch.equal(stack, dense[f"{name}.{of}"])
    assert torch.allclose(got, expected, atol=0.03 * expected.abs().max().item())


@pytest.mark.parametrize("archive", [False, True])
def test_stored_stacks_come_back(archive, tmp_path, device):
    shapes = {"aligned": (4, 60, 128), "unaligned": (4, 40, 128), "whole": (4, 64, 128), "deep": (2, 3, 60, 128)}
    dense = {name: stacked(1, math.prod(shape[:-1]), shape[-1], "cpu").view(shape) for name, shape in shapes.items()}
    save_file(dense, tmp_path / "model.safetensors")
    small = tmp_path / "small.safetensors"
    zipserv.compress(tmp_path / "model.safetensors", small, archive=archive)
    with safe_open(small, "pt") as file:
        stored = stored_tensors(str(small), file.keys(), file.metadata())
        tensors = {source.name: (source, file.get_tensor(key)) for key, source in stored.items()}
    assert tensors.keys() == dense.keys()
    for name, (source, tensor) in tensors.items():
        found = source.dense(tensor, device)
        assert found.is_contiguous() and torch.equal(bits(found.cpu()), bits(dense[name]))
    if archive:
        return
    source, tensor = tensors["aligned"]
    for shape in ((240, 128), (4, 70, 128), (5, 60, 128), (4, 60, 120)):
        with pytest.raises(zipserv.Error, match=r"`aligned`: a matrix of 256 x 128 for the shape"):
            source._replace(shape=torch.Size(shape)).dense(tensor)
    with pytest.raises(zipserv.Error, match="a matrix of 256 x 128"):
        source.weight(tensor)
