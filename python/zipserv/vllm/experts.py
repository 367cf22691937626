"""Routed experts with compressed weights: gate and up of all experts are one stack of matrices, down another."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from vllm import envs
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.model_loader.reload.layerwise import initialize_online_processing

from zipserv.torch import experts_mlp
from zipserv.vllm.layers import OnlinePacking, pack

#: Output features of an expert's matrices, and of their halves, are multiples of this.
_ROWS = 32


def why_dense(layer: RoutedExperts) -> str | None:
    """Why a layer's experts cannot be compressed, if they cannot."""
    moe = layer.moe_config
    if os.environ.get("ZIPSERV_EXPERTS") == "0":
        return "as ZIPSERV_EXPERTS=0 asks for"
    if layer.params_dtype != torch.bfloat16:
        return f"their weights are {layer.params_dtype}, and only BF16 is compressed"
    if layer.activation != MoEActivation.SILU or moe.swiglu_limit or moe.swiglu_alpha or moe.swiglu_beta:
        return "their activation is not silu(gate) * up"
    if moe.has_bias:
        return "they have biases"
    if layer.apply_router_weight_on_input:
        return "routers' weights go to their inputs"
    if moe.moe_parallel_config.use_ep:
        return "expert parallelism is not supported; tensor parallelism is"
    if moe.is_lora_enabled:
        return "adapters are not supported"
    if moe.hidden_dim % _ROWS or moe.intermediate_size_per_partition % _ROWS:
        return f"their sizes are no multiples of {_ROWS}"
    return None


class ZipservExpertsMethod(OnlinePacking, FusedMoEMethodBase):
    """The experts of a layer, packed as soon as the weights of all of them have come."""

    uses_meta_device = True

    def __init__(self, name: str, layer: RoutedExperts) -> None:
        super().__init__(layer.moe_config)
        self._name = name

    def create_weights(self, layer: RoutedExperts, *args, **kwargs) -> None:
        with torch.device("meta"):
            # Names, shapes and loaders as those of dense ones.
            UnquantizedFusedMoEMethod.create_weights(self, layer, *args, **kwargs)
        initialize_online_processing(layer)

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        for of in ("w13_weight", "w2_weight"):
            dense = getattr(layer, of)
            if dense.dtype != torch.bfloat16:
                continue
            if dense.is_meta:
                raise ValueError(f"zipserv: no weights of {self._name} have come")
            setattr(layer, of, pack(layer, of, self._name, dense.view(-1, dense.shape[-1])))
            # Or two stacks would be dense at a time.
            del dense

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()

    def apply(
        self,
        layer: RoutedExperts,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        return experts_mlp(
            x,
            layer.w13_weight,
            layer.w2_weight,
            topk_ids,
            topk_weights,
            layer.local_num_experts,
            self.moe.intermediate_size_per_partition,
            batch_invariant=bool(envs.VLLM_BATCH_INVARIANT),
        )
