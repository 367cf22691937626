"""Compressed weights in vLLM 0.26: ``vllm serve MODEL --quantization zipserv``.

vLLM finds this by its entry point; nobody needs to import it. MODEL is an ordinary BF16 checkpoint, which is packed on
the GPU layer by layer as it loads, or a folder that ``zipserv compress`` has written, which needs no option.

| a weight | goes through |
|---|---|
| stored in a compressed folder | :mod:`loading`: decoded on the GPU, under its original name |
| dense | vLLM's own loading: merged, sharded, a layer at a time |
| dense, of a whole layer | :mod:`layers`: encoded on the GPU |
| compressed | :mod:`layers`: ``zipserv::linear`` and ``zipserv::embedding``, in vLLM's compiled graphs |
"""

from __future__ import annotations


def register() -> None:
    """Makes the quantization ``zipserv`` known to vLLM, in each of its processes. It may be called again."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from zipserv.vllm import loading
    from zipserv.vllm.config import ZipservConfig

    register_quantization_config(ZipservConfig.get_name())(ZipservConfig)
    loading.install()
