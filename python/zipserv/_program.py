"""The program ``zipserv``, which is the one that ``cargo install`` gives."""

from __future__ import annotations

import signal
import sys

from zipserv import _native


def main() -> None:
    """Runs the program on the arguments of this process."""
    # The program is not Python's to interrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_native.run(["zipserv", *sys.argv[1:]]))
