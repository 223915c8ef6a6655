"""Where the system gives fewer threads than are asked for, or none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdconvert import convert, verify


@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_a_conversion_needs_no_thread(given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processes or on memory leaves fewer threads to write with, to read back with and to sync with."""
    tensors = {f"w{i}": torch.full((3 << 20,), i) for i in range(4)}
    torch.save(tensors, tmp_path / "model.pt")
    left, refused = given, 0
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        nonlocal left, refused
        if left == 0:
            refused += 1
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    convert(tmp_path / "model.pt", tmp_path / "model.safetensors", threads=3)
    assert verify(tmp_path / "model.pt", tmp_path / "model.safetensors", threads=3)
    assert refused
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model.safetensors"]


def test_an_error_without_threads_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdconvert import OutputError, atomic

    torch.save({"w": torch.zeros(3)}, tmp_path / "model.pt")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def fail(file: atomic.NewFile) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(atomic.NewFile, "sync", fail)
    with pytest.raises(OutputError, match=r"model\.safetensors: cannot be written: Input/output error"):
        convert(tmp_path / "model.pt", tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
