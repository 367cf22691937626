#!/usr/bin/env python3
"""Time a decode step of a model of transformers takes, dense and compressed, in turn.

    python benches/transformers_decode.py --commit $(git rev-parse HEAD) --json results/h200-DATE-transformers.json

The same loop for both: a cache of fixed size, one compiled forward without graph breaks, CUDA graphs, the next token
taken on the GPU, and no wait before the last step. Dense weights are run in each mode of torch.compile that is asked
for, so that they have their best; compressed ones in the first. Every run is a process of its own, and the two forms
take turns.

Weights are Gaussian with log-normal scales of rows, as trained layers have them, and the same in each process. They are
packed on the GPU. Checked are: every compressed matrix bit for bit against the dense one, and the logits of a step
against those of the dense model in the first process, which differ by rounding.
"""

import argparse
import datetime
import importlib.metadata
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

MODELS = {
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1024},
}
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
    if options.model == "tiny":
        heads.update(num_attention_heads=4, num_key_value_heads=2)
    config = transformers.LlamaConfig(**MODELS[options.model], **heads, max_position_embeddings=131072)
    with torch.device(options.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    packing = 0.0
    for name, layer in list(model.named_modules()):
        if type(layer) not in (nn.Linear, nn.Embedding):
            continue
        like_trained(name, layer.weight)
        if options.form == "dense":
            continue
        synchronize(options)
        start = time.perf_counter()
        packed = zipserv.torch.compress(layer)
        synchronize(options)
        packing += time.perf_counter() - start
        if type(packed) is type(layer) or not torch.equal(packed.dense(), layer.weight):
            raise SystemExit(f"{name} was not restored")
        model.set_submodule(name, packed)
    return model, packing


def synchronize(options):
    import torch

    if options.device == "cuda":
        torch.cuda.synchronize()


def decode(options, model, batch):
    """Rows of one batch size: times of a step, and what they took."""
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
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
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
        "batch": batch,
        "ms": round(statistics.median(times), 4),
        "ms_min": round(min(times), 4),
        "ms_max": round(max(times), 4),
        "compile_s": round(compile_s, 2),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if options.device == "cuda" else None,
        "logit_deviation": round(deviation, 6),
    }


def work(options):
    """One process: its rows go to standard output."""
    import torch

    start = time.perf_counter()
    with torch.no_grad():
        model, packing = build(options)
        row = {
            "form": options.form,
            "mode": options.mode,
            "weights_gb": round(sum(weight.nbytes for weight in model.parameters()) / 1e9, 4),
            "build_s": round(time.perf_counter() - start - packing, 2),
            "pack_s": round(packing, 3),
        }
        for batch in options.batches:
            print(json.dumps({**row, **decode(options, model, batch)}), flush=True)


# The whole


def numbers(text):
    return [int(part) for part in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b", help="whose shape (default: %(default)s)")
    parser.add_argument("--batches", type=numbers, default=[1, 8], help="tokens a step (default: 1,8)")
    parser.add_argument("--context", type=int, default=512, help="tokens before the first step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=64, help="steps of a repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="repeats in a process (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="of each form and mode (default: %(default)s)")
    modes = "reduce-overhead,max-autotune"
    parser.add_argument("--modes", default=modes, help="of torch.compile (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one process each, the first mode only")
    parser.add_argument("--device", default="cuda", help="cpu shows that it runs")
    parser.add_argument("--commit", default="unknown", help="of what is measured")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the result")
    for internal in ("--form", "--mode", "--reference"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    return parser.parse_args()


def machine(options):
    """What the result is of."""
    device, driver = "CPU", None
    if options.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        device, driver = subprocess.check_output(query, text=True).splitlines()[0].split(", ")
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "device": device,
        "driver": driver,
        "zipserv": importlib.metadata.version("zipserv"),
        **packages,
        "inductor_pdl": os.environ.get("TORCHINDUCTOR_ENABLE_PDL") == "1",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": options.commit,
        "model": options.model,
        "context": options.context,
        "steps": options.steps,
    }


def write(path, head, rows):
    """A row a line."""
    lines = [f'"{name}": {json.dumps(value)},' for name, value in head.items()]
    body = ",\n".join(json.dumps(row) for row in rows)
    path.write_text("{\n" + "\n".join(lines) + '\n"decode": [\n' + body + "\n]\n}\n")


def summary(rows, batches):
    for batch in batches:
        times = {}
        for row in rows:
            if row["batch"] == batch:
                times.setdefault((row["form"], row["mode"]), []).append(row["ms"])
        medians = {key: statistics.median(values) for key, values in times.items()}
        dense = min(ms for (form, _), ms in medians.items() if form == "dense")
        for (form, mode), ms in medians.items():
            print(f"batch {batch:3}  {form:10} {mode:16} {ms:8.3f} ms a step  {dense / ms:5.2f}x the best dense one")


def main():
    options = arguments()
    if options.form:
        return work(options)
    modes = options.modes.split(",")
    if options.quick:
        options.processes, options.repeats, modes = 1, min(options.repeats, 5), modes[:1]
    head, rows = machine(options), []
    shared = ["--model", options.model, "--batches", ",".join(map(str, options.batches)), "--device", options.device]
    shared += ["--context", str(options.context), "--steps", str(options.steps), "--repeats", str(options.repeats)]
    with tempfile.TemporaryDirectory() as reference:
        for process in range(options.processes):
            # Dense first: its logits are the reference.
            for form, mode in [("dense", modes[0]), ("compressed", modes[0]), *(("dense", mode) for mode in modes[1:])]:
                command = [sys.executable, __file__, *shared]
                command += ["--form", form, "--mode", mode, "--reference", reference]
                output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                for line in output.splitlines():
                    rows.append({"process": process, **json.loads(line)})
                    print(json.dumps(rows[-1]), flush=True)
                if options.json:
                    write(options.json, head, rows)
    return summary(rows, options.batches)


if __name__ == "__main__":
    sys.exit(main())
