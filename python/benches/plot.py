#!/usr/bin/env python3
"""Draws tokens a second over requests at a time, dense and compressed, from a file of results.

python benches/plot.py results/h200-DATE-vllm.json docs/serving_h200.svg
"""

import argparse
import json
import pathlib
import statistics

import matplotlib.pyplot as plt

FORMS = {"dense": ("dense", "#888888"), "packed": ("compressed", "#3465a4")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("image", type=pathlib.Path, help=".svg or .png")
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    # Text as text, no date, and identifiers that are the same each time.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "zipserv", "font.size": 12})
    figure, axes = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
    speeds = {}
    for form, (label, color) in FORMS.items():
        rows = [row["steps_ms"] for row in result["rows"] if row["form"] == form]
        speeds[form] = {int(size): int(size) / statistics.median(row[size] for row in rows) * 1e3 for size in rows[0]}
        axes.plot(*zip(*speeds[form].items(), strict=True), marker="o", color=color, label=label)
    for size, speed in speeds["packed"].items():
        ratio = f"{speed / speeds['dense'][size]:.2f}x"
        axes.annotate(
            ratio, (size, speed), xytext=(0, 8), textcoords="offset points", ha="center", color=FORMS["packed"][1]
        )
    axes.set(xscale="log", yscale="log", xlabel="requests at a time", ylabel="tokens a second")
    axes.set_xticks(list(speeds["dense"]), labels=list(speeds["dense"]))
    axes.minorticks_off()
    axes.margins(y=0.12)
    ticks = [200, 500, 1000, 2000, 5000, 10000]
    axes.set_yticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    axes.set_title(f"{result['server']}, {result['shape']}, {result['devices'][0].partition(',')[0]}", fontsize=12)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(options.image, metadata={"Date": None} if options.image.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
