"""Compressed weights in PyTorch: operators, modules, and one call that packs a model.

>>> import torch, zipserv.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(1024, 1024)).bfloat16()
>>> x = torch.randn(8, 1024).bfloat16()
>>> with torch.inference_mode():
...     expected = model(x)
...     assert torch.equal(zipserv.torch.compress(model)(x), expected)
"""

from zipserv.torch.early import let_kernels_start_early
from zipserv.torch.experts import encode_experts, experts_mlp, grouped_linear
from zipserv.torch.modules import Embedding, Experts, Linear, compress, compress_experts
from zipserv.torch.ops import (
    capacity,
    decompress,
    embedding,
    encode,
    encode_,
    from_stored,
    gated_linear,
    linear,
    prefix,
    shape,
)

__all__ = [
    "Embedding",
    "Experts",
    "Linear",
    "capacity",
    "compress",
    "compress_experts",
    "decompress",
    "embedding",
    "encode",
    "encode_",
    "encode_experts",
    "experts_mlp",
    "from_stored",
    "gated_linear",
    "grouped_linear",
    "let_kernels_start_early",
    "linear",
    "prefix",
    "shape",
]
