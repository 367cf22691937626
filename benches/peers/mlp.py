#!/usr/bin/env python3
"""The MLPs of a model on a GPU: dense, and compressed by zipserv and by other packages, in one run.

    pip install ./python transformers                (zipserv)
    pip install glyd-gpu neural-weight-compression   (the others)
    python benches/peers/mlp.py                      (--json FILE keeps it)

A Llama of random weights like trained ones is made anew for each package, which compresses it by its own call. Then all
of its MLPs run one after another in a CUDA graph, each on activations of its own, so weights come from memory. A time
is the median over replays, for one MLP: gate, up, silu, product, down, as the package does them. Outputs are compared
with the dense model's: they may differ by rounding. Whatever is not installed, or fails, is named.

Not here, for they multiply by weights that they have decompressed before: nvCOMP and DFloat11, which compare.py has.
Binade runs in MLX, not in PyTorch.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import pathlib
import statistics
import subprocess
import time

#: Part of the greatest output by which one may differ.
TOLERANCE = 0.02


def dense(model):
    return model


def zipserv(model):
    import zipserv.torch

    return zipserv.torch.compress(model)


def glyd(layout):
    def pack(model):
        import glyd.gpu

        return glyd.gpu.compress(model, layout=layout, compile=False)

    return pack


def nwc(model):
    import nwc

    nwc.convert(model)
    return model


#: Names, the packages that are measured, and what compresses a model.
PEERS = {
    "dense": ("torch", dense),
    "zipserv": ("zipserv", zipserv),
    "glyd, mma12": ("glyd-gpu", glyd("mma12")),
    "glyd, mma": ("glyd-gpu", glyd("mma")),
    "nwc": ("neural-weight-compression", nwc),
}


def build(options):
    """A Llama of few layers; the same weights each time."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.inner,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 128,
        num_key_value_heads=max(options.hidden // 512, 1),
        vocab_size=1024,
    )
    with torch.device(options.device):
        model = transformers.LlamaForCausalLM(config).bfloat16().eval().requires_grad_(False)
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                rows, cols = weight.shape
                scale = 0.8 / math.sqrt(cols) * torch.exp(0.1 * torch.randn(rows, 1))
                weight.copy_(torch.randn(rows, cols) * scale)
    return model


def times(options, mlps, tokens):
    """Microseconds of an MLP, and all outputs."""
    import torch

    generator = torch.Generator(options.device).manual_seed(tokens)
    shape = len(mlps), 1, tokens, options.hidden
    inputs = torch.randn(shape, generator=generator, device=options.device).bfloat16()

    def run():
        return [mlp(x) for mlp, x in zip(mlps, inputs, strict=True)]

    run()
    if options.device == "cpu":
        start = time.perf_counter()
        outputs = run()
        return (time.perf_counter() - start) / len(mlps) * 1e6, outputs
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    found = []
    for _ in range(options.replays + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / len(mlps))
    return statistics.median(found[3:]), [output.clone() for output in outputs]


def measure(options, peer, references):
    import torch

    package, pack = PEERS[peer]
    version = importlib.metadata.version(package)
    with torch.no_grad():
        mlps = [layer.mlp for layer in pack(build(options)).model.layers]
        row = {"peer": peer, "package": f"{package} {version}", "us": {}}
        for tokens in options.tokens:
            us, outputs = times(options, mlps, tokens)
            expected = references.setdefault(tokens, outputs)
            for output, reference in zip(outputs, expected, strict=True):
                deviation = (output.float() - reference.float()).abs().max() / reference.float().abs().max()
                if not deviation < TOLERANCE:
                    raise ValueError(f"outputs for {tokens} tokens differ by {deviation:.3g} of the greatest")
            row["us"][tokens] = round(us, 2)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=4096, help="features (default: %(default)s, Llama-3.1-8B's)")
    parser.add_argument("--inner", type=int, default=14336, help="features between (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="MLPs that take turns (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--device", default="cuda", help="cpu shows that it runs")
    parser.add_argument("--commit", help="of what is measured")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the result")
    options = parser.parse_args()
    rows, references = [], {}
    # The dense model's outputs are the reference.
    for peer in ["dense", *(peer for peer in options.peers if peer != "dense")]:
        try:
            rows.append(measure(options, peer, references))
        except Exception as error:  # of packages that are not this project's
            print(f"{peer}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        speedups = (f"{rows[0]['us'][n] / us:.2f}x" for n, us in rows[-1]["us"].items())
        print(f"{peer:12} {rows[-1]['package']:40}", *speedups, flush=True)
    if options.json:
        device, driver = "CPU", None
        if options.device == "cuda":
            query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            device, driver = subprocess.check_output(query, text=True).splitlines()[0].split(", ")
        head = {
            "what": "MLPs beside other packages",
            "device": device,
            "driver": driver,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "commit": options.commit,
            "hidden": options.hidden,
            "inner": options.inner,
            "rows": rows,
        }
        options.json.write_text(json.dumps(head, indent=1) + "\n")


if __name__ == "__main__":
    main()
