#!/usr/bin/env python3
"""Time vLLM with dense and with compressed weights, in turn.

    python benches/vllm_decode.py --commit $(git rev-parse HEAD) --json results/h200-DATE-vllm.json

It writes a checkpoint of random weights like trained ones, compresses it, and starts vLLM on it, each time in a process
of its own, in the forms that are asked for, which take turns:

    dense             the checkpoint, as vLLM serves it
    packed            the same with --quantization zipserv: packed on the GPU as it loads
    compressed        the compressed folder
    dense-early       dense, with inductor's kernels releasing those behind them early, as the plug-in has them do
    packed-late       packed, without that
    dense-invariant   dense, in vLLM's own batch-invariant mode
    packed-invariant  packed, in batch-invariant mode
    packed-part       packed, but for routed experts, which stay dense

CUDA graphs and compilation are on. A step is the difference of two runs that differ in their number of tokens, divided
by that; no prefix is cached. The first process of a form compiles, later ones find that in vLLM's cache. Checked are
greedy tokens: where two forms part, the dense model's two best logits must be closer than rounding makes them differ.
Where experts are routed, rounding may send a token to another expert too, which no tie of logits tells. There the dense
model is compared with itself, requests alone and together, and other forms may part from it twice as often, and twice.
In batch-invariant mode a request's tokens and log-probabilities must be the same to the bit alone and among 31 others,
in two orders.
"""

import argparse
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from results import head, write

_QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
}
SHAPES = {
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "tiny": {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 2},
    "qwen3-30b-a3b": {**_QWEN3_30B_A3B, "num_hidden_layers": 48},
    # A quarter of its layers. The host sets the pace then, up to some eight requests at a time.
    "qwen3-30b-a3b/4": {**_QWEN3_30B_A3B, "num_hidden_layers": 12},
    "tiny-moe": {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
    },
}
#: Layers of a checkpoint that is smaller than its model: 16 GB for 61. Each is loaded several times, into layers with
#: memory of their own.
STORED_LAYERS = {"qwen3-30b-a3b": 12}
#: What vLLM needs to run without a network, and in the process that asks.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
#: What vLLM is told for each form, and what is set for it.
FORMS = {
    "dense": {"VLLM_PLUGINS": ""},
    "packed": {},
    "compressed": {},
    "dense-early": {"VLLM_PLUGINS": "", "TORCHINDUCTOR_ENABLE_PDL": "1"},
    "packed-late": {"TORCHINDUCTOR_ENABLE_PDL": "0"},
    "dense-invariant": {"VLLM_PLUGINS": "", "VLLM_BATCH_INVARIANT": "1"},
    "packed-invariant": {"VLLM_BATCH_INVARIANT": "1"},
    "packed-part": {"ZIPSERV_EXPERTS": "0"},
}
#: Log-probabilities of two tokens that are closer than this are equal but for rounding.
TIE = 0.05


