"""Compressed models in Hugging Face transformers, with `import zipserv.transformers`.

>>> import zipserv.transformers
>>> from transformers import AutoModelForCausalLM
>>> model = AutoModelForCausalLM.from_pretrained("folder")  # one that `zipserv compress` has written

An ordinary model is packed as it loads, layer by layer, on the device that each weight lands on:

>>> config = zipserv.transformers.ZipservConfig()
>>> model = AutoModelForCausalLM.from_pretrained("org/model", quantization_config=config)

Every BF16 weight of an ``nn.Linear`` or ``nn.Embedding`` is compressed in the model, once if modules share it. Other
weights are dense: those of other modules, and those that transformers merges while it loads, as routed experts are.
``ZipservConfig(experts=True)`` packs these when all is loaded.

How a weight gets there, where `rename` is what transformers does with names:

```text
stored bytes   NAME.zipserv -> NAME -> rename -> a layer that takes them?  yes: checked (_Load), byte planes encoded
                                                                           no:  decoded (_Load)
                                              -> to be merged:             decoded (_Decode), then merged
dense weights          NAME -> rename -> a layer that takes them?          yes: encoded (_Encode)
```
"""

from __future__ import annotations

import logging
import os
import tempfile
from copy import deepcopy
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)
from transformers.quantizers import HfQuantizer, auto, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

import zipserv
from zipserv.torch import Embedding, Experts, Linear, compress_experts, let_kernels_start_early, ops
from zipserv.torch.stored import Stored, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["ZipservConfig"]

logger = logging.getLogger("zipserv")

#: Bytes of a compressed weight, rounded up, by which memory is planned.
_WEIGHT_BYTES = 1.45


@register_quantization_config("zipserv")
class ZipservConfig(QuantizationConfigMixin):
    """How a model is loaded: ``from_pretrained(..., quantization_config=ZipservConfig(...))``.

    For a compressed folder it may be left out.

    Args:
        modules_to_not_convert: Names of modules, or regular expressions, whose weights are to be dense.
        batch_invariant: The bits of a token's outputs do not depend on the other tokens. For Hopper GPUs.
        dequantize: All weights are to be dense, so that a compressed folder becomes an ordinary model.
        experts: Routed experts are to be compressed too. Their kernels were not run on a GPU yet.
        weights: The compressed folder's weights: a file, or its index. In `config.json` alone.
    """

    def __init__(
        self,
        modules_to_not_convert: list[str] | None = None,
        batch_invariant: bool = False,
        dequantize: bool = False,
        experts: bool = False,
        weights: str | None = None,
        **_,
    ) -> None:
        self.quant_method = "zipserv"
        self.modules_to_not_convert = modules_to_not_convert
        self.batch_invariant = batch_invariant
        self.dequantize = dequantize
        self.experts = experts
        self.weights = weights

    def get_loading_attributes(self) -> dict[str, object]:
        """What was asked for, which holds for a compressed folder too."""
        names = "modules_to_not_convert", "batch_invariant", "dequantize", "experts"
        return {name: value for name in names if (value := getattr(self, name))}


# Otherwise options would not be heard if a folder's config.json names this method.
auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (ZipservConfig,)


class _Names(WeightRenaming):
    """Renames single tensors."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__("zipserv", "zipserv")
        self.names = names

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        return self.names.get(source_key, source_key), None


class _Stored(WeightConverter):
    """Takes single stored tensors to their layers, checked on the host."""

    def __init__(self, names: set[str], operation: ConversionOps) -> None:
        super().__init__("zipserv", "zipserv", [operation], force_cpu=True)
        self.names = names

    def __deepcopy__(self, memo) -> _Stored:
        # transformers makes a copy for every tensor.
        return _Stored(self.names, self.operations[0])

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        return source_key, self.source_patterns[0] if source_key in self.names else None


class _Operation(ConversionOps):
    """An operation of the quantizer's. Copies are itself."""

    def __init__(self, quantizer: ZipservQuantizer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo) -> _Operation:
        return self


def _one(tensors: list[Tensor] | Tensor) -> Tensor:
    return tensors[0] if isinstance(tensors, list) else tensors


