"""Operators on compressed weights, for CUDA and, slowly, the CPU.

A compressed weight is a contiguous ``uint8`` tensor of one dimension. It starts with a matrix in the stored form
(docs/FORMAT.md), and zeros follow: 64 bytes that kernels may read, and any spare room. Its shape, ``rows`` output by
``cols`` input features, goes along as numbers. All else is read from the tensor's memory when a kernel runs, so it may
be overwritten with other weights at any time, also under a captured CUDA graph, and :func:`prefix` can stand for it.

The operators are ``torch.ops.zipserv.*``, with fake and CPU implementations, so ``torch.compile(fullgraph=True)``, CUDA
graphs and ``torch.library.opcheck`` take them. The functions here check their arguments and call them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zipserv import _native

#: Spare bytes behind a matrix are zeros, in this unit: tensors of one shape are then mostly of one length.
_UNIT = 4096

_library = torch.library.Library("zipserv", "DEF")
_library.define(
    "linear(Tensor x, Tensor weight, int rows, int cols, Tensor? bias, bool batch_invariant) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "gated_linear(Tensor x, Tensor weight, int rows, int cols, bool batch_invariant) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "embedding(Tensor ids, Tensor weight, int rows, int cols) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
_library.define("decompress(Tensor weight, int rows, int cols) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define("encode(Tensor dense) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define("encode_(Tensor(a!) weight, Tensor dense) -> ()", tags=(torch.Tag.pt2_compliant_tag,))


# What operators are called with


def _check_weight(weight: Tensor, rows: int, cols: int) -> None:
    if weight.dtype != torch.uint8 or weight.dim() != 1 or not weight.is_contiguous():
        raise TypeError(
            "compressed weights are a contiguous uint8 tensor of one dimension, got "
            f"{weight.dtype} of shape {tuple(weight.shape)}"
        )
    if rows < 0 or cols < 0:
        raise ValueError(f"weights cannot have the shape {rows} x {cols}")


def _check_device(name: str, tensor: Tensor, weight: Tensor) -> None:
    if tensor.device != weight.device:
        raise ValueError(f"{name} is on {tensor.device}, but the weights are on {weight.device}")


def _check_linear(x: Tensor, weight: Tensor, rows: int, cols: int, bias: Tensor | None) -> None:
    _check_weight(weight, rows, cols)
    _check_device("x", x, weight)
    if x.dtype != torch.bfloat16:
        raise TypeError(f"compressed weights multiply torch.bfloat16, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit weights of {cols} input features")
    if bias is not None:
        _check_device("bias", bias, weight)
        if bias.dtype != torch.bfloat16 or bias.shape != (rows,):
            raise TypeError(f"bias is {rows} torch.bfloat16, got {bias.dtype} of shape {tuple(bias.shape)}")


def _check_gated(x: Tensor, weight: Tensor, rows: int, cols: int) -> None:
    _check_linear(x, weight, rows, cols, None)
    if rows % 64 or cols == 0:
        raise ValueError(f"gate and up of {rows} x {cols} weights are no multiples of 32 output features")


def _check_dense(dense: Tensor) -> None:
    if dense.dtype != torch.bfloat16 or dense.dim() != 2:
        raise TypeError(f"a matrix of torch.bfloat16 is compressed, got {dense.dtype} of shape {tuple(dense.shape)}")


# Functions


def linear(
    x: Tensor, weight: Tensor, rows: int, cols: int, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> Tensor:
    """``x @ W.T + bias``, straight from the compressed weights.

    Args:
        x: Activations of shape (..., cols), BF16.
        weight: Compressed weights.
        rows: Output features.
        cols: Input features.
        bias: BF16, of shape (rows,).
        batch_invariant: The bits of a token's outputs do not depend on the other tokens. For Hopper GPUs.

    Gradients flow to ``x`` and ``bias``, for adapters on frozen weights; the backward pass restores the dense weights.
    """
    return torch.ops.zipserv.linear(x, weight, rows, cols, bias, batch_invariant)


def gated_linear(x: Tensor, weight: Tensor, rows: int, cols: int, *, batch_invariant: bool = False) -> Tensor:
    """``silu(gate) * up`` of ``gate, up = (x @ W.T).chunk(2, -1)``: the first half of a gated MLP.

    On a GPU it is one launch for up to 16 tokens, on Hopper mostly for up to 64. Products are rounded to BF16 before
    they go on in FP32.

    Args:
        x: Activations of shape (..., cols), BF16.
        weight: Compressed weights, gate and up stacked.
        rows: Their output features, a multiple of 64.
        cols: Input features.
        batch_invariant: The bits of a token's outputs do not depend on the other tokens. For Hopper GPUs.

    Returns:
        (..., rows / 2) BF16. There are no gradients.
    """
    return torch.ops.zipserv.gated_linear(x, weight, rows, cols, batch_invariant)


def embedding(ids: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """Rows of compressed weights by their numbers: (...) int32 or int64 to (..., cols) BF16.

    On a GPU a number out of range gives a row of zeros; on the CPU it is an ``IndexError``.
    """
    return torch.ops.zipserv.embedding(ids, weight, rows, cols)


def decompress(weight: Tensor, rows: int, cols: int) -> Tensor:
    """The dense weights, bit for bit: (rows, cols) BF16."""
    return torch.ops.zipserv.decompress(weight, rows, cols)


def encode(dense: Tensor) -> Tensor:
    """Compresses a BF16 matrix where it is. On a GPU no weight goes through the host."""
    return torch.ops.zipserv.encode(dense)


def encode_(weight: Tensor, dense: Tensor) -> Tensor:
    """Compresses a BF16 matrix into ``weight``, which keeps its address. It must have room; see :func:`capacity`."""
    torch.ops.zipserv.encode_(weight, dense)
    return weight


def capacity(stored_bytes: int) -> int:
    """Bytes of a tensor for a matrix of so many stored bytes."""
    return -(-_native.capacity(stored_bytes) // _UNIT) * _UNIT


def prefix(weight: Tensor) -> Tensor:
    """A view of the first bytes of a weight, which operators take in its place: they read on in its memory.

    Compiled code depends on the lengths of tensors, and those of weights on their values. Prefixes are of one length,
    so the code is the same for all layers of a shape, and for other weights.
    """
    return weight[:_UNIT]


def shape(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of compressed weights, from their header. Of a CUDA tensor the header is copied."""
    head = weight[:128].cpu()
    rows, cols = (int(head[at : at + 8].view(torch.int64)) for at in (16, 24))
    return rows, cols


