#!/usr/bin/env python3
"""Sizes of zipserv's two forms, of `zstd -3` and of ZipNN, for tensors of every kind, in the same run.

    pip install zipnn torch numpy zstandard      (ZipNN imports torch, CPU builds do)
    cargo build --release
    python benches/archive.py                    (--output FILE keeps the table)

Each kind is a `.safetensors` file of one tensor. zstd compresses the whole file, zipserv makes a whole file of it, which
it restores to the same bytes, and ZipNN compresses the tensor's bytes as the dtype it has for them, to which the header
is added as it is. All figures are percents of the original file.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import zipnn
import zstandard

ROOT = pathlib.Path(__file__).resolve().parent.parent


def bf16(values):
    """Bits of the nearest BF16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def e4m3(values):
    """Bits of the nearest FP8 (E4M3) number."""
    codes = np.arange(127)
    exponents, mantissas = codes >> 3, codes & 7
    numbers = np.where(exponents > 0, (8 + mantissas) * 2.0 ** (exponents - 10), mantissas * 2.0**-9)
    middles = (numbers[1:] + numbers[:-1]) / 2
    return (np.searchsorted(middles, np.abs(values)) | np.signbit(values) * 0x80).astype(np.uint8)


def kinds():
    """Names, dtypes, shapes and data of tensors like those of checkpoints."""
    rng = np.random.default_rng(1)

    def gauss(*shape, scale=0.02):
        rows = np.exp(0.1 * rng.standard_normal((shape[0],) + (1,) * (len(shape) - 1), np.float32))
        return rng.standard_normal(shape, np.float32) * rows * scale

    def half_zeros(shape):
        return gauss(*shape) * (rng.random(shape) < 0.5)

    def two_of_four(shape):
        values = gauss(*shape)
        groups = np.abs(values).reshape(-1, 4)
        keep = np.argsort(groups, axis=1)[:, 2:]
        mask = np.zeros_like(groups, bool)
        np.put_along_axis(mask, keep, True, axis=1)
        return np.where(mask.reshape(shape), values, 0)

    big = 4096, 2048
    yield "BF16 matrix", "BF16", big, bf16(gauss(*big))
    yield "convolution 3x3", "BF16", (512, 512, 3, 3), bf16(gauss(512, 512, 3, 3))
    yield "convolution 1x1", "BF16", (2048, 1024, 1, 1), bf16(gauss(2048, 1024, 1, 1))
    yield "LoRA, rank 16, up", "BF16", (16384, 16), bf16(gauss(16384, 16))
    yield "LoRA, rank 16, down", "BF16", (16, 16384), bf16(gauss(16, 16384))
    yield "flat vector", "BF16", (1 << 20,), bf16(gauss(1 << 20))
    yield "router", "BF16", (8, 4096), bf16(gauss(8, 4096))
    yield "half zeros", "BF16", big, bf16(half_zeros(big))
    yield "2:4 sparse", "BF16", big, bf16(two_of_four(big))
    yield "F32 of BF16 values", "F32", big, bf16(gauss(*big)).astype("<u4") << 16
    yield "F32", "F32", big, gauss(*big)
    yield "F16", "F16", big, gauss(*big).astype("<f2")
    yield "FP8", "F8_E4M3", big, e4m3(gauss(*big, scale=4.0))
    yield "INT8", "I8", big, np.clip(np.rint(gauss(*big, scale=30.0)), -127, 127).astype("i1")
    yield "4 bits, packed", "I32", (4096, 256), rng.binomial(15, 0.5, (4096, 256, 4)).astype("u1") * np.uint8(17)
    yield "positions", "I64", (1, 131072), np.arange(131072, dtype="<i8")
    yield "mask", "BOOL", (2048, 2048), np.tril(np.ones((2048, 2048), bool))


#: What ZipNN calls a dtype. It has no name for integers.
ZIPNN = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn"}


def zipnn_bytes(dtype, data):
    """Bytes that ZipNN makes of a tensor, if it knows the dtype."""
    if dtype not in ZIPNN:
        return None
    codec = zipnn.ZipNN(input_format="byte", bytearray_dtype=ZIPNN[dtype], threads=1)
    # It reorders its input in place.
    compressed = codec.compress(bytearray(data))
    assert bytes(codec.decompress(compressed)) == data, "ZipNN is not lossless"
    return len(compressed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="write the table to this file")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target" / "release" / "zipserv")
    options = parser.parse_args()

    def run(*arguments):
        subprocess.run([options.program, *arguments], check=True, capture_output=True)

    lines = ["| tensor | shape | zstd -3 | default | ZipNN | archive |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        at = pathlib.Path(folder).joinpath
        for name, dtype, shape, values in kinds():
            data = np.ascontiguousarray(values).tobytes()
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
            header = json.dumps({"weight": entry}).encode()
            header += b" " * (-len(header) % 8)
            original = len(header).to_bytes(8, "little") + header + data
            at("original").write_bytes(original)
            sizes = [len(zstandard.compress(original, 3))]
            for form in [], ["--archive"]:
                run("compress", at("original"), "-o", at("small"), "--force", *form)
                run("decompress", at("small"), "-o", at("restored"), "--force")
                assert at("restored").read_bytes() == original, "zipserv is not lossless"
                sizes.append(at("small").stat().st_size)
            packed = zipnn_bytes(dtype, data)
            sizes.insert(2, packed and packed + len(original) - len(data))
            cells = ["" if size is None else f"{100 * size / len(original):.2f} %" for size in sizes]
            lines.append(f"| {name} | {dtype} {' x '.join(map(str, shape))} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
