"""Operators on the compressed weights of a mixture's experts.

The matrices of a layer's experts are one compressed weight, see :mod:`zipserv.torch.ops`: a stacked tensor (experts,
rows, cols), each expert from a tile of 32 rows of its own on. Where ``rows`` is no multiple of that, the last one is
there again until the tile is full. Which experts a token takes is told by ``experts_of``, (tokens, top_k) numbers, as
routers leave them; a number of no expert, such as -1, is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zipserv import _native
from zipserv.torch import ops
from zipserv.torch.ops import _library

_library.define(
    "grouped_linear(Tensor x, Tensor weight, Tensor experts_of, int experts, int rows, bool is_gated, "
    "bool batch_invariant) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "experts_mlp(Tensor x, Tensor gate_up, Tensor down, Tensor experts_of, Tensor scales, int experts, int inner, "
    "bool batch_invariant) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

#: Rows of a tile.
_TILE_ROWS = 32
#: Tokens whose outputs of experts are in memory at a time.
_MOST_TOKENS = 4096


def encode_experts(dense: Tensor) -> Tensor:
    """Compresses the stacked matrices of experts: (experts, rows, cols) BF16."""
    if dense.dim() != 3:
        raise TypeError(f"experts' matrices are (experts, rows, cols), got {tuple(dense.shape)}")
    experts, rows, cols = dense.shape
    if stride := _stride(rows) - rows:
        dense = torch.cat([dense, dense[:, -1:].expand(experts, stride, cols)], 1)
    return ops.encode(dense.reshape(-1, cols))


def _stride(rows: int) -> int:
    """Rows from the start of an expert to that of the next."""
    return -(-rows // _TILE_ROWS) * _TILE_ROWS


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    experts_of: Tensor,
    experts: int,
    rows: int,
    *,
    is_gated: bool = False,
    batch_invariant: bool = False,
) -> Tensor:
    """``x[t] @ W[e].T`` for each token t and each of its experts e.

    Args:
        x: Activations (tokens, cols), BF16.
        weight: Compressed weights of all experts.
        experts_of: Experts of each token, (tokens, top_k), int32 or int64.
        experts: How many there are.
        rows: Output features of one.
        is_gated: Outputs are silu(first half) * second half, ``rows / 2`` of them: gate and up are stacked.
        batch_invariant: The bits of a token's outputs do not depend on the other tokens.

    Returns:
        (tokens, top_k, features) BF16. Sums are FP32, rounded once; zeros where there is no expert.
    """
    return torch.ops.zipserv.grouped_linear(x, weight, experts_of, experts, rows, is_gated, batch_invariant)


def experts_mlp(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts_of: Tensor,
    scales: Tensor,
    experts: int,
    inner: int,
    *,
    batch_invariant: bool = False,
) -> Tensor:
    """The MLP of a mixture: ``sum(scale * (silu(x @ gate.T) * (x @ up.T)) @ down.T)`` over each token's experts.

    Args:
        x: Activations (tokens, hidden), BF16.
        gate_up: Compressed weights, ``2 * inner`` rows an expert: gate, then up.
        down: Compressed weights, ``hidden`` rows an expert of ``inner`` columns.
        experts_of: Experts of each token, (tokens, top_k), int32 or int64.
        scales: What their outputs are multiplied by, (tokens, top_k).
        experts: How many there are.
        inner: Features between the products.
        batch_invariant: The bits of a token's outputs do not depend on the other tokens.

    Returns:
        (tokens, hidden) BF16. Only the features between the products and the sums of all are rounded.
    """
    return torch.ops.zipserv.experts_mlp(x, gate_up, down, experts_of, scales, experts, inner, batch_invariant)


# What operators are called with


def _check(x: Tensor, experts_of: Tensor, experts: int, rows: int, halves: int) -> None:
    if x.dtype != torch.bfloat16 or x.dim() != 2:
        raise TypeError(f"x is (tokens, cols) torch.bfloat16, got {x.dtype} of shape {tuple(x.shape)}")
    if experts_of.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"numbers of experts are int32 or int64, got {experts_of.dtype}")
    if experts_of.dim() != 2 or experts_of.shape[0] != x.shape[0]:
        raise ValueError(f"experts_of is ({x.shape[0]}, top_k), got {tuple(experts_of.shape)}")
    ops._check_device("experts_of", experts_of, x)
    if experts < 1 or rows < 1:
        raise ValueError(f"there are no {experts} experts of {rows} rows")
    if halves > 1 and rows % (_TILE_ROWS * halves):
        raise ValueError(f"{rows} rows of gates and what they multiply: they are a multiple of {_TILE_ROWS * halves}")


def _check_linear(x, weight, experts_of, experts, rows, is_gated):
    _check(x, experts_of, experts, rows, 2 if is_gated else 1)
    ops._check_weight(weight, experts * _stride(rows), x.shape[-1])
    ops._check_device("weight", weight, x)


def _check_mlp(x, gate_up, down, experts_of, scales, experts, inner):
    _check(x, experts_of, experts, 2 * inner, 2)
    for name, weight in (("gate_up", gate_up), ("down", down)):
        ops._check_weight(weight, 0, 0)
        ops._check_device(name, weight, x)
    ops._check_device("scales", scales, x)
    if scales.shape != experts_of.shape or not scales.is_floating_point():
        raise TypeError(
            f"scales are {tuple(experts_of.shape)} numbers, got {scales.dtype} of shape {tuple(scales.shape)}"
        )


# CPU


def _outputs_cpu(x, weight, experts_of, experts, rows, cols):
    """For each expert that tokens take: which assignments, and their FP32 outputs."""
    stride = _stride(rows)
    address, length = ops._cpu_weight(weight, experts * stride, cols)
    for expert in experts_of.unique().tolist():
        if not 0 <= expert < experts:
            continue
        dense = torch.empty(rows, cols, dtype=torch.bfloat16)
        numbers = list(range(expert * stride, expert * stride + rows))
        _native.decode_rows(address, length, numbers, dense.data_ptr(), 2 * dense.numel())
        tokens, which = torch.where(experts_of == expert)
        yield tokens, which, F.linear(x(tokens, which).float(), dense.float())


def _activate(y: Tensor, is_gated: bool) -> Tensor:
    if not is_gated:
        return y
    # Products are rounded before they go on, as the kernels do.
    gate, up = y.bfloat16().float().chunk(2, -1)
    return F.silu(gate) * up


def _grouped_linear_cpu(x, weight, experts_of, experts, rows, is_gated, batch_invariant):
    _check_linear(x, weight, experts_of, experts, rows, is_gated)
    out = x.new_zeros(*experts_of.shape, rows // 2 if is_gated else rows)
    found = _outputs_cpu(lambda tokens, _: x[tokens], weight, experts_of, experts, rows, x.shape[-1])
    for tokens, which, y in found:
        out[tokens, which] = _activate(y, is_gated).bfloat16()
    return out


def _experts_mlp_cpu(x, gate_up, down, experts_of, scales, experts, inner, batch_invariant):
    _check_mlp(x, gate_up, down, experts_of, scales, experts, inner)
    hidden = x.shape[-1]
    inside = _grouped_linear_cpu(x, gate_up, experts_of, experts, 2 * inner, True, batch_invariant)
    parts = x.new_zeros(*experts_of.shape, hidden, dtype=torch.float32)
    found = _outputs_cpu(lambda *at: inside[at], down, experts_of, experts, hidden, inner)
    for tokens, which, y in found:
        parts[tokens, which] = y * scales[tokens, which].float()[:, None]
    return parts.sum(1).bfloat16()


# CUDA


class _Routed:
    """Assignments sorted by expert, in memory of PyTorch's, or as they are where nothing has to be sorted."""

    def __init__(self, weight, rows, experts_of, experts, batch_invariant):
        self.at = ops._stream(weight[0].device)
        self.batch_invariant = batch_invariant
        tokens, top_k = experts_of.shape
        address = ops._cuda_weight(*weight)
        group_tokens, takes_unsorted, size, places_at = _native.routing(
            *self.at, address, experts, rows, tokens, top_k, batch_invariant
        )
        self.experts_of = experts_of.contiguous()
        numbers = self.experts_of.data_ptr(), experts_of.dtype == torch.int64
        sizes = tokens, top_k, experts, group_tokens
        if takes_unsorted:
            self.key, self.places = (0, numbers, *sizes), None
            return
        self.memory = torch.empty(size, dtype=torch.uint8, device=experts_of.device)
        self.key = self.memory.data_ptr(), None, *sizes
        self.places = self.memory[places_at:].view(torch.int32)
        _native.route(*self.at, numbers, self.key)

    def multiply(self, x, x_by_expert, weight, rows, y, is_gated, follows_routing=True):
        product = (*self.at, ops._cuda_weight(*weight), rows, self.key, x.data_ptr(), x.stride(0), x_by_expert)
        size = _native.grouped_scratch(*product, is_gated, self.batch_invariant)
        scratch = torch.empty(size, dtype=torch.uint8, device=y.device) if size else None
        _native.grouped_linear(
            *product,
            y.data_ptr(),
            y.shape[-1],
            y.dtype == torch.float32,
            is_gated,
            follows_routing,
            self.batch_invariant,
            scratch.data_ptr() if size else 0,
        )