def checkpoint(folder, shape, tied):
    """Writes a model of random weights: Gaussian, with log-normal scales of rows."""
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)

    def matrix(rows, cols):
        scale = 0.8 / math.sqrt(cols) * torch.exp(0.1 * torch.randn(rows, 1, device=device)).bfloat16()
        return (torch.randn(rows, cols, device=device, dtype=torch.bfloat16) * scale).cpu()

    hidden, inner, layers = (SHAPES[shape][key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    layers = STORED_LAYERS.get(shape, layers)
    heads = SHAPES[shape].get("num_attention_heads", hidden // 128)
    keys = SHAPES[shape].get("num_key_value_heads", max(heads // 4, 1))
    experts = SHAPES[shape].get("num_experts", 0)
    vocabulary = 128256
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "vocab_size": vocabulary,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": 128,
        **SHAPES[shape],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    shards = {"embedding": {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": ones}}
    if not tied:
        shards["head"] = {"lm_head.weight": matrix(vocabulary, hidden)}
    for layer in range(layers):
        parts = {
            "self_attn.q_proj": (heads * 128, hidden),
            "self_attn.k_proj": (keys * 128, hidden),
            "self_attn.v_proj": (keys * 128, hidden),
            "self_attn.o_proj": (hidden, heads * 128),
        }
        mlps = {"mlp": inner}
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if experts:
            parts["mlp.gate"] = experts, hidden
            mlps = {f"mlp.experts.{expert}": SHAPES[shape]["moe_intermediate_size"] for expert in range(experts)}
            norms |= {"self_attn.q_norm": 128, "self_attn.k_norm": 128}
        for mlp, size in mlps.items():
            parts[f"{mlp}.gate_proj"] = parts[f"{mlp}.up_proj"] = size, hidden
            parts[f"{mlp}.down_proj"] = hidden, size
        tensors = {f"model.layers.{layer}.{name}.weight": matrix(*size) for name, size in parts.items()}
        for name, size in norms.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(size, dtype=torch.bfloat16)
        shards[f"{layer:05}"] = tensors
    index = {}
    for name, tensors in shards.items():
        file = f"model-{name}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


# In a process of its own


def repeat_layers(stored, layers):
    """Has vLLM load the checkpoint's layers as often as the model has them, all of them before any again."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    original = DefaultModelLoader._get_weights_iterator

    def weights_iterator(self, source):
        for first in range(0, layers, stored):
            for name, tensor in original(self, source):
                layer = re.fullmatch(r"(model\.layers\.)(\d+)(\..*)", name)
                if layer:
                    yield f"{layer[1]}{first + int(layer[2])}{layer[3]}", tensor
                elif first == 0:
                    yield name, tensor

    DefaultModelLoader._get_weights_iterator = weights_iterator


def count_launches(captured):
    """Counts products in captured graphs: those that may start early, and those that may not."""
    from zipserv import _native

    launch = _native.linear

    def linear(*args):
        is_captured = launch(*args)
        if is_captured:
            captured["early" if args[-1] else "late"] += 1
        return is_captured

    _native.linear = linear


def work(options):
    """Starts vLLM once, and prints a row of JSON."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    loading, captured = {}, {"early": 0, "late": 0}
    if options.shape in STORED_LAYERS:
        repeat_layers(STORED_LAYERS[options.shape], SHAPES[options.shape]["num_hidden_layers"])
    if not options.form.startswith("dense"):
        count_launches(captured)
    original = DefaultModelLoader.load_model

    def load_model(self, *args, **kwargs):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        model = original(self, *args, **kwargs)
        torch.cuda.synchronize()
        loading["load_s"] = round(time.perf_counter() - start, 2)
        loading["weights_bytes"] = torch.cuda.memory_allocated() - before
        loading["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        return model

    DefaultModelLoader.load_model = load_model
    start = time.perf_counter()
    llm = LLM(
        model=str(options.folder),
        quantization="zipserv" if options.form.startswith("packed") else None,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=2048,
        gpu_memory_utilization=options.memory,
        enable_prefix_caching=False,
        max_num_seqs=256,
        tensor_parallel_size=options.tensor_parallel,
        compilation_config={"cudagraph_capture_sizes": sorted({1, 2, 4, 8, 16, 32, 64, 128, 256, *options.batches})},
    )
    cache = llm.llm_engine.vllm_config.cache_config
    row = {
        "form": options.form,
        "start_s": round(time.perf_counter() - start, 1),
        **loading,
        "cache_tokens": cache.num_gpu_blocks * cache.block_size,
    }
    if sum(captured.values()):
        row["captured_products"] = captured
    generator = torch.Generator().manual_seed(1)

    def prompts(batch):
        rows = torch.randint(0, 128000, (batch, options.context), generator=generator).tolist()
        return [{"prompt_token_ids": row} for row in rows]

    def run(batch, tokens):
        asked = prompts(batch)
        torch.cuda.synchronize()
        start = time.perf_counter()
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        llm.generate(asked, sampling, use_tqdm=False)
        return time.perf_counter() - start

    run(1, 8)
    row["steps_ms"] = {}
    for batch in options.batches:
        run(batch, 4)
        short, long = 16, 16 + options.tokens
        few = min(run(batch, short) for _ in range(2))
        many = min(run(batch, long) for _ in range(2))
        row["steps_ms"][batch] = round((many - few) / options.tokens * 1e3, 4)
    row["prefill_8x512_ms"] = round(min(run(8, 1) for _ in range(4)) * 1e3, 2)

    def generate(asked, tokens=32):
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=1)
        answers = [answer.outputs[0] for answer in llm.generate(asked, sampling, use_tqdm=False)]
        # Token, its log-probability, and that of the next best where it is told.
        return [
            [(token, *sorted((entry.logprob for entry in at.values()), reverse=True)[:2])
             for token, at in zip(answer.token_ids, answer.logprobs, strict=True)]
            for answer in answers
        ]  # fmt: skip

    generator.manual_seed(2)
    asked = prompts(32)
    sampling = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, detokenize=False, logprobs=2)
    answers = [answer.outputs[0] for answer in llm.generate(asked, sampling, use_tqdm=False)]
    row["tokens"] = [list(answer.token_ids) for answer in answers]
    row["gaps"] = []
    for answer in answers:
        best = [sorted((entry.logprob for entry in at.values()), reverse=True) for at in answer.logprobs]
        row["gaps"].append([round(first - second, 5) for first, second, *_ in best])
    if options.form == "dense" and "num_experts" in SHAPES[options.shape]:
        row["tokens_alone"] = [[token for token, *_ in generate([request])[0]] for request in asked]
    if options.form.endswith("-invariant"):
        alone = [generate([request])[0] for request in asked[:4]]
        together = generate(asked)[:4]
        reversed_order = generate(asked[::-1])[::-1][:4]
        row["is_invariant"] = alone == together == reversed_order
    print("ROW " + json.dumps(row), flush=True)


# In the process that starts the others


def parted(dense, other):
    """Requests whose tokens differ, and those of them that part where the dense model had no tie."""
    differ = wrong = 0
    for tokens, others, gaps in zip(dense["tokens"], other["tokens"], dense["gaps"], strict=True):
        at = next((i for i, (a, b) in enumerate(zip(tokens, others, strict=True)) if a != b), None)
        if at is not None:
            differ += 1
            wrong += gaps[at] > TIE
    return differ, wrong


def start(options, form, folder):
    """Runs `work` in a process, and gives its row."""
    environment = {**os.environ, **ENVIRONMENT, **FORMS[form]}
    # A cache for each setting that vLLM's does not see. Forms without one share theirs, as those of a user do.
    environment["VLLM_CACHE_ROOT"] = str(folder.parent / "cache" / form.partition("-")[2])
    if options.tensor_parallel > 1:
        # A process for each GPU.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    command = [sys.executable, __file__, *sys.argv[1:], "--form", form, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if done.returncode != 0 or not rows:
        sys.exit(f"{form} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return json.loads(rows[0])


def summary(rows):
    """Medians over the starts, and ratios to dense ones."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    medians = {}
    for form in forms:
        of_form = [row for row in rows if row["form"] == form]
        for key in ("start_s", "load_s", "weights_bytes", "peak_bytes", "cache_tokens", "prefill_8x512_ms"):
            if key in of_form[0]:
                medians[form, key] = statistics.median(row[key] for row in of_form)
        for batch in of_form[0]["steps_ms"]:
            medians[form, f"ms a step, batch {batch}"] = statistics.median(row["steps_ms"][batch] for row in of_form)
    keys = dict.fromkeys(key for _, key in medians)
    print(f"{'':26}" + "".join(f"{form:>16}" for form in forms))
    for key in keys:
        values = [medians.get((form, key)) for form in forms]
        print(f"{key:26}" + "".join(f"{'' if value is None else round(value, 3):>16}" for value in values))
    for key in (key for key in keys if key.startswith("ms a step")):
        if "dense" in forms:
            ratios = {form: medians["dense", key] / medians[form, key] for form in forms if form != "dense"}
            print(key, ", ".join(f"{form} {ratio:.3f}x" for form, ratio in ratios.items()))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["dense", "packed", "compressed"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    parser.add_argument("--context", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens by which the two runs differ")
    parser.add_argument("--starts", type=int, default=3, help="processes of each form")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--tied", action="store_true", help="one matrix for embeddings and head")
    parser.add_argument("--memory", type=float, default=0.8, help="share of the GPU's memory that vLLM takes")
    parser.add_argument("--work", type=pathlib.Path, help="folder for the checkpoints, kept for the next run")
    parser.add_argument("--commit", help="of the package that is measured")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the result")
    parser.add_argument("--form", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.form:
        work(options)
        return
    import zipserv

    if "compressed" in options.forms and options.shape in STORED_LAYERS:
        sys.exit(f"{options.shape} has no compressed folder: its layers are repeated as dense ones")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or pathlib.Path(scratch)
        dense, compressed = folder / "dense", folder / "compressed"
        if not dense.exists():
            dense.mkdir(parents=True)
            checkpoint(dense, options.shape, options.tied)
        if "compressed" in options.forms and not compressed.exists():
            print(zipserv.compress(dense, compressed, progress=False))
        allowed = 0
        of, rows = head("vllm", options, tensor_parallel=options.tensor_parallel, is_tied=options.tied), []
        for process in range(options.starts):
            for form in options.forms:
                row = {"process": process, **start(options, form, compressed if form == "compressed" else dense)}
                first = next((other for other in rows if other["form"] == "dense"), None)
                if first and form != "dense":
                    row["requests_that_differ"], row["without_a_tie"] = parted(first, row)
                    row["allowed_without_a_tie"] = allowed
                elif "tokens_alone" in row:
                    alone = {"tokens": row["tokens_alone"]}
                    row["requests_that_differ_alone"], row["alone_without_a_tie"] = parted(row, alone)
                    allowed = 2 * row["alone_without_a_tie"] + 2
                rows.append(row)
                # Without what it is checked by.
                hidden = "tokens", "tokens_alone", "gaps"
                figures = [{key: row[key] for key in row if key not in hidden} for row in rows]
                print(figures[-1], flush=True)
                if options.json:
                    write(options.json, of, figures)
        summary(rows)
        if any(
            row.get("without_a_tie", 0) > row.get("allowed_without_a_tie", 0) or row.get("is_invariant") is False
            for row in rows
        ):
            sys.exit("outputs differ")


if __name__ == "__main__":
    main()
