#!/usr/bin/env python3
"""Decompression on a GPU: zipserv beside nvCOMP's ANS and DFloat11, in one table.

    cargo build --release -p zipserv-cli -p zipserv-bench
    pip install numpy nvidia-nvcomp-cu13             (for nvCOMP; -cu12 for CUDA 12)
    pip install numpy dfloat11 dahuffman tqdm torch  (for DFloat11)
    python benches/peers/compare.py                  (--json FILE keeps it)

`zipserv synth` makes the weights, with log-normal scales of rows and columns as trained layers
have, and each peer decompresses the same BF16 matrices, one of each shape. zipserv's own row is of
`zipserv-bench gemm`, on weights of the same distribution and shapes. Launches rotate over copies of their
operands, more than the L2 cache holds, into memory that is allocated before; a time is the median
over rounds, and every output is compared. Whatever is not installed, or fails, is named below the
table.
"""

import argparse
import datetime
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import dfloat11_huffman
import gpu
import nvcomp_ans

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def matrices(path, least):
    """The first BF16 matrix of each shape with so many bytes at least: shapes, and weights."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {}
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            shape = tuple(tensor["shape"])
            wanted = tensor["dtype"] == "BF16" and len(shape) == 2 and end - begin >= least
            if wanted and shape not in found:
                file.seek(8 + length + begin)
                found[shape] = file.read(end - begin)
        return found


def zipserv_rows(program, shapes):
    """What `zipserv-bench gemm` says of decompression."""
    layers = ",".join(f"{rows}x{cols}" for rows, cols in shapes)
    command = [program, "gemm", "--no-gemm", "--layers", layers, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise gpu.Absent(f"zipserv: {done.stderr.strip()}")
    for row in json.loads(done.stdout)["decompress"]:
        layer = row["layer"]
        yield {
            "peer": "zipserv",
            "shape": [layer["rows"], layer["cols"]],
            "compressed_bytes": layer["compressed_bytes"],
            "us": row["us"],
            "exact": row["exact"],
        }


def peer_rows(peer, found):
    """Rows of a peer."""
    for shape, weights in found.items():
        for row in peer.measure(weights):
            yield {"shape": list(shape), **row}


def complete(row):
    """Rounds what no clock gives."""
    row["us"] = round(row["us"], 2)
    return row


def table(rows):
    """Rows as Markdown."""
    yield "| matrix | decompressor | size, of BF16 | us | GB/s of BF16 | exact |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in sorted(rows, key=lambda row: row["shape"]):
        shape, exact = "{} x {}".format(*row["shape"]), "yes" if row["exact"] else "NO"
        plain = 2 * row["shape"][0] * row["shape"][1]
        size, speed = f"{100 * row['compressed_bytes'] / plain:.1f} %", f"{plain / row['us'] / 1e3:.0f}"
        yield f"| {shape} | {row['peer']} | {size} | {row['us']:.1f} | {speed} | {exact} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where zipserv and zipserv-bench are")
    parser.add_argument("--size", default="1GB", help="of the checkpoint that is made")
    parser.add_argument("--least-mb", type=int, default=32, help="size of a matrix, at least")
    parser.add_argument("--commit", help="that the results name [default: that of the checkout]")
    parser.add_argument("--json", type=pathlib.Path, help="write the results to this file")
    options = parser.parse_args()

    absent, rows, peers, device = [], [], [], None
    try:
        device = gpu.Gpu()
    except gpu.Absent as reason:
        absent.append(str(reason))
    for peer in (nvcomp_ans.Nvcomp, dfloat11_huffman.Dfloat11) if device else ():
        try:
            peers.append(peer(device))
        except (gpu.Absent, RuntimeError) as reason:
            absent.append(str(reason))
    if device:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = pathlib.Path(folder) / "weights.safetensors"
            command = [options.programs / "zipserv", "synth", checkpoint, "--size", options.size]
            subprocess.run(command, check=True, capture_output=True)
            found = matrices(checkpoint, options.least_mb << 20)
        try:
            rows.extend(complete(row) for row in zipserv_rows(options.programs / "zipserv-bench", found))
        except gpu.Absent as reason:
            absent.append(str(reason))
        for peer in peers:
            # What one cannot do is no reason to lose the others' figures.
            try:
                rows.extend(complete(row) for row in peer_rows(peer, found))
            except RuntimeError as reason:
                absent.append(f"{peer.name}: {reason}")

    print(*table(rows), sep="\n")
    for reason in absent:
        print(f"\nAbsent: {reason}")
    if options.json:
        git = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
        commit = options.commit or subprocess.check_output(git, text=True).strip()
        report = {
            "device": device and device.name,
            "driver": device and device.driver,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "commit": commit,
            "rounds": gpu.ROUNDS,
            "rows": rows,
            "absent": absent,
        }
        # A row a line.
        lines = ",\n".join(json.dumps(row) for row in report.pop("rows"))
        fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in report.items()]
        fields.append(f'"rows": [\n{lines}\n]')
        options.json.write_text("{\n" + ",\n".join(fields) + "\n}\n")
    return 0 if all(row["exact"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