def _grouped_linear_cuda(x, weight, experts_of, experts, rows, is_gated, batch_invariant):
    _check_linear(x, weight, experts_of, experts, rows, is_gated)
    features = rows // 2 if is_gated else rows
    out = x.new_empty(*experts_of.shape, features)
    if experts_of.numel() == 0:
        return out
    cols = x.shape[-1]
    x, weight = ops._aligned_rows(x, cols), (weight, experts * _stride(rows), cols)
    routed = _Routed(weight, rows, experts_of, experts, batch_invariant)
    y = x.new_empty(experts_of.numel(), features)
    routed.multiply(x, False, weight, rows, y, is_gated)
    if routed.places is None:
        numbers = experts_of.flatten()
        is_there = (numbers >= 0) & (numbers < experts)
    else:
        is_there = routed.places >= 0
        y = y.index_select(0, routed.places.clamp(min=0))
    return torch.where(is_there[:, None], y, 0).view(*experts_of.shape, features)


def _experts_mlp_cuda(x, gate_up, down, experts_of, scales, experts, inner, batch_invariant):
    _check_mlp(x, gate_up, down, experts_of, scales, experts, inner)
    (tokens, hidden), top_k = x.shape, experts_of.shape[1]
    out = x.new_empty(tokens, hidden)
    gate_up, down = (gate_up, experts * 2 * inner, hidden), (down, experts * _stride(hidden), inner)
    x, scales = ops._aligned_rows(x, hidden), scales.float().contiguous()
    for first in range(0, tokens if top_k else 0, _MOST_TOKENS):
        some = slice(first, first + _MOST_TOKENS)
        of, out_some = experts_of[some], out[some]
        routed = _Routed(gate_up, 2 * inner, of, experts, batch_invariant)
        inside = x.new_empty(of.numel(), inner)
        routed.multiply(x[some], False, gate_up, 2 * inner, inside, True)
        parts = x.new_empty(of.numel(), hidden, dtype=torch.float32)
        routed.multiply(inside, True, down, hidden, parts, False, follows_routing=False)
        scale = scales[some]
        _native.combine(*routed.at, parts.data_ptr(), scale.data_ptr(), out_some.data_ptr(), hidden, routed.key)
    return out if top_k else out.zero_()


for _name, _cpu, _cuda in (
    ("grouped_linear", _grouped_linear_cpu, _grouped_linear_cuda),
    ("experts_mlp", _experts_mlp_cpu, _experts_mlp_cuda),
):
    _library.impl(_name, _cpu, "CPU")
    _library.impl(_name, _cuda, "CUDA")


# Shapes


@torch.library.register_fake("zipserv::grouped_linear", lib=_library)
def _(x, weight, experts_of, experts, rows, is_gated, batch_invariant):
    _check_linear(x, weight, experts_of, experts, rows, is_gated)
    return x.new_empty(*experts_of.shape, rows // 2 if is_gated else rows)


@torch.library.register_fake("zipserv::experts_mlp", lib=_library)
def _(x, gate_up, down, experts_of, scales, experts, inner, batch_invariant):
    _check_mlp(x, gate_up, down, experts_of, scales, experts, inner)
    return x.new_empty(x.shape)