class _Load(_Operation):
    """Stored bytes to what a parameter holds: bytes with room behind them, or dense weights."""

    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name, model, **_):
        (tensors,) = input_dict.values()
        source = self.quantizer.sources[full_layer_name]
        shape, dtype = self.quantizer.wanted[full_layer_name]
        if source.shape != shape:
            raise source.error(f"a weight of shape {list(source.shape)}, but the model wants {list(shape)}")
        stored = _one(tensors)
        if full_layer_name not in self.quantizer.packed or source.is_planes(stored):
            dense = source.dense(stored).to(dtype)
            return {full_layer_name: _encoded(self.quantizer, model, full_layer_name, dense)}
        weight = source.weight(stored)
        _place(model, full_layer_name, weight, self.quantizer)
        return {full_layer_name: weight}


class _Decode(_Operation):
    """Stored bytes to dense weights of the original shapes, for the operations that follow."""

    def __init__(self, quantizer: ZipservQuantizer, sources: dict[tuple[str, str], list[Stored | None]]) -> None:
        super().__init__(quantizer)
        # Of (parameter, pattern): in the order in which tensors arrive, None for one that is not stored.
        self.sources = sources

    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name, **_):
        return {
            pattern: [
                source.dense(tensor) if source else tensor
                for tensor, source in zip(tensors, self.sources[full_layer_name, pattern], strict=True)
            ]
            for pattern, tensors in input_dict.items()
        }

    @property
    def reverse_op(self) -> ConversionOps:
        return _Nothing()


class _Nothing(ConversionOps):
    """What a decoder does when a model is saved."""

    def convert(self, input_dict, source_patterns, target_patterns, **_):
        return input_dict


class _Encode(_Operation):
    """Dense weights to compressed ones, where they are, if they become smaller."""

    def convert(self, input_dict, full_layer_name, model, **_):
        return {name: _encoded(self.quantizer, model, name, _one(tensors)) for name, tensors in input_dict.items()}


def _encoded(quantizer: ZipservQuantizer, model: PreTrainedModel, name: str, dense: Tensor) -> Tensor:
    """A weight as its layer is to hold it: compressed, if it is to be packed and becomes smaller."""
    if name not in quantizer.packed:
        return dense
    weight = ops.encode(dense)
    if weight.numel() >= dense.nbytes:
        logger.info("%s stays dense: it would not shrink", name)
        return dense
    _place(model, name, weight, quantizer)
    return weight


def _partners(model: PreTrainedModel, name: str) -> set[str]:
    """A parameter and those that are tied to it."""
    tied = model.all_tied_weights_keys
    source = tied.get(name, name)
    return {name, source, *(target for target, other in tied.items() if other == source)}


def _layer(model: nn.Module, name: str) -> nn.Module | None:
    """The layer of a weight, if compressed weights can serve it."""
    path, _, attribute = name.rpartition(".")
    layer = model.get_submodule(path)
    if attribute != "weight" or layer.weight is None or layer.weight.numel() == 0:
        return None
    if type(layer) is nn.Linear:
        return layer
    if type(layer) is nn.Embedding and layer.max_norm is None and not layer.sparse:
        return layer
    return None


def _place(model: nn.Module, name: str, weight: Tensor, quantizer: ZipservQuantizer) -> None:
    """Makes the layers that share a weight ready for a compressed one, which transformers sets and ties."""
    for partner in _partners(model, name):
        path = partner.removesuffix(".weight")
        layer = model.get_submodule(path)
        empty = torch.empty_like(weight, device="meta")
        if type(layer) is nn.Linear:
            invariant = quantizer.quantization_config.batch_invariant
            new = Linear(layer.in_features, layer.out_features, empty, layer.bias, batch_invariant=invariant)
        elif type(layer) is nn.Embedding:
            new = Embedding(layer.num_embeddings, layer.embedding_dim, empty)
        else:
            continue
        model.set_submodule(path, new.train(layer.training))


