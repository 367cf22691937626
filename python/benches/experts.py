#!/usr/bin/env python3
"""Time the MLPs of mixtures of experts: compressed, and dense by other kernels, in turn.

    python benches/experts.py --commit $(git rev-parse HEAD) --json results/h200-DATE-experts.json

    zipserv       zipserv.torch.experts_mlp, on compressed weights
    fused_moe     vLLM's fused_experts, as its models call it, where vLLM is installed
    grouped_mm    tokens sorted by PyTorch, torch._grouped_mm, silu and product, torch._grouped_mm, weighted sum

Every layer's experts are chosen anew: at random, skewed, or one by half of the tokens. All launches of a form are one
CUDA graph over layers with weights and activations of their own, so weights come from memory; forms are replayed in
turn, and a time is the median over replays, for one layer. Outputs of the timed launches are compared with sums of FP32
on the dense weights.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import statistics

from results import head, write

#: Experts, of each token, hidden features, features between the products.
SHAPES = {
    "qwen3-30b-a3b": (128, 8, 2048, 768),
    "qwen3.5-35b-a3b": (256, 8, 2048, 512),
    "mixtral-8x7b": (8, 2, 4096, 14336),
    "tiny": (8, 2, 128, 64),
}
#: How experts are chosen: by a router's logits at random; so that some are chosen e times as often as others; so that
#: one is among those of every second token, and the others at random.
ROUTINGS = "random", "skewed", "half"
#: Part of the greatest output by which one may differ: features between the products are rounded to BF16.
TOLERANCE = 0.02


class Layer:
    """Dense and compressed weights of one layer, and where its tokens go."""

    def __init__(self, options, shape, seed):
        import torch

        import zipserv.torch as zt

        self.experts, self.top_k, self.hidden, self.inner = SHAPES[shape]
        generator = torch.Generator(options.device).manual_seed(seed)

        def stack(rows, cols):
            dense = torch.empty(self.experts, rows, cols, dtype=torch.bfloat16, device=options.device)
            for matrix in dense:
                scale = (
                    0.8
                    / math.sqrt(cols)
                    * torch.exp(0.1 * torch.randn(rows, 1, generator=generator, device=options.device))
                )
                matrix.copy_(torch.randn(rows, cols, generator=generator, device=options.device) * scale)
            return dense

        self.gate_up, self.down = stack(2 * self.inner, self.hidden), stack(self.hidden, self.inner)
        self.packed = zt.encode_experts(self.gate_up), zt.encode_experts(self.down)
        self.generator, self.device = generator, options.device

    def choose(self, tokens, routing):
        """Activations, the experts of each token, and what their outputs are multiplied by."""
        import torch

        self.x = torch.randn(tokens, self.hidden, generator=self.generator, device=self.device).bfloat16()
        logits = torch.randn(tokens, self.experts, generator=self.generator, device=self.device)
        if routing == "skewed":
            logits = logits + torch.randn(self.experts, generator=self.generator, device=self.device)
        wanted = logits.clone()
        if routing == "half":
            busy = torch.randint(self.experts, (), generator=self.generator, device=self.device)
            wanted[::2, busy], wanted[1::2, busy] = math.inf, -math.inf
        self.numbers = wanted.topk(self.top_k, -1).indices
        scales = logits.softmax(-1).gather(-1, self.numbers)
        self.scales = scales / scales.sum(-1, keepdim=True)

    def expected(self):
        """By sums of FP32, an expert at a time."""
        import torch
        import torch.nn.functional as F

        y = torch.zeros(self.x.shape, dtype=torch.float32, device=self.device)
        for expert in self.numbers.unique().tolist():
            tokens, which = torch.where(self.numbers == expert)
            gate, up = (self.x[tokens].float() @ self.gate_up[expert].float().T).chunk(2, -1)
            inside = (F.silu(gate) * up).bfloat16().float()
            y.index_add_(0, tokens, inside @ self.down[expert].float().T * self.scales[tokens, which, None])
        return y


def zipserv(layer):
    import zipserv.torch as zt

    return zt.experts_mlp(layer.x, *layer.packed, layer.numbers, layer.scales, layer.experts, layer.inner)


def fused_moe(layer):
    from vllm.model_executor.layers.fused_moe import fused_experts

    return fused_experts(layer.x, layer.gate_up, layer.down, layer.scales, layer.numbers.int())


def grouped_mm(layer):
    import torch
    import torch.nn.functional as F

    chosen, order = layer.numbers.flatten().sort()
    ends = torch.searchsorted(chosen, torch.arange(1, layer.experts + 1, device=chosen.device), out_int32=True)
    x = layer.x[order // layer.top_k]
    gate, up = torch._grouped_mm(x, layer.gate_up.mT, offs=ends).chunk(2, -1)
    y = torch._grouped_mm(F.silu(gate) * up, layer.down.mT, offs=ends).float() * layer.scales.flatten()[order, None]
    out = torch.zeros(layer.x.shape, dtype=torch.float32, device=y.device)
    return out.index_add_(0, order // layer.top_k, y).bfloat16()


FORMS = {"zipserv": zipserv, "fused_moe": fused_moe, "grouped_mm": grouped_mm}


def capture(form, layers):
    """A graph of a form on all layers, and its outputs."""
    import torch

    for layer in layers:
        FORMS[form](layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [FORMS[form](layer) for layer in layers]
    return graph, outputs


def measure(options, shape, layers, tokens, routing):
    import torch

    for layer in layers:
        layer.choose(tokens, routing)
    graphs = {}
    for form in options.forms:
        try:
            graphs[form] = capture(form, layers)
        except Exception as error:  # of packages that are not this project's
            print(f"{form}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    times = {form: [] for form in graphs}
    for _ in range(options.replays + 2):
        for form, (graph, _) in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[form].append(start.elapsed_time(end) * 1e3 / len(layers))
    row = {"shape": shape, "tokens": tokens, "routing": routing, "us": {}}
    for form, (_, outputs) in graphs.items():
        for layer, output in zip(layers, outputs, strict=True):
            expected = layer.expected()
            deviation = ((output.float() - expected).abs().max() / expected.abs().max()).item()
            if not deviation < TOLERANCE:
                raise SystemExit(
                    f"{form}, {shape}, {routing}, {tokens} tokens: outputs differ by {deviation:.3g} of the greatest"
                )
        row["us"][form] = round(statistics.median(times[form][2:]), 2)
    row["active_experts"] = statistics.mean(len(layer.numbers.unique()) for layer in layers)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[:3])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128, 256, 512, 4096])
    parser.add_argument("--routings", nargs="+", choices=ROUTINGS, default=list(ROUTINGS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--layers", type=int, default=3, help="layers that take turns")
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--device", default="cuda", help="cpu compares outputs and times nothing")
    parser.add_argument("--commit", help="of what is measured")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the result")
    options = parser.parse_args()
    import torch

    rows = []
    options.shape, options.context = "experts", 0
    torch.set_grad_enabled(False)
    for shape in options.shapes:
        layers = [Layer(options, shape, seed) for seed in range(options.layers)]
        if options.device == "cpu":
            for routing in options.routings:
                layers[0].choose(options.tokens[0], routing)
                for form in options.forms:
                    expected, y = layers[0].expected(), FORMS[form](layers[0]).float()
                    print(shape, routing, form, ((y - expected).abs().max() / expected.abs().max()).item())
            continue
        for tokens in options.tokens:
            for routing in options.routings:
                rows.append(measure(options, shape, layers, tokens, routing))
                print(json.dumps(rows[-1]), flush=True)
                if options.json:
                    # By the first name the tables know what it is of.
                    of = head("torch", options)
                    packages = [of.pop("server")]
                    if "fused_moe" in options.forms:
                        packages.append(f"vllm {importlib.metadata.version('vllm')}")
                    write(options.json, {"experts": ", ".join(packages), **of}, rows)


if __name__ == "__main__":
    main()
