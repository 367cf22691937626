"""nvCOMP's ANS, by its batched C interface, with memory that is allocated before.

    pip install nvidia-nvcomp-cu13        (or -cu12)
"""

import ctypes
import importlib.metadata
import importlib.util
import pathlib
import struct

from gpu import Absent, copies

# nvcompType_t
TYPES = {"bytes": 0, "16-bit floats": 10}
CHUNK_BYTES = [1 << 16, 1 << 18]
ALIGNMENT = 256


class Options(ctypes.Structure):
    """nvcompBatchedANSCompressOpts_t and nvcompBatchedANSDecompressOpts_t, as far as they agree:
    an algorithm or backend, a type, bytes that are zero for defaults."""

    _fields_ = [("kind", ctypes.c_int), ("type", ctypes.c_int), ("rest", ctypes.c_char * 56)]


def load():
    """The library, and its version."""
    try:
        spec = importlib.util.find_spec("nvidia.libnvcomp")
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise Absent("nvCOMP: no Python package nvidia-nvcomp-cu13 or nvidia-nvcomp-cu12")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    libraries = sorted(folder.rglob("libnvcomp.so*"))
    if not libraries:
        raise Absent(f"nvCOMP: no libnvcomp.so in {folder}")
    for name in "nvidia-libnvcomp-cu13", "nvidia-libnvcomp-cu12":
        try:
            return ctypes.CDLL(libraries[0]), importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ctypes.CDLL(libraries[0]), "of an unknown version"


class Nvcomp:
    """Its decompression on one device."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.library, version = load()
        self.name = f"nvCOMP {version} ANS"

    def call(self, name, *arguments):
        """Calls a function of the library."""
        status = getattr(self.library, f"nvcompBatchedANS{name}")(*arguments)
        if status != 0:
            raise RuntimeError(f"nvcompBatchedANS{name} returned {status}")

    def measure(self, weights):
        """Rows of how it does on a matrix's bytes: one for each type and size of chunks."""
        for kind, code in TYPES.items():
            for chunk in CHUNK_BYTES:
                row = self.decompress(weights, code, chunk)
                yield {"peer": f"{self.name}, {kind}, chunks of {chunk >> 10} KiB", **row}

    def compress(self, weights, options, chunk):
        """Compresses the chunks one after the other into memory of the device: all of it, where
        each chunk lies, and how many bytes it has."""
        gpu, size = self.gpu, ctypes.c_size_t
        sizes = [min(chunk, len(weights) - at) for at in range(0, len(weights), chunk)]
        most, temp_bytes = size(), size()
        self.call("CompressGetMaxOutputChunkSize", size(chunk), options, ctypes.byref(most))
        room = -(-most.value // ALIGNMENT) * ALIGNMENT
        self.call(
            "CompressGetTempSize", size(len(sizes)), size(chunk), options,
            ctypes.byref(temp_bytes), size(len(weights)), gpu.stream,
        )  # fmt: skip
        plain, temp = gpu.buffer(weights), gpu.buffer(temp_bytes.value)
        packed = gpu.buffer(room * len(sizes))
        pointers = addresses(gpu, [plain.address.value + at for at in starts(len(sizes), chunk)])
        outputs = addresses(gpu, [packed.address.value + at for at in starts(len(sizes), room)])
        plain_sizes, packed_sizes = addresses(gpu, sizes), gpu.buffer(8 * len(sizes))
        statuses = gpu.buffer(4 * len(sizes))
        self.call(
            "CompressAsync", pointers.address, plain_sizes.address, size(chunk), size(len(sizes)),
            temp.address, temp_bytes, outputs.address, packed_sizes.address, options,
            statuses.address, gpu.stream,
        )  # fmt: skip
        check(statuses)
        lengths = struct.unpack(f"{len(sizes)}Q", packed_sizes.bytes())
        host = packed.bytes()
        return sizes, [host[at : at + n] for at, n in zip(starts(len(sizes), room), lengths)]

    def decompress(self, weights, code, chunk):
        """Times it, and compares what comes out."""
        gpu, size = self.gpu, ctypes.c_size_t
        sizes, chunks = self.compress(weights, Options(0, code), chunk)
        # Side by side, each aligned.
        packed, places = bytearray(), []
        for data in chunks:
            places.append(len(packed))
            packed += data + bytes(-len(data) % ALIGNMENT)
        # Any type: it is read from the chunks.
        options, temp_bytes = Options(0, 0xFF), size()
        self.call(
            "DecompressGetTempSize", size(len(sizes)), size(chunk), options,
            ctypes.byref(temp_bytes), size(len(weights)), gpu.stream,
        )  # fmt: skip
        temp, room = gpu.buffer(temp_bytes.value), addresses(gpu, sizes)
        lengths = addresses(gpu, [len(data) for data in chunks])
        actual, statuses = gpu.buffer(8 * len(sizes)), gpu.buffer(4 * len(sizes))
        operands = []
        for _ in range(copies(weights)):
            source, output = gpu.buffer(packed), gpu.buffer(len(weights))
            tables = (
                addresses(gpu, [source.address.value + at for at in places]),
                addresses(gpu, [output.address.value + at for at in starts(len(sizes), chunk)]),
            )
            operands.append((source, output, tables))

        def launch(operand):
            _, _, (sources, outputs) = operand
            self.call(
                "DecompressAsync", sources.address, lengths.address, room.address, actual.address,
                size(len(sizes)), temp.address, temp_bytes, outputs.address, options,
                statuses.address, gpu.stream,
            )  # fmt: skip

        us = gpu.median_us([lambda operand=operand: launch(operand) for operand in operands])
        check(statuses)
        return {
            "compressed_bytes": sum(len(data) for data in chunks),
            "us": us,
            "exact": all(output.bytes() == weights for _, output, _ in operands),
        }


def starts(count, stride):
    """Multiples of `stride`."""
    return range(0, count * stride, stride)


def addresses(gpu, numbers):
    """Numbers of 64 bits on the device."""
    return gpu.buffer(struct.pack(f"{len(numbers)}Q", *numbers))


def check(statuses):
    """Fails unless all chunks went well."""
    if any(statuses.bytes()):
        raise RuntimeError("nvCOMP could not handle some chunks")
