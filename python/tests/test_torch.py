"""Operators and modules, on the CPU and, where there is one, a GPU.

The reference is PyTorch on the dense weights.
"""

import copy
import io
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from weights import all_patterns, bits, corpus, like_trained

import zipserv
import zipserv.torch as zt


def close(y, x, w, bias=None):
    """Whether a product is right: that of float64, to BF16's rounding and sums of FP32."""
    expected = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    size = F.linear(x.double().abs(), w.double().abs()) + expected.abs()
    return ((y.double() - expected).abs() <= 2.0**-8 * expected.abs() + 2.0**-20 * size).all()


@pytest.mark.parametrize("name, dense", list(corpus()), ids=lambda value: value if isinstance(value, str) else "")
def test_encode_is_lossless_and_the_same_everywhere(name, dense, device):
    on_cpu = zt.encode(dense)
    weight = zt.encode(dense.to(device))
    assert weight.device == device and torch.equal(weight.cpu(), on_cpu)
    assert zt.shape(weight) == dense.shape
    assert torch.equal(bits(zt.decompress(weight, *dense.shape).cpu()), bits(dense))
    # The stored form is all there is to it, zeros aside.
    again, rows, cols = zt.from_stored(on_cpu, device)
    assert (rows, cols) == dense.shape and torch.equal(again.cpu(), on_cpu)


def test_encode_takes_rows_of_any_stride(device):
    wide = like_trained(100, 400).to(device)
    for dense in (wide[:, :200], wide[:, 3:90], wide[::2], wide.t(), wide[:, ::2]):
        assert torch.equal(zt.encode(dense).cpu(), zt.encode(dense.contiguous().cpu()))


def test_encode_in_place_keeps_the_address(device):
    first, second = like_trained(128, 256).to(device), like_trained(128, 256, scale=3.0).to(device)
    weight = zt.encode(first)
    address = weight.data_ptr()
    zt.encode_(weight, second)
    assert weight.data_ptr() == address
    assert torch.equal(zt.decompress(weight, 128, 256), second)
    with pytest.raises((ValueError, RuntimeError), match="room"):
        zt.encode_(weight, all_patterns().to(device))
    # Nothing was written.
    assert torch.equal(zt.decompress(weight, 128, 256), second)