def from_stored(stored: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, int, int]:
    """Compressed weights, rows and columns from the bytes that files hold, after checking all of them.

    Args:
        stored: A ``uint8`` tensor of one dimension. Zeros may follow the matrix.
        device: Where the weights go; by default where ``stored`` is.

    Raises:
        zipserv.Error: The bytes are damaged.
    """
    if stored.dtype != torch.uint8 or stored.dim() != 1:
        raise TypeError(f"stored weights are uint8 of one dimension, got {stored.dtype} of shape {tuple(stored.shape)}")
    source, device = stored.detach().cpu().contiguous(), torch.device(device or stored.device)
    # A copy: the bytes of a mapped file may change after the check, and kernels follow what they find. For a GPU it is
    # page-locked, of memory that PyTorch keeps for the next: fresh pages cost more than what is copied into them.
    host = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=device.type == "cuda")
    rows, cols, stored_bytes = _native.copy_checked(source.data_ptr(), host.data_ptr(), host.numel())
    weight = torch.zeros(capacity(stored_bytes), dtype=torch.uint8, device=device)
    weight[:stored_bytes].copy_(host[:stored_bytes])
    return weight, rows, cols


# CPU


def _memory(weight: Tensor) -> tuple[int, int]:
    """Where a weight starts, and how many bytes it may have from there."""
    return weight.data_ptr(), weight.untyped_storage().nbytes() - weight.storage_offset()


def _cpu_weight(weight: Tensor, rows: int, cols: int) -> tuple[int, int]:
    _check_weight(weight, rows, cols)
    memory = _memory(weight)
    found = _native.shape(*memory)[:2]
    if found != (rows, cols):
        raise ValueError(f"the weights are {found[0]} x {found[1]}, not {rows} x {cols}")
    return memory


def _decompress_cpu(weight: Tensor, rows: int, cols: int) -> Tensor:
    address, length = _cpu_weight(weight, rows, cols)
    dense = torch.empty(rows, cols, dtype=torch.bfloat16)
    _native.decode(address, length, dense.data_ptr(), 2 * dense.numel())
    return dense


def _linear_cpu(x, weight, rows, cols, bias, batch_invariant):
    _check_linear(x, weight, rows, cols, bias)
    return F.linear(x, _decompress_cpu(weight, rows, cols), bias)


def _gated_linear_cpu(x, weight, rows, cols, batch_invariant):
    _check_gated(x, weight, rows, cols)
    gate, up = F.linear(x, _decompress_cpu(weight, rows, cols)).float().chunk(2, -1)
    return (F.silu(gate) * up).bfloat16()


