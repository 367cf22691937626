#!/usr/bin/env python3
"""Speed and ratio of zipserv, in its form for GPUs and as an archive, and of ZipNN on the same bytes, in the same run.

    pip install zipnn torch numpy        (ZipNN imports torch, CPU builds do)
    cargo build --release -p zipserv-bench --example codec_speed
    python benches/compare_zipnn.py      (--output FILE keeps it)

Both compress and decompress 128 MB of Gaussian BF16 weights with log-normal scales of rows and
columns, on one thread; zipserv on two as well. Rounds of the two alternate, so that what else the
machine does meets both, and every figure is the median of all repeats but the first of each round,
which wake threads and caches. The calls compared allocate
their result each time, the way ZipNN's interface works; `decode_into` stands beside them.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time

import numpy as np
import zipnn

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS, COLS = 8192, 8192
WARM_UP = 2


def weights():
    """Little-endian BF16 bytes of a ROWS x COLS matrix."""
    rng = np.random.default_rng(1)
    scale = np.exp(0.1 * rng.standard_normal(ROWS, np.float32))[:, None] * 0.02
    scale = scale * np.exp(0.1 * rng.standard_normal(COLS, np.float32))
    bits = (rng.standard_normal((ROWS, COLS), np.float32) * scale).view(np.uint32)
    # Round to nearest, ties to even.
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def git(*args):
    return subprocess.check_output(["git", "-C", ROOT, *args], text=True).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=8, help="of each call in each round")
    parser.add_argument("--output", type=pathlib.Path, help="write the results to this file")
    parser.add_argument(
        "--helper",
        type=pathlib.Path,
        default=ROOT / "target" / "release" / "examples" / "codec_speed",
    )
    options = parser.parse_args()

    data = weights()
    ours, theirs = {}, {"compress": [], "decompress": []}
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = [options.helper, file.name, str(ROWS), str(COLS), str(options.repeats)]
        for _ in range(options.rounds):
            result = json.loads(subprocess.check_output(command))
            stored, archived = result.pop("stored_bytes"), result.pop("archive_bytes")
            for name, seconds in result.items():
                ours.setdefault(name, []).extend(seconds[WARM_UP:])
            for repeat in range(options.repeats):
                codec = zipnn.ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
                # It reorders its input in place.
                fresh = bytearray(data)
                compressing, compressed = timed(lambda: codec.compress(fresh))
                decompressing, restored = timed(lambda: codec.decompress(compressed))
                if repeat >= WARM_UP:
                    theirs["compress"].append(compressing)
                    theirs["decompress"].append(decompressing)
            assert bytes(restored) == data, "ZipNN is not lossless"

    def speed(seconds):
        return round(len(data) / statistics.median(seconds) / 1e9, 3)

    zipserv_speeds = {f"{name}_gb_s": speed(seconds) for name, seconds in ours.items()}
    zipnn_speeds = {f"{name}_1_gb_s": speed(seconds) for name, seconds in theirs.items()}

    report = {
        "device": cpu_name(),
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "tree": "modified" if git("status", "--porcelain", "-uno") else "clean",
        "bytes": len(data),
        "samples": options.rounds * (options.repeats - WARM_UP),
        "zipserv": {
            **zipserv_speeds,
            "stored_fraction": round(stored / len(data), 4),
            "archive_fraction": round(archived / len(data), 4),
        },
        "zipnn": {
            **zipnn_speeds,
            "stored_fraction": round(len(compressed) / len(data), 4),
        },
    }
    # A field a line, as in all files of results.
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in report.items()]
    text = "{\n" + ",\n".join(fields) + "\n}"
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