@pytest.mark.parametrize("rows, cols", [(1, 1), (32, 64), (33, 72), (512, 1024), (100, 301)])
@pytest.mark.parametrize("tokens", [(), (0,), (1,), (3, 5), (70,), (300,)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(rows, cols, tokens, with_bias, device):
    w = like_trained(rows, cols).to(device)
    x = torch.randn(*tokens, cols, device=device).bfloat16()
    bias = torch.randn(rows, device=device).bfloat16() if with_bias else None
    y = zt.linear(x, zt.encode(w), rows, cols, bias)
    assert y.shape == (*tokens, rows) and y.dtype == torch.bfloat16
    assert close(y, x, w, bias)


def test_linear_takes_views(device):
    w = like_trained(96, 128).to(device)
    weight = zt.encode(w)
    wide = torch.randn(40, 300, device=device).bfloat16()
    for x in (wide[:, :128], wide[:, 3:131], wide[::2, :128], wide[:, :256:2], wide.t()[:128].t()):
        assert close(zt.linear(x, weight, 96, 128), x, w)


def test_embedding(device):
    w = all_patterns().to(device)
    weight = zt.encode(w)
    for dtype in (torch.int32, torch.int64):
        ids = torch.randint(0, 256, (3, 7), device=device, dtype=dtype)
        assert torch.equal(bits(zt.embedding(ids, weight, *w.shape)), bits(w[ids.long()]))
    assert zt.embedding(torch.empty(0, dtype=torch.long, device=device), weight, *w.shape).shape == (0, 256)
    with pytest.raises(IndexError):
        zt.embedding(torch.tensor([256]), weight.cpu(), *w.shape)


def test_wrong_arguments_are_named(device):
    w = like_trained(64, 128).to(device)
    weight = zt.encode(w)
    x = torch.randn(2, 128, device=device).bfloat16()
    with pytest.raises(TypeError, match="float16"):
        zt.linear(x.half(), weight, 64, 128)
    with pytest.raises(ValueError, match="128 input features"):
        zt.linear(x[:, :64], weight, 64, 128)
    with pytest.raises(TypeError, match="uint8"):
        zt.linear(x, w, 64, 128)
    with pytest.raises(TypeError, match="bias"):
        zt.linear(x, weight, 64, 128, torch.zeros(3, device=device).bfloat16())
    with pytest.raises(TypeError, match="float32"):
        zt.encode(w.float())
    if device.type == "cuda":
        with pytest.raises(ValueError, match="cpu"):
            zt.linear(x.cpu(), weight, 64, 128)
    else:
        with pytest.raises(ValueError, match="64 x 128"):
            zt.linear(x, weight, 32, 128)


def test_damaged_bytes_are_refused(device):
    weight = zt.encode(like_trained(64, 128)).cpu()
    for at in (0, 12, 130, 5000):
        bad = weight.clone()
        bad[at] += 1
        with pytest.raises(zipserv.Error):
            zt.from_stored(bad, device)
    with pytest.raises(zipserv.Error, match="bytes"):
        zt.from_stored(weight[:1000], device)


@pytest.mark.parametrize("rows, cols", [(64, 64), (192, 72), (1024, 512)])
@pytest.mark.parametrize("tokens", [(), (0,), (1,), (3, 5), (16,), (17,), (300,)])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_gated_linear(rows, cols, tokens, batch_invariant, device):
    w = like_trained(rows, cols).to(device)
    x = torch.randn(*tokens, cols, device=device).bfloat16()
    if batch_invariant and device.type == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for Hopper")
    y = zt.gated_linear(x, zt.encode(w), rows, cols, batch_invariant=batch_invariant)
    assert y.shape == (*tokens, rows // 2) and y.dtype == torch.bfloat16
    gate, up = F.linear(x.double(), w.double()).chunk(2, -1)
    expected = F.silu(gate) * up
    # Gate, up and output are rounded to BF16 each; silu's slope is 1.1 at most.
    most = 2.0**-7 * ((gate.abs() + 0.01) * up.abs() + expected.abs()) + 1e-4
    assert ((y.double() - expected).abs() <= most).all()


def test_gated_linear_refuses_what_has_no_halves(device):
    weight = zt.encode(like_trained(96, 64).to(device))
    with pytest.raises((ValueError, RuntimeError), match="32 output features"):
        zt.gated_linear(torch.zeros(1, 64, device=device).bfloat16(), weight, 96, 64)


def test_kernels_before_products_let_them_start_when_they_have_waited():
    pytest.importorskip("triton", reason="inductor's kernels are Triton's")
    from zipserv.torch.early import release_after_wait

    lines = ["index = 1", "  gdc_wait()", "x = load()", "gdc_launch()", "store()"]
    expected = ["index = 1", "  gdc_wait()", "  gdc_launch()", "x = load()", "store()"]
    release_after_wait(lines, "gdc_wait()", "gdc_launch()")
    assert lines == expected
    for without in (1, 2):
        some = [line for at, line in enumerate(expected) if at != without]
        release_after_wait(some, "gdc_wait()", "gdc_launch()")
        assert some == [line for at, line in enumerate(expected) if at != without]


@pytest.mark.parametrize("op", ["linear", "gated_linear", "embedding", "decompress", "encode", "encode_"])
def test_opcheck(op, device):
    w = like_trained(64, 128).to(device)
    weight = zt.encode(w)
    x = torch.randn(2, 128, device=device).bfloat16()
    arguments = {
        "linear": (x, weight, 64, 128, torch.zeros(64, device=device).bfloat16(), False),
        "gated_linear": (x, weight, 64, 128, False),
        "embedding": (torch.tensor([1, 5], device=device), weight, 64, 128),
        "decompress": (weight, 64, 128),
        "encode": (w,),
        "encode_": (weight.clone(), w),
    }[op]
    torch.library.opcheck(getattr(torch.ops.zipserv, op).default, arguments)


def model(device="cpu"):
    layers = nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 256, bias=False), nn.LayerNorm(256)
    return nn.Sequential(*layers).bfloat16().requires_grad_(False).to(device)


def test_compress_packs_in_place(device):
    dense = model(device)
    x = torch.randn(5, 256, device=device).bfloat16()
    packed = copy.deepcopy(dense)
    assert zt.compress(packed) is packed
    assert [type(layer).__name__ for layer in packed] == ["Linear", "SiLU", "Linear", "LayerNorm"]
    assert isinstance(packed[0], zt.Linear) and isinstance(packed[2], zt.Linear)
    assert torch.equal(packed[0].dense(), dense[0].weight)
    assert close(packed[2](x.new_ones(5, 512)), x.new_ones(5, 512), dense[2].weight)
    if device.type == "cpu":
        assert torch.equal(packed(x), dense(x))
    else:
        torch.testing.assert_close(packed(x), dense(x), rtol=0.05, atol=0.05)


def test_compress_says_what_stays_dense(caplog):
    parts = nn.ModuleDict(
        {
            "single": nn.Linear(256, 256),
            "noise": nn.Linear(64, 64).bfloat16(),
            "skipped": nn.Linear(256, 256).bfloat16(),
            "packed": nn.Linear(256, 256).bfloat16(),
        }
    )
    with torch.no_grad():
        parts["noise"].weight.copy_(all_patterns(64)[:64])
    with caplog.at_level("INFO", "zipserv"):
        zt.compress(parts, skip=["skip*"])
    kinds = {name: type(part) for name, part in parts.items()}
    assert kinds == {"single": nn.Linear, "noise": nn.Linear, "skipped": nn.Linear, "packed": zt.Linear}
    assert "single stays dense: torch.float32, not BF16" in caplog.text
    assert "noise stays dense: it would not shrink" in caplog.text
    assert "skipped stays dense: as asked for" in caplog.text


def test_tied_weights_are_packed_once():
    tied = nn.ModuleDict({"embed": nn.Embedding(500, 256), "head": nn.Linear(256, 500, bias=False)}).bfloat16()
    tied["head"].weight = tied["embed"].weight
    dense = tied["embed"].weight.detach().clone()
    zt.compress(tied)
    assert tied["head"].weight is tied["embed"].weight
    assert len(list(tied.parameters())) == 1
    assert torch.equal(tied["embed"](torch.tensor([3, 4])), dense[[3, 4]])


def test_state_dict_round_trip(device):
    first, second = (zt.compress(model(device)) for _ in range(2))
    x = torch.randn(3, 256, device=device).bfloat16()
    assert not torch.equal(first(x), second(x))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    addresses = [p.data_ptr() for p in second.parameters()]
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [p.data_ptr() for p in second.parameters()] == addresses
    assert torch.equal(first(x), second(x))
    third = zt.compress(model(device))
    third.load_state_dict(first.state_dict(), assign=True)
    assert torch.equal(first(x), third(x))


def test_a_dense_state_dict_is_packed(device):
    dense = model(device)
    packed = zt.compress(model(device))
    packed.load_state_dict(dense.state_dict())
    assert torch.equal(packed[0].dense(), dense[0].weight)


def test_a_damaged_state_dict_is_refused():
    packed = zt.compress(model())
    state = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    state["0.weight"][300] += 1
    before = packed[0].dense()
    with pytest.raises(RuntimeError, match="0.weight.*checksum"):
        packed.load_state_dict(state)
    assert torch.equal(packed[0].dense(), before)


def test_weights_without_room_get_a_new_parameter(device):
    packed = zt.compress(nn.Linear(256, 256).bfloat16().to(device))
    packed.write(all_patterns().to(device))
    assert torch.equal(bits(packed.dense()), bits(all_patterns().to(device)))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_break(backend, device):
    packed = zt.compress(model(device))
    x = torch.randn(4, 256, device=device).bfloat16()
    compiled = torch.compile(packed, backend=backend, fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), packed(x), rtol=0.02, atol=0.02)


def test_gradients_flow_to_activations_and_bias(device):
    w, bias = like_trained(64, 128).to(device), torch.zeros(64, device=device).bfloat16()
    weight = zt.encode(w)
    x = torch.randn(3, 128, device=device).bfloat16()
    grads = []
    for f in (lambda x, b: zt.linear(x, weight, 64, 128, b), lambda x, b: F.linear(x, w, b)):
        x1, b1 = x.clone().requires_grad_(), bias.clone().requires_grad_()
        f(x1, b1).square().sum().backward()
        grads.append((x1.grad, b1.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=0.02, atol=0.02)
    with pytest.raises(RuntimeError, match="floating point"):
        weight.requires_grad_()


def test_threads(device):
    packed = zt.compress(model(device))
    x = torch.randn(4, 256, device=device).bfloat16()
    expected, wrong = packed(x), []

    def work():
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(stream):
            for _ in range(20):
                y = packed(x)
                if stream:
                    stream.synchronize()
                if not torch.equal(y, expected):
                    wrong.append(y)

    if device.type == "cuda":
        torch.cuda.synchronize()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
