"""Files: the library's functions from Python."""

import math
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights import like_trained

import zipserv


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": like_trained(300, 500), "b": torch.arange(10.0), "c": like_trained(64, 64)}, path)
    return path


def test_round_trip_and_report(checkpoint, tmp_path):
    small, restored = tmp_path / "small.safetensors", tmp_path / "restored.safetensors"
    calls = []
    report = zipserv.compress(checkpoint, small, progress=lambda done, total: calls.append((done, total)))
    assert report.original_bytes == checkpoint.stat().st_size
    assert report.stored_bytes == small.stat().st_size
    storage = {tensor.name: tensor.storage for tensor in report.tensors}
    assert storage == {"a.weight": "matrix", "b": "raw", "c": "matrix"}
    assert calls[-1][0] == calls[-1][1] > 0
    assert zipserv.verify(small, checkpoint)
    zipserv.decompress(str(small), str(restored), progress=False)
    assert restored.read_bytes() == checkpoint.read_bytes()
    (tensor,) = [t for t in zipserv.inspect(small).tensors if t.name == "a.weight"]
    assert tensor.shape == [300, 500] and tensor.stored_bytes < tensor.original_bytes == 300000


def test_stacks_of_experts_are_told(tmp_path):
    path, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    tensors = {"aligned": (4, 60, 128), "unaligned": (4, 40, 128), "matrix": (64, 128)}
    dense = {name: like_trained(math.prod(shape[:-1]), shape[-1]).view(shape) for name, shape in tensors.items()}
    save_file(dense, path)
    zipserv.compress(path, small)
    stacks = {tensor.name: tensor.stack for tensor in zipserv.inspect(small).tensors}
    assert stacks["matrix"] is None
    for name, aligned in (("aligned", True), ("unaligned", False)):
        stack = stacks[name]
        assert (stack.experts, stack.rows, stack.aligned) == (*tensors[name][:2], aligned)
    assert repr(stacks["unaligned"]) == "<zipserv.Stack: 4 of 40 rows, not aligned>"


def test_archives(checkpoint, tmp_path):
    small, archive, again = (tmp_path / name for name in ("small", "archive", "again"))
    zipserv.compress(checkpoint, small)
    report = zipserv.compress(checkpoint, archive, archive=True)
    assert {tensor.storage for tensor in report.tensors} == {"planes", "raw"}
    assert archive.stat().st_size < small.stat().st_size
    assert zipserv.verify(archive, checkpoint)
    zipserv.convert(archive, again)
    assert again.read_bytes() == small.read_bytes()
    zipserv.convert(small, again, archive=True, force=True)
    assert again.read_bytes() == archive.read_bytes()


def test_a_difference_is_named(checkpoint, tmp_path):
    small, other = tmp_path / "small.safetensors", tmp_path / "other.safetensors"
    zipserv.compress(checkpoint, small)
    tensors = load_file(checkpoint)
    tensors["a.weight"][7, 9] = 123
    save_file(tensors, other)
    verdict = zipserv.verify(small, other)
    assert not verdict and verdict.tensor == "a.weight" and "[7, 9]" in verdict.difference


def test_errors_carry_file_tensor_and_offset(checkpoint, tmp_path):
    small = tmp_path / "small.safetensors"
    zipserv.compress(checkpoint, small)
    with pytest.raises(zipserv.Error, match="already exists") as raised:
        zipserv.compress(checkpoint, small)
    assert raised.value.file == str(small)
    # The magic of the first compressed matrix.
    data = small.read_bytes()
    at = data.index(b"ZIPSERV\0")
    small.write_bytes(data[:at] + b"x" + data[at + 1 :])
    with pytest.raises(zipserv.Error, match="magic") as raised:
        zipserv.decompress(small, tmp_path / "restored.safetensors")
    assert raised.value.file == str(small) and raised.value.tensor in ("a.weight", "c")
    assert raised.value.offset == at
    assert not (tmp_path / "restored.safetensors").exists()


def test_a_callback_that_raises_stops_the_job(tmp_path):
    path, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({f"{i}": like_trained(2048, 4096) for i in range(4)}, path)

    def stop(done, total):
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        for _ in range(20):
            zipserv.compress(path, small, progress=stop, force=True)
    assert [p for p in sorted(tmp_path.iterdir()) if p != small] == before


def test_other_threads_run_meanwhile(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": like_trained(4096, 4096)}, path)
    count, done = 0, threading.Event()

    def work():
        zipserv.compress(path, tmp_path / "small.safetensors", progress=False)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        count += 1
    thread.join()
    assert count > 1


def test_the_program_is_installed(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", "from zipserv._program import main; main()", "--version"], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.split()[:2] == ["zipserv", zipserv.__version__]
    run = subprocess.run(
        [sys.executable, "-c", "from zipserv._program import main; main()", "inspect", str(tmp_path / "none")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "none" in run.stderr


def test_nothing_heavy_is_imported():
    code = "import sys, zipserv; assert not {'torch', 'transformers', 'vllm', 'tqdm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
