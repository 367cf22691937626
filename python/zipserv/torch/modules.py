"""Modules with compressed weights, in place of PyTorch's own."""

from __future__ import annotations

import logging
from collections.abc import Collection
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from zipserv.torch import ops
from zipserv.torch.experts import encode_experts, experts_mlp

logger = logging.getLogger("zipserv")


def _parameter(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _encoded(dense: Tensor) -> nn.Parameter | None:
    """Compressed weights, if they are smaller than the dense ones."""
    # Tensors of inference mode have no version, by which launches tell new weights from old ones.
    with torch.inference_mode(False), torch.no_grad():
        weight = ops.encode(dense.detach())
        return _parameter(weight) if weight.numel() < dense.nbytes else None


class _Compressed(nn.Module):
    """A module with the compressed weights of a matrix.

    ``weight`` is a ``uint8`` parameter, so ``state_dict``, ``.to(device)`` and offloading treat it like any other, and
    dtypes leave it alone. It may be shared, as tied weights are.
    """

    weight: nn.Parameter

    def __init__(self, rows: int, cols: int, weight: Tensor) -> None:
        super().__init__()
        self._rows, self._cols = rows, cols
        self.weight = weight if isinstance(weight, nn.Parameter) else _parameter(weight)

    def dense(self) -> Tensor:
        """The dense weights, bit for bit."""
        return ops.decompress(self.weight, self._rows, self._cols)

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Takes other weights: a dense BF16 matrix, or compressed ones.

        They go where the old ones are if there is room, so that captured graphs and compiled code use them from now
        on. If not, ``weight`` becomes a new parameter, and graphs must be captured again.
        """
        new, rows, cols = self._packed(weight)
        if (rows, cols) != (self._rows, self._cols):
            raise ValueError(f"weights of {rows} x {cols} do not fit a layer of {self._rows} x {self._cols}")
        room = self.weight.numel()
        if room < new.numel():
            self.weight = _parameter(new)
            return
        self.weight[: new.numel()].copy_(new)
        self.weight[new.numel() :].zero_()

    def _packed(self, weight: Tensor) -> tuple[Tensor, int, int]:
        device = self.weight.device
        if weight.dtype == torch.uint8:
            return ops.from_stored(weight, device)
        return ops.encode(weight.to(device)), *weight.shape

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        key = prefix + "weight"
        given = state_dict.get(key)
        if given is not None:
            try:
                if local_metadata.get("assign_to_params_buffers", False):
                    new, rows, cols = self._packed(given)
                    if (rows, cols) != (self._rows, self._cols):
                        raise ValueError(
                            f"weights of {rows} x {cols} do not fit a layer of {self._rows} x {self._cols}"
                        )
                    self.weight = _parameter(new)
                else:
                    self.write(given)
            except Exception as error:
                error_msgs.append(f"{key}: {error}")
            # What is left is the rest, and a weight that is as it should be.
            state_dict = {**state_dict, key: self.weight.data}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class Linear(_Compressed):
    """``nn.Linear`` with compressed weights.

    Args:
        in_features: Input features, K.
        out_features: Output features, M.
        weight: Compressed weights of M x K, see :mod:`zipserv.torch.ops`.
        bias: BF16, of shape (M,).
        batch_invariant: The bits of a token's outputs do not depend on the other tokens. For Hopper GPUs.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        super().__init__(out_features, in_features, weight)
        self.in_features, self.out_features = in_features, out_features
        self.batch_invariant = batch_invariant
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, linear: nn.Linear, **options) -> Linear:
        """Packs a layer where it is. Its bias is shared."""
        weight = ops.encode(linear.weight.detach())
        return cls(linear.in_features, linear.out_features, weight, linear.bias, **options)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(
            x, self.weight, self.out_features, self.in_features, self.bias, batch_invariant=self.batch_invariant
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Embedding(_Compressed):
    """``nn.Embedding`` with compressed weights, of which rows are decoded as they are looked up."""

    def __init__(self, num_embeddings: int, embedding_dim: int, weight: Tensor) -> None:
        super().__init__(num_embeddings, embedding_dim, weight)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    @classmethod
    @torch.no_grad()
    def from_dense(cls, embedding: nn.Embedding) -> Embedding:
        """Packs a table where it is."""
        return cls(embedding.num_embeddings, embedding.embedding_dim, ops.encode(embedding.weight.detach()))

    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight, self.num_embeddings, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Experts(nn.Module):
    """The routed experts of a layer with compressed weights: ``down(silu(gate(x)) * up(x))`` of each, added up.

    It takes the place of experts as transformers stacks them: ``gate_up_proj`` (experts, 2 * inner, hidden) and
    ``down_proj`` (experts, hidden, inner), which become ``uint8`` parameters.
    """

    def __init__(
        self,
        experts: int,
        hidden: int,
        inner: int,
        gate_up: Tensor,
        down: Tensor,
        *,
        batch_invariant: bool = False,
    ) -> None:
        super().__init__()
        self.batch_invariant = batch_invariant
        self.num_experts, self.hidden_dim, self.intermediate_dim = experts, hidden, inner
        self.gate_up_proj, self.down_proj = _parameter(gate_up), _parameter(down)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, gate_up: Tensor, down: Tensor, **options) -> Experts:
        """Packs both stacks where they are."""
        experts, hidden, inner = down.shape
        packed = encode_experts(gate_up.detach()), encode_experts(down.detach())
        return cls(experts, hidden, inner, *packed, **options)

    def dense(self) -> tuple[Tensor, Tensor]:
        """The dense stacks, bit for bit."""
        e, h, i = self.num_experts, self.hidden_dim, self.intermediate_dim
        gate_up = ops.decompress(self.gate_up_proj, e * 2 * i, h).view(e, 2 * i, h)
        return gate_up, ops.decompress(self.down_proj, e * h, i).view(e, h, i)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As the experts of transformers: (tokens, hidden), experts of each token, and what they are multiplied by."""
        return experts_mlp(
            hidden_states,
            self.gate_up_proj,
            self.down_proj,
            top_k_index,
            top_k_weights,
            self.num_experts,
            self.intermediate_dim,
            batch_invariant=self.batch_invariant,
        )

    def extra_repr(self) -> str:
        return f"{self.num_experts}, hidden_dim={self.hidden_dim}, intermediate_dim={self.intermediate_dim}"


def _are_experts(module: nn.Module) -> bool:
    """Whether a module is one of transformers' with stacked experts."""
    stacks = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    return all(isinstance(stack, nn.Parameter) and stack.dim() == 3 for stack in stacks)