def _embedding_cpu(ids, weight, rows, cols):
    _check_device("ids", ids, weight)
    numbers = ids.flatten().tolist()
    if any(not 0 <= number < rows for number in numbers):
        raise IndexError(f"a number is out of range of {rows} rows")
    address, length = _cpu_weight(weight, rows, cols)
    out = torch.empty(*ids.shape, cols, dtype=torch.bfloat16)
    _native.decode_rows(address, length, numbers, out.data_ptr(), 2 * out.numel())
    return out


def _encode_cpu(dense):
    _check_dense(dense)
    dense = dense.contiguous()
    matrix = _native.encode(dense.data_ptr(), *dense.shape)
    weight = torch.empty(capacity(matrix.stored_bytes), dtype=torch.uint8)
    _native.store(matrix, weight.data_ptr(), weight.numel())
    return weight


def _check_room(weight: Tensor, stored_bytes: int) -> None:
    if weight.numel() < _native.capacity(stored_bytes):
        raise ValueError(
            f"the weights take {_native.capacity(stored_bytes)} bytes, but the tensor has room for {weight.numel()}"
        )


def _encode_into_cpu(weight, dense):
    _check_dense(dense)
    _check_weight(weight, *dense.shape)
    dense = dense.contiguous()
    matrix = _native.encode(dense.data_ptr(), *dense.shape)
    _check_room(weight, matrix.stored_bytes)
    _native.store(matrix, weight.data_ptr(), weight.numel())


# CUDA


def _stream(device: torch.device) -> tuple[int, int]:
    return device.index, torch._C._cuda_getCurrentRawStream(device.index)


def _cuda_weight(weight: Tensor, rows: int, cols: int) -> tuple[int, int, int, int]:
    return *_memory(weight), rows, cols


