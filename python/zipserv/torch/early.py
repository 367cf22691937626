"""Has the kernels that ``torch.compile`` makes let products start early (programmatic dependent launch).

A product reads its first weights while the kernel before it still runs, if that one allows it. Inductor's kernels do so
once they have loaded their inputs. By then the product before them is over and memory has nothing to do. One whose next
kernel is a product may do so at once: products wait before they touch what others write, and hold back those behind
them until they have waited.
"""

from __future__ import annotations

import functools
import os

import torch._inductor.config
from torch._inductor.codegen.triton import TritonKernel
from torch._inductor.virtualized import V

#: Operators whose first kernel is a product.
_PRODUCTS = ("zipserv::linear", "zipserv::gated_linear")


def let_kernels_start_early() -> None:
    """Turns it on, unless ``TORCHINDUCTOR_ENABLE_PDL`` is set. It may be called again."""
    if "TORCHINDUCTOR_ENABLE_PDL" in os.environ:
        return
    torch._inductor.config.triton.enable_pdl = True
    original = getattr(TritonKernel, "_filter_pdl", None)
    if original is None or hasattr(original, "__wrapped__"):
        # Another PyTorch: kernels allow what they do by themselves.
        return

    @functools.wraps(original)
    def filter_pdl(self, code):
        original(self, code)
        if _is_before_product(self):
            release_at_once(code._lines, self.GDC_LAUNCH)

    TritonKernel._filter_pdl = filter_pdl


def release_at_once(lines: list, launch: str) -> None:
    """Moves the line of a kernel that lets the next one start to the front, if there is one."""
    at = next((i for i, line in enumerate(lines) if isinstance(line, str) and launch in line), None)
    if at is not None:
        lines.insert(0, lines.pop(at).strip())


def _is_before_product(kernel: TritonKernel) -> bool:
    try:
        nodes = V.graph.scheduler.nodes
        own = set(kernel.features.scheduler_nodes())
        at = next(i for i, node in enumerate(nodes) if own.intersection(node.get_nodes()))
        product = nodes[at + 1].node.op_overload.name()
    except (AttributeError, IndexError, StopIteration):
        # The last, or before something else.
        return False
    return product in _PRODUCTS
