"""Has the kernels that ``torch.compile`` makes let products start early (programmatic dependent launch).

A product reads its first weights while the kernel before it still runs, if that one allows it. Inductor's kernels do so
once they have loaded their inputs, which is late: memory has nothing to do meanwhile. One whose next kernel is a
product may do so as soon as it has waited for the one before, for products wait before they touch what others write.
(Not sooner: where it waits on an SM, the product's block finds no room, and in the end the others wait for that one.)
"""

from __future__ import annotations

import functools
import os

import torch

#: Operators whose first kernel is a product.
_PRODUCTS = ("zipserv::linear", "zipserv::gated_linear")


def let_kernels_start_early() -> None:
    """Turns it on, unless ``TORCHINDUCTOR_ENABLE_PDL=0`` is set. It may be called again."""
    if os.environ.get("TORCHINDUCTOR_ENABLE_PDL") == "0" or not torch.cuda.is_available():
        return
    # Not before it is needed: it takes a second.
    from torch._inductor import config
    from torch._inductor.codegen.triton import TritonKernel

    config.triton.enable_pdl = True
    original = getattr(TritonKernel, "_filter_pdl", None)
    if original is None or hasattr(original, "__wrapped__"):
        # Another PyTorch: kernels allow what they do by themselves.
        return

    @functools.wraps(original)
    def filter_pdl(self, code):
        original(self, code)
        if _is_before_product(self):
            release_after_wait(code._lines, self.GDC_WAIT, self.GDC_LAUNCH)

    TritonKernel._filter_pdl = filter_pdl


def release_after_wait(lines: list, wait: str, launch: str) -> None:
    """Moves the line of a kernel that lets the next one start to behind the one that waits, if there are both."""

    def find(call: str) -> int | None:
        return next((at for at, line in enumerate(lines) if isinstance(line, str) and call in line), None)

    waits, launches = find(wait), find(launch)
    if waits is not None and launches is not None and waits < launches:
        del lines[launches]
        lines.insert(waits + 1, lines[waits].replace(wait, launch))


def _is_before_product(kernel) -> bool:
    from torch._inductor.virtualized import V

    try:
        nodes = V.graph.scheduler.nodes
        own = set(kernel.features.scheduler_nodes())
        at = next(i for i, node in enumerate(nodes) if own.intersection(node.get_nodes()))
        product = nodes[at + 1].node.op_overload.name()
    except (AttributeError, IndexError, StopIteration):
        # The last, or before something else.
        return False
    return product in _PRODUCTS