def _reason_for_experts(name: str, module: nn.Module, skip: Collection[str]) -> str | None:
    """Why experts stay dense, if they must."""
    if any(fnmatch(name, pattern) for pattern in skip):
        return "as asked for"
    gate_up, down = module.gate_up_proj, module.down_proj
    if gate_up.dtype != torch.bfloat16 or down.dtype != torch.bfloat16:
        return f"{gate_up.dtype}, not BF16"
    if getattr(module, "is_transposed", False) or getattr(module, "has_bias", False):
        return "transposed, or with biases"
    if not getattr(module, "is_concatenated", True) or not getattr(module, "has_gate", True):
        return "gate and up are not stacked one after the other"
    if "silu" not in type(getattr(module, "act_fn", None)).__name__.lower():
        return "their activation is not silu(gate) * up"
    apply_gate = getattr(type(module), "_apply_gate", None)
    if apply_gate is not None and apply_gate.__name__ != "_default_apply_gate":
        return "their gates are of their own"
    experts, hidden, inner = down.shape
    if gate_up.shape != (experts, 2 * inner, hidden) or hidden % 32 or inner % 32:
        return f"stacks of shapes {tuple(gate_up.shape)} and {tuple(down.shape)}"
    return None


def _reason(name: str, module: nn.Module, skip: Collection[str]) -> str | None:
    """Why a layer stays dense, if it must."""
    if any(fnmatch(name, pattern) for pattern in skip):
        return "as asked for"
    if module.weight.dtype != torch.bfloat16:
        return f"{module.weight.dtype}, not BF16"
    if module.weight.numel() == 0 or module.weight.dim() != 2:
        return f"weights of shape {tuple(module.weight.shape)}"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        return "an embedding that changes its weights"
    return None


def compress_experts(model: nn.Module, *, skip: Collection[str] = (), batch_invariant: bool = False) -> nn.Module:
    """Packs the stacked experts of transformers' mixtures in place, where their weights are.

    Args:
        model: The model, or a single layer's experts, which are returned packed.
        skip: Patterns of names that stay dense.
        batch_invariant: The bits of a token's outputs do not depend on the other tokens.

    Returns:
        The model.
    """
    for name, module in [(name, module) for name, module in model.named_modules() if _are_experts(module)]:
        if reason := _reason_for_experts(name, module, skip):
            logger.info("%s stay dense: %s", name, reason)
            continue
        packed = Experts.from_dense(module.gate_up_proj, module.down_proj, batch_invariant=batch_invariant)
        packed.train(module.training)
        if module is model:
            return packed
        model.set_submodule(name, packed)
    return model


def compress(model: nn.Module, *, skip: Collection[str] = (), experts: bool = False) -> nn.Module:
    """Packs every ``nn.Linear`` and ``nn.Embedding`` of a model in place, bit for bit, where its weights are.

    Weights that several modules share are packed once and stay shared. Subclasses, other dtypes and what would not
    shrink stay dense, with a line at level INFO of the logger ``zipserv``.

    Args:
        model: The model, or a single layer, which is returned packed.
        skip: Patterns of names, such as ``"lm_head"`` or ``"*.gate"``, that stay dense.
        experts: Whether to pack stacked experts too, see :func:`compress_experts`. Their kernels were not run on a GPU
            yet.

    Returns:
        The model.
    """
    if experts:
        packed = compress_experts(model, skip=skip)
        if packed is not model:
            return packed
    layers = [(name, module) for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)]
    weights = [id(module.weight) for _, module in layers]
    # Packed weights of dense ones that are shared. These are kept, or their identity would be given to others.
    shared: dict[int, tuple[nn.Parameter, nn.Parameter | None]] = {}
    for name, module in layers:
        if reason := _reason(name, module, skip):
            logger.info("%s stays dense: %s", name, reason)
            continue
        old = module.weight
        new = shared[id(old)][1] if id(old) in shared else _encoded(old)
        if weights.count(id(old)) > 1:
            shared[id(old)] = old, new
        if new is None:
            logger.info("%s stays dense: it would not shrink", name)
            continue
        if isinstance(module, nn.Linear):
            packed = Linear(module.in_features, module.out_features, new, module.bias)
        else:
            packed = Embedding(module.num_embeddings, module.embedding_dim, new)
        packed.train(module.training)
        if module is model:
            return packed
        model.set_submodule(name, packed)
    return model
