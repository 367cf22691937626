"""What only a GPU has: graphs, streams, and writers of weights that kernels must wait for."""

import copy

import pytest
import torch
from torch import nn
from weights import like_trained

import zipserv
import zipserv.torch as zt

pytestmark = pytest.mark.gpu

#: Large enough that writing it takes longer than launching what reads it.
ROWS, COLS = 4096, 8192


def capture(f):
    """A graph of what `f` launches, and what it returned; `f` has run before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        f()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = f()
    return graph, result


class Ways:
    """The ways in which a layer gets new weights, each from what is on the GPU already."""

    def __init__(self, layer):
        self.layer = layer

    def encode(self, dense, packed):
        zt.encode_(self.layer.weight, dense)

    def load_state_dict(self, dense, packed):
        self.layer.load_state_dict({"weight": packed})

    def copy(self, dense, packed):
        self.layer.weight.copy_(packed)

    def reload(self, dense, packed):
        self.layer.write(dense)


@pytest.mark.parametrize("way", ["encode", "load_state_dict", "copy", "reload"])
@pytest.mark.parametrize("how", ["eager", "captured", "compiled", "another stream"])
def test_new_weights_are_never_late(way, how):
    # Of different windows and numbers of outliers, in the room of the largest.
    scales = (0.5, 3.0, 40.0)
    dense = [like_trained(ROWS, COLS, "cuda", scale) for scale in scales]
    packed = [zt.encode(w) for w in dense]
    room = max(w.numel() for w in packed)
    packed = [torch.cat([w, w.new_zeros(room - w.numel())]) for w in packed]
    layer = zt.Linear(COLS, ROWS, packed[0].clone())
    # Behind another product, which lets the one behind it start early.
    before = zt.compress(nn.Linear(COLS, COLS, bias=False).bfloat16().cuda())
    x = torch.randn(1, COLS, device="cuda").bfloat16()
    write = getattr(Ways(layer), way)

    @torch.inference_mode()
    def product():
        return layer(before(x))

    expected = []
    for p in packed:
        layer.weight.copy_(p)
        torch.cuda.synchronize()
        expected.append(product().clone())
    assert not torch.equal(expected[0], expected[1])

    other = torch.cuda.Stream()
    compiled = torch.compile(product, fullgraph=True) if how == "compiled" else None
    if how == "captured":
        graph, y = capture(product)
    torch.cuda.synchronize()
    for round in range(200):
        which = (round * 7) % 3
        if how == "another stream":
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                write(dense[which], packed[which])
            torch.cuda.current_stream().wait_stream(other)
        else:
            write(dense[which], packed[which])
        if how == "captured":
            graph.replay()
        else:
            y = (compiled or product)()
        assert torch.equal(y, expected[which]), f"round {round}"


def test_weights_written_within_a_graph_are_waited_for():
    dense = [like_trained(ROWS, COLS, "cuda", scale) for scale in (0.5, 40.0)]
    packed = [zt.encode(w) for w in dense]
    room = max(w.numel() for w in packed)
    packed = [torch.cat([w, w.new_zeros(room - w.numel())]) for w in packed]
    source = packed[0].clone()
    weight = packed[0].clone()
    before = zt.encode(like_trained(COLS, COLS, "cuda"))
    x = torch.randn(1, COLS, device="cuda").bfloat16()

    def step():
        weight.copy_(source)
        return zt.linear(zt.linear(x, before, COLS, COLS), weight, ROWS, COLS)

    graph, y = capture(step)
    for round in range(200):
        source.copy_(packed[round % 2])
        graph.replay()
        expected = zt.linear(zt.linear(x, before, COLS, COLS), packed[round % 2], ROWS, COLS)
        assert torch.equal(y, expected), f"round {round}"


def test_capture_before_the_first_call_says_what_to_do():
    weight = zt.encode(like_trained(416, 192, "cuda"))
    x = torch.randn(11, 192, device="cuda").bfloat16()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(zipserv.GpuError, match="captur"), torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            zt.linear(x, weight, 416, 192)
        finally:
            try:
                graph.capture_end()
            except RuntimeError:
                pass
    # And that it works then.
    zt.linear(x, weight, 416, 192)
    graph, y = capture(lambda: zt.linear(x, weight, 416, 192))
    graph.replay()
    assert torch.equal(y, zt.linear(x, weight, 416, 192))


@pytest.mark.parametrize("tokens", [1, 8, 33, 64, 100, 300])
def test_graphs_give_what_eager_calls_do(tokens):
    layers = [zt.encode(like_trained(2048, 2048, "cuda")) for _ in range(6)]
    x = torch.randn(tokens, 2048, device="cuda").bfloat16()

    def chain():
        y = x
        for weight in layers:
            y = zt.linear(y, weight, 2048, 2048)
        return y

    expected = chain()
    graph, y = capture(chain)
    for _ in range(50):
        y.zero_()
        graph.replay()
        assert torch.equal(y, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_compile_modes(mode):
    layers = nn.Linear(1024, 2048), nn.SiLU(), nn.Linear(2048, 1024)
    dense = nn.Sequential(*layers).bfloat16().cuda().requires_grad_(False)
    packed = zt.compress(copy.deepcopy(dense))
    compiled = torch.compile(packed, mode=mode, fullgraph=True)
    with torch.inference_mode():
        for _ in range(5):
            x = torch.randn(3, 1024, device="cuda").bfloat16()
            torch.testing.assert_close(compiled(x), dense(x), rtol=0.05, atol=0.02)


def test_batch_invariance():
    w = like_trained(1024, 2048, "cuda")
    weight = zt.encode(w)
    x = torch.randn(300, 2048, device="cuda").bfloat16()
    full = zt.linear(x, weight, 1024, 2048, batch_invariant=True)
    for n in (1, 2, 17, 64, 65, 257):
        assert torch.equal(zt.linear(x[:n], weight, 1024, 2048, batch_invariant=True), full[:n])
    order = torch.randperm(300, device="cuda")
    assert torch.equal(zt.linear(x[order], weight, 1024, 2048, batch_invariant=True), full[order])


def test_numbers_out_of_range_give_zeros():
    weight = zt.encode(like_trained(100, 128, "cuda"))
    ids = torch.tensor([0, -1, 100, 99, 2**40], device="cuda")
    rows = zt.embedding(ids, weight, 100, 128)
    dense = zt.decompress(weight, 100, 128)
    assert torch.equal(rows[[0, 3]], dense[[0, 99]])
    assert not rows[[1, 2, 4]].any()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus():
    w = like_trained(512, 1024)
    x = torch.randn(4, 1024).bfloat16()
    layers = [zt.compress(nn.Linear(1024, 512, bias=False).bfloat16().to(f"cuda:{i}")) for i in range(2)]
    for layer in layers:
        layer.write(w)
    first, second = (layer(x.to(f"cuda:{i}")) for i, layer in enumerate(layers))
    assert torch.equal(first.cpu(), second.cpu())
    moved = layers[0].to("cuda:1")
    assert torch.equal(moved(x.to("cuda:1")).cpu(), first.cpu())
    with pytest.raises(ValueError, match="cuda:0"):
        moved(x.to("cuda:0"))
    assert torch.cuda.current_device() == 0


def test_memory_is_that_of_the_compressed_weights():
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    layer = nn.Linear(8192, 8192, bias=False, device="cuda", dtype=torch.bfloat16)
    dense = torch.cuda.memory_allocated() - before
    layer = zt.compress(layer)
    assert torch.cuda.memory_allocated() - before < 0.72 * dense
    assert isinstance(layer, zt.Linear)
