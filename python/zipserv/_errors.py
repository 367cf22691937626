"""Exceptions of the package."""

from __future__ import annotations


class Error(Exception):
    """Bad input: a file, folder, tensor or matrix that is not what it should be.

    Attributes:
        file: The file or folder, if it is one.
        tensor: The tensor's name, if one is at fault.
        offset: Bytes from the start of the file to what is wrong, if that is known.
    """

    def __init__(
        self, message: str, file: str | None = None, tensor: str | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.file = file
        self.tensor = tensor
        self.offset = offset


class GpuError(Error, RuntimeError):
    """A kernel cannot be launched, or there is no GPU for it."""
