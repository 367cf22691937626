#!/usr/bin/env python3
"""Greedy continuations of twenty prompts by a dense model and by the same model compressed.

    python benches/greedy_text.py MODEL [--compressed FOLDER] [--device cuda] [--json FILE]

MODEL is a BF16 folder; it is packed as it loads if no compressed folder is given. Every compressed matrix is compared
with the dense one bit by bit. Where two texts part, the gap is told between the logits of the two tokens that were
chosen: sums in another order move logits by rounding, which decides only where the gap is as small. On the CPU the
texts are the same.
"""

import argparse
import datetime
import importlib.util
import json
import pathlib
import sys

import torch
import transformers

import zipserv
from zipserv.torch import Embedding, Linear
from zipserv.transformers import ZipservConfig

PROMPTS = [
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of motion say that",
    "A recipe for pancakes: take",
    "In 1969, two astronauts",
    "The difference between a list and a tuple in Python is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Photosynthesis is the process by which",
    "SELECT name, COUNT(*) FROM orders",
    "The opposite of hot is cold, the opposite of tall is",
    "1, 1, 2, 3, 5, 8, 13,",
    "To be, or not to be,",
    "The train from Berlin to Prague leaves at",
    "Q: What is the largest planet of the solar system?\nA:",
    "My favourite book is about",
    "The heart pumps blood through",
    "If it rains tomorrow, we will",
    "fn main() {\n    let numbers = vec![",
]


def load(path, device, **options):
    # Packed on the GPU if transformers can load there.
    if importlib.util.find_spec("accelerate"):
        options["device_map"] = device
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **options).to(device)


def check_weights(compressed, dense):
    """How many layers are compressed, of which every weight is as in the dense model."""
    count = 0
    for name, layer in compressed.named_modules():
        if isinstance(layer, (Linear, Embedding)):
            count += 1
            weight = dense.get_submodule(name).weight
            if not torch.equal(layer.dense().view(torch.int16), weight.view(torch.int16)):
                raise SystemExit(f"{name}: weights differ")
    if count == 0:
        raise SystemExit("nothing is compressed")
    return count


def continuation(model, ids, tokens):
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, **options)[0, ids.shape[1] :].tolist()


def parting(first, second):
    """Where two texts part, if they do."""
    for at, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return at
    return None if len(first) == len(second) else min(len(first), len(second))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--compressed", metavar="FOLDER", help="what `zipserv compress` made of it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=64, help="of a continuation (default: %(default)s)")
    parser.add_argument("--name", help="of the model in the result")
    parser.add_argument("--commit", default="unknown", help="of what is compared")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the result")
    options = parser.parse_args()

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    dense = load(options.model, options.device)
    if options.compressed:
        compressed = load(options.compressed, options.device)
    else:
        compressed = load(options.model, options.device, quantization_config=ZipservConfig())
    layers = check_weights(compressed, dense)
    rows = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids.to(options.device)
            texts = [continuation(model, ids, options.tokens) for model in (dense, compressed)]
            row = {"prompt": prompt, "tokens": len(texts[0]), "parting": parting(*texts)}
            if row["parting"] is not None:
                at = row["parting"]
                whole = torch.cat([ids, torch.tensor([texts[0][:at]], dtype=ids.dtype, device=ids.device)], 1)
                chosen = [text[at] for text in texts]
                for form, model in (("dense", dense), ("compressed", compressed)):
                    first, second = model(whole).logits[0, -1, chosen].float().tolist()
                    row[f"gap_{form}"] = first - second
                row["chosen"] = [tokenizer.decode([token]) for token in chosen]
            rows.append(row)
            print(json.dumps(row), flush=True)
    differing = sum(row["parting"] is not None for row in rows)
    footprint = compressed.get_memory_footprint() / dense.get_memory_footprint()
    print(f"{differing} of {len(rows)} texts differ; {layers} layers compressed, {100 * footprint:.1f} % of the memory")
    if options.json:
        head = {
            "device": torch.cuda.get_device_name() if dense.device.type == "cuda" else "CPU",
            "zipserv": zipserv.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "commit": options.commit,
            "model": options.name or options.model,
            "layers": layers,
        }
        lines = [f'"{name}": {json.dumps(value)},' for name, value in head.items()]
        body = ",\n".join(json.dumps(row) for row in rows)
        options.json.write_text("{\n" + "\n".join(lines) + '\n"greedy": [\n' + body + "\n]\n}\n")
    # On the CPU the products are the same ones.
    return 1 if differing and dense.device.type == "cpu" else 0


if __name__ == "__main__":
    sys.exit(main())
