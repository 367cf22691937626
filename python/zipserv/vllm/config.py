"""Which layers are compressed."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.platforms import current_platform

import zipserv
from zipserv.torch.early import let_kernels_start_early
from zipserv.vllm.experts import ZipservExpertsMethod, why_dense
from zipserv.vllm.layers import ZipservEmbeddingMethod, ZipservLinearMethod, stays_dense


class ZipservConfig(QuantizationConfig):
    """Quantization ``zipserv``, which is lossless.

    Args:
        modules_to_not_convert: Patterns of names of layers that stay dense.
    """

    def __init__(self, modules_to_not_convert: list[str] | None = None) -> None:
        super().__init__()
        self.modules_to_not_convert = modules_to_not_convert or []
        # Until the model's configuration is known.
        self._may_tie = True

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
        if not current_platform.is_cuda():
            raise ValueError(f"zipserv serves on NVIDIA GPUs, not on {current_platform.device_name}")
        if hf_config is not None:
            # vLLM keeps compiled code by what it knows of a model, which is its configuration.
            hf_config.zipserv_version = zipserv.__version__
            text_config = hf_config.get_text_config()
            self._may_tie = any(getattr(config, "tie_word_embeddings", True) for config in (hf_config, text_config))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        let_kernels_start_early()
        skipped = any(fnmatch(prefix, pattern) for pattern in self.modules_to_not_convert)
        if isinstance(layer, LinearBase):
            return UnquantizedLinearMethod() if skipped else ZipservLinearMethod(prefix)
        if isinstance(layer, VocabParallelEmbedding):
            if skipped:
                return UnquantizedEmbeddingMethod()
            is_untied_head = isinstance(layer, ParallelLMHead) and not self._may_tie
            return ZipservEmbeddingMethod(prefix, is_untied_head=is_untied_head)
        if isinstance(layer, RoutedExperts):
            why = "as asked for" if skipped else why_dense(layer)
            if why is None:
                return ZipservExpertsMethod(prefix, layer)
            stays_dense("routed experts", why)
        return None
