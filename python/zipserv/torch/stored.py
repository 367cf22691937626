"""Tensors as compressed files hold them: matrices in the layout of the GPU, or byte planes of any dtype."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import zipserv
from zipserv import _native
from zipserv.torch import ops
from zipserv.torch.experts import _stride

if TYPE_CHECKING:
    from collections.abc import Iterable

#: PyTorch's names of safetensors' dtypes.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}


class Stored(NamedTuple):
    """Where a stored tensor is from, and what it was."""

    file: str
    name: str
    #: As safetensors spells it.
    dtype: str
    shape: torch.Size

    def is_planes(self, stored: Tensor) -> bool:
        """Whether the stored bytes are byte planes, and no matrix for kernels."""
        head = stored[:16].cpu()
        return _native.is_planes(head.data_ptr(), head.numel())

    def weight(self, stored: Tensor, device: torch.device | str | None = None) -> Tensor:
        """What operators take, after checking all bytes of a matrix; by default where these are."""
        weight, rows, cols = self._checked(stored, device)
        if rows != math.prod(self.shape[:-1]):
            raise self._other_shape(rows, cols)
        return weight

    def dense(self, stored: Tensor, device: torch.device | str | None = None) -> Tensor:
        """The tensor as it was; by default where the stored bytes are. Byte planes are restored on the host."""
        if self.is_planes(stored):
            return self._unpacked(stored).to(device or stored.device)
        weight, rows, cols = self._checked(stored, device)
        dense = ops.decompress(weight, rows, cols)
        if rows == math.prod(self.shape[:-1]):
            return dense.view(self.shape)
        # Padding follows the rows of each expert.
        *outer, rows, cols = self.shape
        return dense.view(*outer, _stride(rows), cols)[..., :rows, :].contiguous()

    def _checked(self, stored: Tensor, device: torch.device | str | None) -> tuple[Tensor, int, int]:
        """The matrix, its rows and columns: those of the shape, or of the aligned stack that has it."""
        try:
            weight, rows, cols = ops.from_stored(stored, device)
        except zipserv.Error as error:
            raise self.error(str(error)) from None
        fitting = {math.prod(self.shape[:-1])}
        if len(self.shape) > 2:
            fitting.add(math.prod(self.shape[:-2]) * _stride(self.shape[-2]))
        if rows not in fitting or cols != self.shape[-1]:
            raise self._other_shape(rows, cols)
        return weight, rows, cols

    def _other_shape(self, rows: int, cols: int) -> zipserv.Error:
        return self.error(f"a matrix of {rows} x {cols} for the shape {list(self.shape)}")

    def _unpacked(self, stored: Tensor) -> Tensor:
        dtype = getattr(torch, _DTYPES.get(self.dtype, ""), None)
        if dtype is None:
            raise self.error(f"PyTorch has no {self.dtype}")
        host = stored.detach().cpu().contiguous()
        tensor = torch.empty(self.shape, dtype=dtype)
        try:
            _native.unpack(host.data_ptr(), host.numel(), tensor.data_ptr(), tensor.nbytes)
        except zipserv.Error as error:
            raise self.error(str(error)) from None
        return tensor

    def error(self, message: str) -> zipserv.Error:
        """An error that names the tensor and its file."""
        return zipserv.Error(f"{self.file}: tensor `{self.name}`: {message}", self.file, self.name)


def stored_tensors(file: str, keys: Iterable[str], metadata: dict[str, str] | None) -> dict[str, Stored]:
    """The tensors among the keys of a ``.safetensors`` file that are stored compressed."""
    suffix = (metadata or {}).get("zipserv.suffix")
    if suffix is None:
        return {}
    originals = json.loads(metadata["zipserv.header"])
    stored = {}
    for key in keys:
        name = key.removesuffix(suffix)
        if key != name and key not in originals and name in originals:
            original = originals[name]
            stored[key] = Stored(file, name, original["dtype"], torch.Size(original["shape"]))
    return stored
