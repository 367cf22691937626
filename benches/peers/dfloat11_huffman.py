"""DFloat11's decode kernel, launched as the package's own hook does, on weights that are encoded
here: the package's encoder handles one weight at a time.

    pip install numpy dfloat11 dahuffman tqdm torch
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import pathlib

import numpy as np

from gpu import Absent, copies

# As in the package: bytes of code that a thread decodes, and threads of a block.
THREAD_BYTES, THREADS = 8, 512


def load():
    """The package's functions that make code tables, its kernel's PTX, and its version. The package
    itself would ask for all of what running a model needs."""
    spec = importlib.util.find_spec("dfloat11")
    if spec is None:
        raise Absent("DFloat11: no Python package dfloat11")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("tables", folder / "dfloat11_utils.py")
    tables = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(tables)
    except ModuleNotFoundError as error:
        raise Absent(f"DFloat11: {error}") from error
    ptx = (folder / "decode.ptx").read_bytes()
    return tables, ptx, importlib.metadata.version("dfloat11")


def encode(weights, tables):
    """What the kernel takes: tables, codes, signs and mantissas, first weight of each block, and
    where each thread's first code starts."""
    bits = np.frombuffer(weights, np.uint16)
    exponents, counts = np.unique(bits >> 7 & 0xFF, return_counts=True)
    # Its functions print what they do.
    with contextlib.redirect_stdout(io.StringIO()):
        _, _, table = tables.get_32bit_codec(dict(zip(exponents.tolist(), counts.tolist())))
        luts = np.asarray(tables.get_luts(table))
    lengths, codes = np.zeros(257, np.int64), np.zeros(257, np.uint32)
    for symbol, (length, code) in table.items():
        index = symbol if isinstance(symbol, int) else 256
        lengths[index], codes[index] = length, code

    symbols = (bits >> 7 & 0xFF).astype(np.int64)
    count = len(symbols)
    if lengths[symbols].sum() % 8:
        # The last byte is filled with the start of the code that means the end.
        symbols = np.append(symbols, 256)
    ends = np.cumsum(lengths[symbols])
    first = ends - lengths[symbols]
    total_bits = -(-(ends[-1] if count == len(symbols) else first[-1]) // 8) * 8
    stream = np.zeros(max(total_bits, ends[-1]), np.uint8)
    for bit in range(lengths.max()):
        has = lengths[symbols] > bit
        of = symbols[has]
        stream[first[has] + bit] = codes[of] >> (lengths[of] - 1 - bit).astype(np.uint32) & 1
    encoded = np.packbits(stream[:total_bits])

    blocks = -(-len(encoded) // (THREADS * THREAD_BYTES))
    gaps = np.zeros(blocks * THREADS, np.uint8)
    windows = np.arange(first[-1] // (8 * THREAD_BYTES) + 1) * 8 * THREAD_BYTES
    gaps[: len(windows)] = (first[np.searchsorted(first, windows)] - windows)[: len(gaps)]
    gaps = np.packbits(np.unpackbits(gaps[:, None], axis=1)[:, 3:])
    windows = np.arange(first[-1] // (8 * THREAD_BYTES * THREADS) + 1) * 8 * THREAD_BYTES * THREADS
    positions = np.append(np.searchsorted(first, windows), count).astype(np.uint32)
    sign_mantissa = (bits >> 8 & 0x80 | bits & 0x7F).astype(np.uint8)
    return luts, encoded, sign_mantissa, positions, gaps


class Dfloat11:
    """Its decompression on one device."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.tables, ptx, version = load()
        self.name = f"DFloat11 {version}"
        module, self.kernel = ctypes.c_void_p(), ctypes.c_void_p()
        gpu.call("cuModuleLoadData", ctypes.byref(module), ptx)
        gpu.call("cuModuleGetFunction", ctypes.byref(self.kernel), module, b"decode")

    def measure(self, weights):
        """A row of how it does on a matrix's bytes."""
        gpu = self.gpu
        luts, *parts = encode(weights, self.tables)
        encoded, sign_mantissa, positions, _ = parts
        shared = 4 * THREADS + 4 + 2 * int((positions[1:] - positions[:-1]).max())
        maximum = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if shared > 48 << 10:
            gpu.call("cuFuncSetAttribute", self.kernel, maximum, shared)
        blocks = -(-len(encoded) // (THREADS * THREAD_BYTES))
        lut_memory = gpu.buffer(luts.tobytes())
        operands = []
        for _ in range(copies(weights)):
            buffers = [gpu.buffer(part.tobytes()) for part in parts]
            operands.append((buffers, gpu.buffer(len(weights))))

        def launch(buffers, output):
            # The order of its parameters: tables, then the parts, the output, and counts.
            values = [lut_memory.address, *(part.address for part in buffers), output.address]
            counts = [len(luts), len(encoded), len(sign_mantissa)]
            values += [ctypes.c_int64(count) for count in counts]
            pointers = [ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values]
            array = (ctypes.c_void_p * len(pointers))(*pointers)
            gpu.call(
                "cuLaunchKernel", self.kernel, blocks, 1, 1, THREADS, 1, 1, shared, gpu.stream,
                array, None,
            )  # fmt: skip

        us = gpu.median_us([lambda operand=operand: launch(*operand) for operand in operands])
        yield {
            "peer": self.name,
            "compressed_bytes": luts.nbytes + sum(part.nbytes for part in parts),
            "us": us,
            "exact": all(output.bytes() == weights for _, output in operands),
        }
