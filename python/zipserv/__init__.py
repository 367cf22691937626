"""Lossless compression of BF16 LLM weights that makes inference faster.

- :func:`compress`, :func:`convert`, :func:`decompress`, :func:`verify` and :func:`inspect` are for files and folders.
- ``zipserv.torch`` has operators on compressed weights, and modules that use them.
- ``zipserv.transformers`` loads compressed models, or packs ordinary ones as they load.
- ``zipserv.vllm`` is found by vLLM itself: ``vllm serve MODEL --quantization zipserv``.

None of the last three is imported before it is asked for, and no GPU or driver is needed to import any.
"""

from zipserv._errors import Error, GpuError
from zipserv._files import compress, convert, decompress, inspect, verify
from zipserv._native import VERSION as __version__
from zipserv._native import Report, Stack, Tensor, Verdict

__all__ = [
    "Error",
    "GpuError",
    "Report",
    "Stack",
    "Tensor",
    "Verdict",
    "__version__",
    "compress",
    "convert",
    "decompress",
    "inspect",
    "verify",
]