@register_quantizer("zipserv")
class ZipservQuantizer(HfQuantizer):
    """What transformers calls while it loads or saves a model."""

    requires_calibration = False

    def __init__(self, quantization_config: ZipservConfig, **kwargs) -> None:
        super().__init__(quantization_config, **kwargs)
        #: Parameters whose weights are to be compressed.
        self.packed: set[str] = set()
        #: Shape and dtype of every parameter and buffer of the dense model.
        self.wanted: dict[str, tuple[torch.Size, torch.dtype]] = {}
        #: Stored tensors, by the parameters that have them to themselves.
        self.sources: dict[str, Stored] = {}
        # Stored tensors by their names in the files; then all names in the files.
        self._stored: dict[str, Stored] = {}
        self._keys: list[str] = []
        self._model: PreTrainedModel | None = None
        self._dtype = torch.bfloat16

    # Before the model exists

    def validate_environment(self, device_map=None, **_) -> None:
        """Refuses to pack what stays in its file."""
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError("weights on disk are not packed as they load: use a folder that is compressed already")

    def update_tp_plan(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Refuses to shard, and says where a compressed folder's weights are."""
        distributed = getattr(config, "distributed_config", None)
        if distributed is not None and distributed != type(distributed)():
            raise ValueError("compressed weights cannot be sharded: no tensor parallelism, FSDP or pipeline")
        if self.pre_quantized and self.quantization_config.weights:
            config.transformers_weights = self.quantization_config.weights
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Refuses what compressed weights cannot multiply."""
        if dtype == torch.uint8:  # as it seems if the first file has nothing but stored tensors
            dtype = torch.bfloat16
        if dtype != torch.bfloat16 and not self.quantization_config.dequantize:
            raise ValueError(f"compressed weights are torch.bfloat16, not {dtype}: load with dtype=torch.bfloat16")
        self._dtype = dtype
        return dtype

    # Between model and weights

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files=None, device_map=None, **_
    ) -> None:
        for file in checkpoint_files or []:
            if str(file).endswith(".safetensors"):
                self._read_names(file)
        # config.json may name this method and the weights be dense: they are packed then.
        self.pre_quantized = self.pre_quantized and bool(self._stored)
        self.validate_environment(device_map=device_map)
        plan = model._get_dtype_plan(self._dtype)
        pattern, parts, _ = build_glob_alternation(list(plan))
        for name, tensor in model.state_dict().items():
            match = pattern.search(name) if plan else None
            dtype = plan[parts[match.lastgroup]] if match else tensor.dtype
            self.wanted[name] = tensor.shape, dtype
        if self.pre_quantized:
            self._model = model
        else:
            self.packed = {name for name, _ in model.named_parameters() if self._is_taken(model, name)}

    def _read_names(self, file: str) -> None:
        with safe_open(file, "pt") as tensors:
            keys = tensors.keys()
            self._stored |= stored_tensors(str(file), keys, tensors.metadata())
            self._keys += keys

    def update_weight_conversions(self, weight_conversions: list) -> list:
        """Finds the parameter of every stored tensor, and what has to become of its bytes."""
        model, self._model = self._model, None
        if model is None:
            return weight_conversions
        # Some remember which names they have seen.
        trial = deepcopy(weight_conversions)
        renamings = [entry for entry in trial if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in trial if isinstance(entry, WeightConverter)]
        parameters = model.state_dict()
        prefix = model.base_model_prefix

        unchanged, single, merged = {}, set(), {}
        for key in sorted(self._keys, key=dot_natural_key):
            source = self._stored.get(key)
            name = source.name if source else key
            parameter, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
            if pattern is not None:
                merged.setdefault((parameter, pattern), []).append(source)
            elif source:
                renamed, _ = rename_source_key(name, renamings, [])
                if parameter not in parameters and name in parameters:
                    # As transformers does: it should not have been renamed.
                    unchanged[renamed] = parameter = renamed = name
                single.add(renamed)
                self.sources[parameter] = source
                if parameter in parameters and self._is_taken(model, parameter):
                    self.packed.add(parameter)

        decode = _Decode(self, merged)
        for entry in weight_conversions:
            if isinstance(entry, WeightConverter):
                entry.operations.insert(0, decode)
        return [
            _Names({key: source.name for key, source in self._stored.items()}),
            *weight_conversions,
            _Names(unchanged),
            _Stored(single, _Load(self)),
            *self.get_weight_conversions(),
        ]

    def _is_taken(self, model: PreTrainedModel, name: str) -> bool:
        """Whether a parameter, and all that are tied to it, can have compressed weights."""
        if self.quantization_config.dequantize:
            return False
        skipped = self.quantization_config.modules_to_not_convert or []
        return all(
            _layer(model, partner) is not None
            and should_convert_module(partner.removesuffix(".weight"), skipped)
            and self.wanted[partner][1] == torch.bfloat16
            for partner in _partners(model, name)
        )

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_) -> bool:
        """Whether a dense weight is to be packed."""
        return param_name in self.packed

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes of a weight, for maps of devices."""
        return _WEIGHT_BYTES if param_name in self.packed else super().param_element_size(model, param_name, param)

    def get_quantize_ops(self) -> ConversionOps:
        """What packs dense weights."""
        return _Encode(self)

    # With weights

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_) -> PreTrainedModel:
        if self.pre_quantized:
            # transformers leaves tensors of such folders as they are if their names were changed.
            for name, tensor in model.state_dict(keep_vars=True).items():
                dtype = self.wanted[name][1]
                if tensor.is_floating_point() and tensor.dtype != dtype and not tensor.is_meta:
                    tensor.data = tensor.data.to(dtype)
        if self.quantization_config.weights:
            # Another folder's weights may have another name.
            model.config.__dict__.pop("transformers_weights", None)
            self.quantization_config.weights = None
        self.wanted, self.sources, self._stored, self._keys = {}, {}, {}, []
        for layer in model.modules():
            # A bias was padded to the length of a weight's bytes if that is tied.
            if isinstance(layer, Linear) and layer.bias is not None and layer.bias.numel() > layer.out_features:
                layer.bias.data = layer.bias.data[: layer.out_features].clone()
        if self.quantization_config.dequantize:
            return model
        if self.quantization_config.experts:
            skipped = self.quantization_config.modules_to_not_convert
            dense = [name for name, _ in model.named_modules() if not should_convert_module(name, skipped)]
            compress_experts(model, skip=dense, batch_invariant=self.quantization_config.batch_invariant)
        dense = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
        if dense:
            gigabytes = sum(weight.nbytes for weight in dense.values()) / 1e9
            logger.warning("%.2f GB stay dense, such as %s", gigabytes, ", ".join(list(dense)[:3]))
        model.save_pretrained = MethodType(save_pretrained, model)
        let_kernels_start_early()
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict]:
        """The dense weights. Those that are shared still are."""
        state, dense = model.state_dict(), {}
        for name, layer in model.named_modules(remove_duplicate=False):
            if isinstance(layer, Experts):
                if layer.down_proj.is_meta:
                    raise ValueError(f"{name} is offloaded: load the model without offloading to save it")
                gate_up, down = layer.dense()
                state |= {f"{name}.gate_up_proj": gate_up.cpu(), f"{name}.down_proj": down.cpu()}
            if isinstance(layer, (Linear, Embedding)):
                weight = layer.weight
                if weight.is_meta:
                    raise ValueError(f"{name}.weight is offloaded: load the model without offloading to save it")
                if id(weight) not in dense:
                    dense[id(weight)] = layer.dense().cpu()
                state[f"{name}.weight"] = dense[id(weight)]
        return state, {}

    def is_serializable(self) -> bool:
        """Models are saved as compressed folders."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are: gradients flow through compressed weights. These are frozen."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Operators are whole for ``torch.compile``."""
        return True


def save_pretrained(model: PreTrainedModel, save_directory: str | os.PathLike, **options) -> None:
    """Writes a compressed folder, the one that ``zipserv compress`` makes of the dense model.

    Takes as much space again as the dense model while it writes. Options are those of transformers.
    """
    save = type(model).save_pretrained
    if getattr(model, "_hf_peft_config_loaded", False):
        # These are adapters alone.
        return save(model, save_directory, **options)
    if options.pop("push_to_hub", False):
        raise ValueError("save_pretrained does not push compressed models: call push_to_hub")
    target = Path(save_directory)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".zipserv-") as temporary:
        dense, small = Path(temporary, "dense"), Path(temporary, "compressed")
        config = model.config.quantization_config
        try:
            # How a model was loaded is no property of its weights.
            del model.config.quantization_config
            save(model, dense, **options)
        finally:
            model.config.quantization_config = config
        if not options.get("is_main_process", True):
            return None
        zipserv.compress(dense, small, progress=False)
        files = [path.relative_to(small) for path in small.rglob("*") if path.is_file()]
        for old in [*target.glob("model*.safetensors"), *target.glob("model*.safetensors.index.json")]:
            if old.relative_to(target) not in files:
                old.unlink()
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(small / file, target / file)
    return None
