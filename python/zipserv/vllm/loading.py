"""Between files and layers: weights of compressed folders are decoded on the GPU before vLLM's loaders see them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info, initialize_online_processing
from vllm.platforms import current_platform

from zipserv.torch.stored import Stored, stored_tensors
from zipserv.vllm.layers import OnlinePacking, gate


def install() -> None:
    """Has vLLM's loader decode what is stored compressed, and see that no layer is left out. It may be called again."""
    original_iterator = DefaultModelLoader._get_weights_iterator
    if hasattr(original_iterator, "__wrapped__"):
        return

    @functools.wraps(original_iterator)
    def weights_iterator(self, source):
        stored = _stored(self, source)
        weights = original_iterator(self, source)
        return _decoded(weights, stored, source.prefix) if stored else weights

    DefaultModelLoader._get_weights_iterator = weights_iterator

    original_load = DefaultModelLoader.load_weights

    @functools.wraps(original_load)
    def load_weights(self, model, model_config):
        waiting = list(_waiting(model))
        for _, layer in waiting:
            # Again, for what came after the layer's own weights: its bias, and loaders that models have set.
            initialize_online_processing(layer)
        original_load(self, model, model_config)
        for name, layer in waiting:
            if _is_waiting(layer) and not get_layerwise_info(layer).load_numel:
                raise ValueError(f"no weights of {name} in {model_config.model}")
        # What adapters add to gate and up must come before the activation.
        if get_current_vllm_config().lora_config is None:
            for module in list(model.modules()):
                gate(module)

    DefaultModelLoader.load_weights = load_weights


def _waiting(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers that are packed once their weights have come."""
    for name, layer in model.named_modules():
        if isinstance(getattr(layer, "quant_method", None), OnlinePacking) and _is_waiting(layer):
            yield name, layer


def _is_waiting(layer: nn.Module) -> bool:
    return any(weight.is_meta for weight in layer.parameters(recurse=False))


def _stored(loader: DefaultModelLoader, source) -> dict[str, Stored]:
    """The stored tensors, by the names that they are stored under."""
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
            stored |= stored_tensors(path, file.keys(), file.metadata())
    return stored


def _decoded(
    weights: Iterator[tuple[str, Tensor]], stored: dict[str, Stored], prefix: str
) -> Iterator[tuple[str, Tensor]]:
    # Decoded weights have memory of their own, or packed ones would get their blocks, which are larger.
    pool = torch.cuda.MemPool() if torch.cuda.is_available() else None
    for name, tensor in weights:
        if (found := stored.get(name.removeprefix(prefix))) is None:
            yield name, tensor
        else:
            # Nothing here keeps what is handed on, or two of them would be on the GPU at a time.
            yield prefix + found.name, _dense(found, tensor, pool)


def _dense(found: Stored, tensor: Tensor, pool: torch.cuda.MemPool | None) -> Tensor:
    with torch.cuda.use_mem_pool(pool) if pool else contextlib.nullcontext():
        return found.dense(tensor, current_platform.device_type)
