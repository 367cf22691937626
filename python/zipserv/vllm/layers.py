"""Linear layers and embeddings with compressed weights.

Weights of linear layers and heads are created on the meta device, and vLLM materializes a layer when all of its weights
have come: merged, as those of Q, K and V are, and this process's shard of them. Then the layer is encoded on the GPU,
and its dense weight goes. So no more than one of them is dense at a time. A table of embeddings, to which models tie
their head in ways of their own, is dense until all is loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm import envs
from vllm.logger import init_logger
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.linear import LinearMethodBase, MergedColumnParallelLinear, UnquantizedLinearMethod
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


def pack(layer: nn.Module, of: str, name: str, dense: Tensor) -> nn.Parameter:
    """Compressed weights of a matrix. Those of a reload go to where the old ones are, if they are smaller.

    Args:
        layer: The layer, which keeps the number of bytes.
        of: Which of its weights it is.
        name: The layer's name.
        dense: The matrix.
    """
    # Tensors of inference mode have no version, by which launches tell new weights from old ones.
    with torch.inference_mode(False), torch.no_grad():
        weight = ops.encode(dense.detach())
        room = getattr(layer, f"zipserv_bytes_{of}", weight.numel())
        if weight.numel() > room:
            raise ValueError(f"zipserv: the new weights of {name} take more than the {room} bytes of the old")
        setattr(layer, f"zipserv_bytes_{of}", room)
        if weight.numel() < room:
            weight = torch.cat([weight, weight.new_zeros(room - weight.numel())])
        return nn.Parameter(weight, requires_grad=False)


class OnlinePacking:
    """Methods of layers that wait for their weights on the meta device."""


class Packing(OnlinePacking, QuantizeMethodBase):
    """What layers of one matrix do.

    The method for dense weights is kept, not inherited: vLLM takes a layer for dense by the type of its method.
    """

    def __init__(self, name: str, dense: QuantizeMethodBase, *, uses_meta_device: bool) -> None:
        self._name = name
        self._dense = dense
        self.uses_meta_device = uses_meta_device

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ) -> None:
        sizes = input_size_per_partition, output_partition_sizes, input_size, output_size
        if params_dtype != torch.bfloat16:
            stays_dense(f"weights of {params_dtype}", "only BF16 is compressed")
        if params_dtype != torch.bfloat16 or not self.uses_meta_device:
            self._dense.create_weights(layer, *sizes, params_dtype, **extra_weight_attrs)
            return
        with torch.device("meta"):
            self._dense.create_weights(layer, *sizes, params_dtype, **extra_weight_attrs)
        initialize_online_processing(layer)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        dense = layer.weight
        if dense.dtype != torch.bfloat16 or getattr(layer, "zipserv_dense", False):
            return
        if dense.is_meta:
            raise ValueError(f"zipserv: no weights of {self._name} have come")
        if dense.numel() < _LEAST_WEIGHTS:
            self._keep_dense(layer, "small layers", f"less than {_LEAST_WEIGHTS} weights")
            return
        weight = pack(layer, "weight", self._name, dense)
        if weight.numel() >= dense.nbytes:
            self._keep_dense(layer, "some layers", "they would not shrink")
            return
        layer.zipserv_shape = tuple(dense.shape)
        layer.weight = weight
        # The same memory, of a length that does not depend on weights, for vLLM's compiled graphs.
        layer.zipserv_weight = nn.Parameter(ops.prefix(weight), requires_grad=False)

    def _keep_dense(self, layer: nn.Module, what: str, why: str) -> None:
        stays_dense(what, why)
        layer.zipserv_dense = True
        self._dense.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not hasattr(layer, "zipserv_shape"):
            return self._dense.apply(layer, x, bias)
        weight, (rows, cols) = layer.zipserv_weight, layer.zipserv_shape
        is_invariant = bool(envs.VLLM_BATCH_INVARIANT)
        if getattr(layer, "zipserv_gates", False):
            return ops.gated_linear(x, weight, rows, cols, batch_invariant=is_invariant)
        return ops.linear(x, weight, rows, cols, bias, batch_invariant=is_invariant)


class ZipservLinearMethod(Packing, LinearMethodBase):
    """A linear layer."""

    def __init__(self, name: str) -> None:
        super().__init__(name, UnquantizedLinearMethod(), uses_meta_device=True)


class Gate(nn.Module):
    """In place of the activation of a gated MLP, whose product has done it already, unless it is dense.

    Args:
        activation: What it stands for.
        features: Those that are left by it.
    """

    def __init__(self, activation: nn.Module, features: int) -> None:
        super().__init__()
        self.activation = activation
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] == self.features else self.activation(x)


def gate(mlp: nn.Module) -> None:
    """Has the first product of an MLP do ``silu(gate) * up`` too, if it is one of ``gate_up_proj`` and ``act_fn``."""
    product, activation = getattr(mlp, "gate_up_proj", None), getattr(mlp, "act_fn", None)
    if not isinstance(product, MergedColumnParallelLinear) or type(activation) is not SiluAndMul:
        return
    sizes = product.output_partition_sizes
    has_halves = len(sizes) == 2 and sizes[0] == sizes[1] and sizes[0] % 32 == 0
    if not has_halves or not isinstance(product.quant_method, ZipservLinearMethod) or product.bias is not None:
        return
    product.zipserv_gates = True
    mlp.act_fn = Gate(activation, sizes[0])


class ZipservEmbeddingMethod(Packing):
    """A table of embeddings, or the head of a language model, or one that is both.

    Args:
        is_untied_head: Nothing shares its weights, so it is packed as soon as they have come.
    """

    def __init__(self, name: str, *, is_untied_head: bool) -> None:
        super().__init__(name, UnquantizedEmbeddingMethod(), uses_meta_device=is_untied_head)

    def embedding(self, layer: nn.Module, input_: Tensor) -> Tensor:
        if not hasattr(layer, "zipserv_shape"):
            return self._dense.embedding(layer, input_)
        return ops.embedding(input_, layer.zipserv_weight, *layer.zipserv_shape)

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
            layer.zipserv_weight = table.zipserv_weight
            layer.zipserv_shape = table.zipserv_shape
