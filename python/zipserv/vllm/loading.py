"""Weights of compressed folders, decoded on the GPU before vLLM's loaders see them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

import zipserv
from zipserv.torch import ops


def install() -> None:
    """Has vLLM's loader decode what is stored compressed. Other files are read as ever."""
    original = DefaultModelLoader._get_weights_iterator
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def weights_iterator(self, source):
        shapes = _stored(self, source)
        weights = original(self, source)
        return _decoded(weights, shapes, source.prefix) if shapes else weights

    DefaultModelLoader._get_weights_iterator = weights_iterator


def _stored(loader: DefaultModelLoader, source) -> dict[str, tuple[str, str, list[int]]]:
    """The file, the original name and the original shape of each stored matrix, by the name that it is stored under."""
    _, files, is_safetensors = loader._prepare_weights(
        source.model_or_path,
        source.subfolder,
        source.revision,
        source.fall_back_to_pt,
        source.allow_patterns_overrides,
    )
    stored = {}
    for path in files if is_safetensors else []:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            suffix = metadata.get("zipserv.suffix")
            if suffix is None:
                continue
            originals = json.loads(metadata["zipserv.header"])
            for name in file.keys():
                original = name.removesuffix(suffix)
                if name.endswith(suffix) and original in originals:
                    stored[name] = path, original, originals[original]["shape"]
    return stored


def _decoded(weights: Iterator[tuple[str, Tensor]], stored: dict, prefix: str) -> Iterator[tuple[str, Tensor]]:
    device = torch.device(current_platform.device_type)
    for name, tensor in weights:
        if (found := stored.get(name.removeprefix(prefix))) is None:
            yield name, tensor
            continue
        file, original, shape = found
        try:
            weight, rows, cols = ops.from_stored(tensor, device)
        except zipserv.Error as error:
            raise zipserv.Error(f"{file}: tensor `{original}`: {error}", file, original) from error
        yield prefix + original, ops.decompress(weight, rows, cols).view(shape)
