"""Opens a compressed checkpoint with the stock `safetensors` package.

    python tests/stock_reader.py COMPRESSED ORIGINAL

Needs `safetensors` and `torch`. Checks that both ways of opening the file work, that compressed
tensors are one-dimensional U8, that all others are as they were, and that the metadata holds the
original's header.
"""

import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file

compressed, original = sys.argv[1:]
with open(original, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length).decode()

with safe_open(compressed, "pt") as file:
    metadata = file.metadata()
    keys = set(file.keys())
assert metadata["zipserv.version"] == "1"
assert metadata["zipserv.header"] == header
suffix = metadata["zipserv.suffix"]

tensors, before = load_file(compressed), load_file(original)
assert keys == set(tensors)
blobs = 0
for name, tensor in before.items():
    if name in tensors:
        # As bytes: NaNs are not equal to themselves.
        same = tensors[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))
        assert same and tensors[name].shape == tensor.shape, name
        assert tensors[name].dtype == tensor.dtype, name
    else:
        blob = tensors[name + suffix]
        assert blob.dtype == torch.uint8 and blob.dim() == 1, name
        assert bytes(blob[:8].tolist()) == b"ZIPSERV\0", name
        blobs += 1
assert len(tensors) == len(before)
print(f"{len(tensors)} tensors, {blobs} of them compressed: fine")
