"""What the harnesses of this folder share: files of results, and what they say of the machine."""

import datetime
import importlib.metadata
import json
import pathlib
import subprocess


def head(server, options, **more):
    """What a result is of. ``server`` is the package that runs the model."""
    import torch

    devices = ["CPU"]
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        devices = subprocess.check_output(query, text=True).splitlines()
        devices = [device.replace(", ", ", driver ") for device in devices]
    return {
        "server": f"{server} {importlib.metadata.version(server)}",
        "devices": devices,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": options.commit,
        "shape": options.shape,
        "context": options.context,
        "packages": {name: importlib.metadata.version(name) for name in ("zipserv", "torch", "transformers")},
        "cuda": torch.version.cuda,
        **more,
    }


def write(path: pathlib.Path, head, rows):
    """A row a line. It may be called again with more rows."""
    lines = [f'"{name}": {json.dumps(value)},' for name, value in head.items()]
    body = ",\n".join(json.dumps(row) for row in rows)
    path.write_text("{\n" + "\n".join(lines) + '\n"rows": [\n' + body + "\n]\n}\n")
