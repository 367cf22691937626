"""Which layers are compressed."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

import zipserv
from zipserv.vllm.layers import ZipservEmbeddingMethod, ZipservLinearMethod, stays_dense


class ZipservConfig(QuantizationConfig):
    """Quantization ``zipserv``, which is lossless.

    Args:
        modules_to_not_convert: Patterns of names of layers that stay dense.
    """

    def __init__(self, modules_to_not_convert: list[str] | None = None) -> None:
        super().__init__()
        self.modules_to_not_convert = modules_to_not_convert or []

    @classmethod
    def get_name(cls) -> str:
        return "zipserv"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        # None is needed, so that an ordinary checkpoint will do.
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ZipservConfig:
        return cls(config.get("modules_to_not_convert"))

    def maybe_update_config(self, model_name: str, hf_config=None, revision: str | None = None) -> None:
        # vLLM keeps compiled code by what it knows of a model, which is its configuration.
        if hf_config is not None:
            hf_config.zipserv_version = zipserv.__version__

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        skipped = any(fnmatch(prefix, pattern) for pattern in self.modules_to_not_convert)
        if isinstance(layer, LinearBase):
            return UnquantizedLinearMethod() if skipped else ZipservLinearMethod()
        if isinstance(layer, VocabParallelEmbedding):
            return UnquantizedEmbeddingMethod() if skipped else ZipservEmbeddingMethod()
        if isinstance(layer, RoutedExperts):
            stays_dense("routed experts", "there are no kernels for them yet")
        return None
