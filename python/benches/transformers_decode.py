#!/usr/bin/env python3
"""Time a decode step of a model of transformers takes, dense and compressed, in turn.

    python benches/transformers_decode.py --commit $(git rev-parse HEAD) --json results/h200-DATE-transformers.json

The same loop for all: a cache of fixed size, one compiled forward without graph breaks, CUDA graphs, the next token
taken on the GPU, and no wait before the last step. Forms are dense and compressed, each in a mode of torch.compile; in
dense-early and compressed inductor's kernels release those behind them early, in dense and compressed-late they do not.
Every run is a process of its own, and the forms take turns.

Weights are Gaussian with log-normal scales of rows, as trained layers have them, and the same in each process. They are
packed on the GPU. Checked are: every compressed matrix bit for bit against the dense one, and the logits of a step
against those of the dense model in the first process, which differ by rounding.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zlib

from results import head, write

SHAPES = {
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1024},
}
#: Whether inductor is told to use programmatic dependent launch. For compressed models the package does.
EARLY = {"dense": "0", "dense-early": "1", "compressed": "", "compressed-late": "0"}
#: Part of the dense model's greatest logit by which a logit may differ: sums of BF16 products in another order.
TOLERANCE = 0.1


# In a process of its own


def like_trained(name, tensor):
    """Fills a matrix; the same name gives the same weights."""
    import torch

    generator = torch.Generator(tensor.device).manual_seed(zlib.crc32(name.encode()))
    rows, cols = tensor.shape
    scale = torch.exp(0.1 * torch.randn(rows, 1, generator=generator, device=tensor.device)) * 0.8 / math.sqrt(cols)
    # In parts, for what is in FP32 meanwhile.
    for part, scales in zip(tensor.split(8192), scale.split(8192), strict=True):
        part.copy_(torch.randn(part.shape, generator=generator, device=tensor.device) * scales)


def build(options):
    """The model, and the seconds that packing took."""
    import torch
    import transformers
    from torch import nn

    import zipserv.torch

    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}
    if options.shape == "tiny":
        heads.update(num_attention_heads=4, num_key_value_heads=2)
    config = transformers.LlamaConfig(**SHAPES[options.shape], **heads, max_position_embeddings=131072)
    with torch.device(options.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    packing = 0.0
    for name, layer in list(model.named_modules()):
        if type(layer) not in (nn.Linear, nn.Embedding):
            continue
        like_trained(name, layer.weight)
        if options.form.startswith("dense"):
            continue
        synchronize(options)
        start = time.perf_counter()
        packed = zipserv.torch.compress(layer)
        synchronize(options)
        packing += time.perf_counter() - start
        if type(packed) is type(layer) or not torch.equal(packed.dense(), layer.weight):
            raise SystemExit(f"{name} was not restored")
        model.set_submodule(name, packed)
    if not options.form.startswith("dense"):
        zipserv.torch.let_kernels_start_early()
    return model, packing


def synchronize(options):
    import torch

    if options.device == "cuda":
        torch.cuda.synchronize()


def decode(options, model, batch):
    """Times of a step of one batch size, and how far its logits are from the dense ones."""
    import torch
    from transformers import StaticCache

    torch._dynamo.reset()
    steps = options.steps
    cache = StaticCache(config=model.config, max_cache_len=options.context + steps)

    @torch.compile(mode=options.mode, fullgraph=True)
    def forward(token):
        logits = model(token, past_key_values=cache).logits[:, -1]
        return logits.argmax(-1, keepdim=True), logits

    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(model.config.vocab_size, (batch, options.context + 1), generator=generator)
    prompt = prompt.to(options.device)
    model(prompt[:, :-1], past_key_values=cache)

    def run(count):
        """Steps from the end of the prompt."""
        for layer in cache.layers:
            layer.cumulative_length.fill_(options.context)
        token = prompt[:, -1:].clone()
        for _ in range(count):
            following, logits = forward(token)
            # The graph's own output is overwritten by its next run.
            token.copy_(following)
        return logits

    start = time.perf_counter()
    logits = run(1).float().cpu()
    compile_s = time.perf_counter() - start
    for _ in range(3):
        run(steps)
    times = []
    for _ in range(options.repeats):
        synchronize(options)
        start = time.perf_counter()
        run(steps)
        synchronize(options)
        times.append((time.perf_counter() - start) * 1000 / steps)
    reference = pathlib.Path(options.reference, f"{batch}.pt")
    if not reference.exists():
        torch.save(logits, reference)
    expected = torch.load(reference)
    deviation = ((logits - expected).abs().max() / expected.abs().max()).item()
    if not deviation < TOLERANCE:
        raise SystemExit(f"logits differ by {deviation} of the greatest")
    return {
        "ms": round(statistics.median(times), 4),
        "compile_s": round(compile_s, 2),
        "logit_deviation": round(deviation, 6),
    }


def work(options):
    """One process: its row goes to standard output."""
    import torch

    start = time.perf_counter()
    with torch.no_grad():
        model, packing = build(options)
        build_s = time.perf_counter() - start - packing
        steps = {batch: decode(options, model, batch) for batch in options.batches}
    row = {
        "form": f"{options.form} {options.mode}",
        "build_s": round(build_s, 2),
        "pack_s": round(packing, 3),
        "weights_bytes": sum(weight.nbytes for weight in model.parameters()),
        "steps_ms": {batch: step.pop("ms") for batch, step in steps.items()},
        "steps": steps,
    }
    print(json.dumps(row), flush=True)


# The whole


def numbers(text):
    return [int(part) for part in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b", help="whose shape (default: %(default)s)")
    parser.add_argument("--batches", type=numbers, default=[1, 8], help="tokens a step (default: 1,8)")
    parser.add_argument("--context", type=int, default=512, help="tokens before the first step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=64, help="steps of a repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="repeats in a process (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="of each form and mode (default: %(default)s)")
    # Dense first: its logits are the reference.
    forms = ["dense:reduce-overhead", "compressed:reduce-overhead", "dense:max-autotune", "dense-early:reduce-overhead"]
    parser.add_argument("--forms", nargs="+", default=forms, help="form:mode, of torch.compile (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one process each")
    parser.add_argument("--device", default="cuda", help="cpu shows that it runs")
    parser.add_argument("--commit", default="unknown", help="of what is measured")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the result")
    for internal in ("--form", "--mode", "--reference"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    return parser.parse_args()


def summary(rows):
    medians = {}
    for form in dict.fromkeys(row["form"] for row in rows):
        for batch in rows[0]["steps_ms"]:
            medians[form, batch] = statistics.median(row["steps_ms"][batch] for row in rows if row["form"] == form)
    for (form, batch), ms in medians.items():
        dense = min(other for (name, size), other in medians.items() if name.startswith("dense") and size == batch)
        print(f"{form:28} batch {batch:3} {ms:8.3f} ms a step  {dense / ms:5.2f}x the best dense one")


def main():
    options = arguments()
    if options.form:
        return work(options)
    if options.quick:
        options.processes, options.repeats = 1, min(options.repeats, 5)
    of, rows = head("transformers", options, steps=options.steps), []
    shared = ["--shape", options.shape, "--batches", ",".join(map(str, options.batches)), "--device", options.device]
    shared += ["--context", str(options.context), "--steps", str(options.steps), "--repeats", str(options.repeats)]
    with tempfile.TemporaryDirectory() as reference:
        for process in range(options.processes):
            for form in options.forms:
                name, mode = form.split(":")
                command = [sys.executable, __file__, *shared]
                command += ["--form", name, "--mode", mode, "--reference", reference]
                environment = {**os.environ, "TORCHINDUCTOR_ENABLE_PDL": EARLY[name]}
                output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
                rows.append({"process": process, **json.loads(output.splitlines()[-1])})
                print(json.dumps(rows[-1]), flush=True)
                if options.json:
                    write(options.json, of, rows)
    return summary(rows)


if __name__ == "__main__":
    sys.exit(main())
