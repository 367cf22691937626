"""Files and folders."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zipserv import _native

if TYPE_CHECKING:
    from zipserv._native import Report, Verdict

Path = str | os.PathLike[str]
Progress = Callable[[int, int], object] | bool | None


@contextmanager
def _callback(name: str, progress: Progress):
    """What to call as ``(done, total)``: the caller's function, or a bar of tqdm, on a terminal by default."""
    if progress is None:
        progress = sys.stderr.isatty()
    if progress is False:
        yield None
    elif progress is True:
        from tqdm import tqdm

        with tqdm(desc=name, unit="B", unit_scale=True, leave=False) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield advance
    else:
        yield progress


def compress(
    input: Path, output: Path, *, archive: bool = False, force: bool = False, progress: Progress = None
) -> Report:
    """Compresses a ``.safetensors`` file or a Hugging Face folder.

    Every byte of the input comes back by :func:`decompress`.

    Args:
        input: A ``.safetensors`` file, or a folder of a model.
        output: The file or folder to write. It appears when it is whole.
        archive: Make the smallest form, for disks and networks. Models load from it, after restoring every tensor;
            :func:`convert` makes the form for GPUs of it.
        force: Replace what is there.
        progress: A function of bytes done and bytes in all; True for a bar, False for none, None for a bar if
            standard error is a terminal. If it raises, nothing is written.

    Raises:
        zipserv.Error: The input is no checkpoint, or the output cannot be written.
    """
    with _callback("compress", progress) as callback:
        report = _native.compress(input, output, force, archive, callback)
    for line in report.warnings:
        warnings.warn(line, stacklevel=2)
    return report


def convert(
    input: Path, output: Path, *, archive: bool = False, force: bool = False, progress: Progress = None
) -> Report:
    """Turns a compressed file or folder into what :func:`compress` makes of its original with the same arguments.

    Arguments and errors are those of :func:`compress`.
    """
    with _callback("convert", progress) as callback:
        report = _native.convert(input, output, force, archive, callback)
    for line in report.warnings:
        warnings.warn(line, stacklevel=2)
    return report


def decompress(input: Path, output: Path, *, force: bool = False, progress: Progress = None) -> Report:
    """Restores what :func:`compress` has made a file or folder of, byte for byte.

    Arguments and errors are those of :func:`compress`.
    """
    with _callback("decompress", progress) as callback:
        return _native.decompress(input, output, force, callback)


def verify(compressed: Path, original: Path, *, progress: Progress = None) -> Verdict:
    """Compares a compressed file or folder with its original, without writing anything.

    The verdict is true if every byte is equal, and else says where the first difference is.

    Raises:
        zipserv.Error: One of them cannot be read, or the compressed one is damaged.
    """
    with _callback("verify", progress) as callback:
        return _native.verify(compressed, original, callback)


def inspect(path: Path, *, progress: Progress = None) -> Report:
    """Tells what is in a compressed file or folder, or what compressing one would give.

    Raises:
        zipserv.Error: It cannot be read.
    """
    with _callback("inspect", progress) as callback:
        return _native.inspect(path, callback)