def _aligned_rows(x: Tensor, cols: int) -> Tensor:
    """Activations as rows that are aligned to 16 bytes, as the kernels for many tokens want them."""
    x = x.reshape(-1, cols)
    if (x.shape[0] > 1 and x.stride(0) % 8) or x.stride(-1) != 1 or x.data_ptr() % 16:
        padded = x.new_empty(x.shape[0], -(-cols // 8) * 8)
        x = padded[:, :cols].copy_(x)
    return x


def _linear_cuda(x, weight, rows, cols, bias, batch_invariant):
    _check_linear(x, weight, rows, cols, bias)
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.bfloat16, device=x.device)
    if y.numel() == 0:
        return y
    if cols == 0:
        return y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    if bias is not None:
        bias = bias.contiguous()
    bias_at = None if bias is None else bias.data_ptr()
    _multiply(_native.linear, x, weight, rows, cols, y.data_ptr(), bias_at, batch_invariant)
    return y


def _multiply(launch, x: Tensor, weight: Tensor, rows: int, cols: int, *operands) -> None:
    x = _aligned_rows(x, cols)
    n = x.shape[0]
    # A launch outside of a graph is a plain one, which waits for whoever wrote the weights. In a graph, launches that
    # start early and read weights at once are safe if nothing in the graph has written the weights before: then
    # tensor, address and version are what they were at a launch before the capture.
    written = None if weight.is_inference() else (weight.data_ptr(), weight._version)
    is_captured = launch(
        *_stream(x.device),
        _cuda_weight(weight, rows, cols),
        x.data_ptr(),
        x.stride(0) if n > 1 else max(cols, x.stride(0)),
        n,
        *operands,
        written is not None and getattr(weight, "_zipserv_read", None) == written,
    )
    if not is_captured:
        weight._zipserv_read = written


def _gated_linear_cuda(x, weight, rows, cols, batch_invariant):
    _check_gated(x, weight, rows, cols)
    y = torch.empty((*x.shape[:-1], rows // 2), dtype=torch.bfloat16, device=x.device)
    x, out = x.reshape(-1, cols), y.view(-1, rows // 2)
    for first in range(0, x.shape[0], _native.MAX_TOKENS):
        some = slice(first, first + _native.MAX_TOKENS)
        # The memory is for what is not done in one launch.
        products = torch.empty((out[some].shape[0], rows), dtype=torch.bfloat16, device=x.device)
        operands = out[some].data_ptr(), products.data_ptr(), batch_invariant
        _multiply(_native.gated_linear, x[some], weight, rows, cols, *operands)
    return y


def _embedding_cuda(ids, weight, rows, cols):
    _check_weight(weight, rows, cols)
    _check_device("ids", ids, weight)
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"numbers of rows are int32 or int64, got {ids.dtype}")
    ids = ids.contiguous()
    out = torch.empty((*ids.shape, cols), dtype=torch.bfloat16, device=ids.device)
    if out.numel():
        is_64_bit = ids.dtype == torch.int64
        weight = _cuda_weight(weight, rows, cols)
        _native.gather(*_stream(ids.device), weight, ids.data_ptr(), is_64_bit, ids.numel(), out.data_ptr())
    return out


def _decompress_cuda(weight, rows, cols):
    _check_weight(weight, rows, cols)
    out = torch.empty(rows, cols, dtype=torch.bfloat16, device=weight.device)
    if out.numel():
        _native.gpu_decompress(*_stream(weight.device), _cuda_weight(weight, rows, cols), out.data_ptr())
    return out


class _Measured:
    """A dense matrix on a GPU whose compressed size is known. To find it out takes a wait for the GPU."""

    def __init__(self, dense: Tensor) -> None:
        _check_dense(dense)
        if dense.stride(-1) != 1 or (dense.shape[0] > 1 and dense.stride(0) < dense.shape[1]):
            dense = dense.contiguous()
        rows, cols = dense.shape
        stride = dense.stride(0) if rows > 1 else cols
        self.dense = dense
        self.scratch = torch.empty(_native.scratch_bytes(), dtype=torch.uint8, device=dense.device)
        self.matrix = _native.measure(
            *_stream(dense.device), dense.data_ptr(), rows, cols, stride, self.scratch.data_ptr()
        )

    def encode_into(self, weight: Tensor) -> None:
        _native.gpu_encode(*_stream(weight.device), self.matrix, weight.data_ptr(), weight.numel())


def _encode_cuda(dense):
    measured = _Measured(dense)
    weight = torch.empty(capacity(measured.matrix.stored_bytes), dtype=torch.uint8, device=dense.device)
    measured.encode_into(weight)
    return weight


def _encode_into_cuda(weight, dense):
    _check_dense(dense)
    _check_weight(weight, *dense.shape)
    _check_device("dense", dense, weight)
    measured = _Measured(dense)
    _check_room(weight, measured.matrix.stored_bytes)
    measured.encode_into(weight)


for _name, _cpu, _cuda in (
    ("linear", _linear_cpu, _linear_cuda),
    ("gated_linear", _gated_linear_cpu, _gated_linear_cuda),
    ("embedding", _embedding_cpu, _embedding_cuda),
    ("decompress", _decompress_cpu, _decompress_cuda),
    ("encode", _encode_cpu, _encode_cuda),
    ("encode_", _encode_into_cpu, _encode_into_cuda),
):
    _library.impl(_name, _cpu, "CPU")
    _library.impl(_name, _cuda, "CUDA")


# Shapes


@torch.library.register_fake("zipserv::linear", lib=_library)
def _(x, weight, rows, cols, bias, batch_invariant):
    _check_linear(x, weight, rows, cols, bias)
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.register_fake("zipserv::gated_linear", lib=_library)
def _(x, weight, rows, cols, batch_invariant):
    _check_gated(x, weight, rows, cols)
    return x.new_empty((*x.shape[:-1], rows // 2))


@torch.library.register_fake("zipserv::embedding", lib=_library)
def _(ids, weight, rows, cols):
    _check_weight(weight, rows, cols)
    return ids.new_empty((*ids.shape, cols), dtype=torch.bfloat16)


@torch.library.register_fake("zipserv::decompress", lib=_library)
def _(weight, rows, cols):
    _check_weight(weight, rows, cols)
    return weight.new_empty((rows, cols), dtype=torch.bfloat16)


@torch.library.register_fake("zipserv::encode", lib=_library)
def _(dense):
    _check_dense(dense)
    # The number of bytes depends on the weights.
    return dense.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


@torch.library.register_fake("zipserv::encode_", lib=_library)
def _(weight, dense):
    _check_dense(dense)
    _check_weight(weight, 0, 0)


# Gradients


def _keep(ctx, inputs, output):
    _, weight, ctx.rows, ctx.cols, bias, _ = inputs
    ctx.save_for_backward(weight)
    ctx.has_bias = bias is not None


def _backward(ctx, grad):
    (weight,) = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = grad @ torch.ops.zipserv.decompress(weight, ctx.rows, ctx.cols)
    if ctx.has_bias and ctx.needs_input_grad[4]:
        grad_bias = grad.reshape(-1, ctx.rows).sum(0)
    return grad_x, None, None, None, grad_bias, None


torch.library.register_autograd("zipserv::linear", _backward, setup_context=_keep, lib=_library)
