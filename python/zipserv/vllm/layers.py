"""Linear layers and embeddings with compressed weights.

Weights of linear layers are created on the meta device, and vLLM materializes a layer when all of its weights have
come: merged, as those of Q, K and V are, and this process's shard of them. Then the layer is encoded on the GPU, and
its dense weight goes. So no more than one of them is dense at a time. Tables of embeddings and heads, which models tie
in ways of their own, are dense until all is loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm import envs
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import initialize_online_processing

from zipserv.torch import ops

logger = init_logger("vllm.zipserv")

#: Weights of a matrix below which dense ones are as fast.
_LEAST_WEIGHTS = 1 << 20


def stays_dense(what: str, why: str) -> None:
    """Says, once, what is not compressed."""
    logger.info_once("zipserv: %s stay dense: %s", what, why)


class _Packing(QuantizeMethodBase):
    """What both kinds of layers do with their weight. The other base is the dense method."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        dense = layer.weight
        if dense.dtype != torch.bfloat16 or getattr(layer, "zipserv_dense", False):
            return
        if dense.numel() < _LEAST_WEIGHTS:
            stays_dense("small layers", f"less than {_LEAST_WEIGHTS} weights")
            layer.zipserv_dense = True
            return
        # Tensors of inference mode have no version, by which launches tell new weights from old ones.
        with torch.inference_mode(False), torch.no_grad():
            weight = ops.encode(dense.detach())
            if weight.numel() >= dense.nbytes:
                stays_dense("some layers", "they would not shrink")
                layer.zipserv_dense = True
                return
            # A reload goes to where the old weights are.
            room = getattr(layer, "zipserv_bytes", 0)
            if weight.numel() < room:
                weight = torch.cat([weight, weight.new_zeros(room - weight.numel())])
            layer.zipserv_bytes = weight.numel()
            layer.zipserv_shape = tuple(dense.shape)
            layer.weight = nn.Parameter(weight, requires_grad=False)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if layer.weight.dtype != torch.uint8:
            return super().apply(layer, x, bias)
        rows, cols = layer.zipserv_shape
        return ops.linear(x, layer.weight, rows, cols, bias, batch_invariant=bool(envs.VLLM_BATCH_INVARIANT))


class ZipservLinearMethod(_Packing, UnquantizedLinearMethod):
    """A linear layer."""

    uses_meta_device = True

    def create_weights(self, layer: nn.Module, *args, params_dtype: torch.dtype, **kwargs) -> None:
        if params_dtype != torch.bfloat16:
            stays_dense(f"weights of {params_dtype}", "only BF16 is compressed")
            super().create_weights(layer, *args, params_dtype=params_dtype, **kwargs)
            return
        with torch.device("meta"):
            super().create_weights(layer, *args, params_dtype=params_dtype, **kwargs)
        initialize_online_processing(layer)


class ZipservEmbeddingMethod(_Packing, UnquantizedEmbeddingMethod):
    """A table of embeddings, or the head of a language model, or one that is both."""

    def embedding(self, layer: nn.Module, input_: Tensor) -> Tensor:
        if layer.weight.dtype != torch.uint8:
            return super().embedding(layer, input_)
        return ops.embedding(input_, layer.weight, *layer.zipserv_shape)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        # The table's weight becomes another parameter when it is packed, and then the head's too. The tuple keeps the
        # table from being a module of the head. A model that ties by assignment instead has both packed, each alone.
        layer.weight = embed_tokens.weight
        del layer.weight
        layer.zipserv_tied = (embed_tokens,)
        return layer

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        (table,) = getattr(layer, "zipserv_tied", (None,))
        if table is None:
            super().process_weights_after_loading(layer)
            return
        table.quant_method.process_weights_after_loading(table)
        layer.weight = table.weight
        if hasattr(table, "zipserv_shape"):
            layer.zipserv_shape = table.zipserv_shape
