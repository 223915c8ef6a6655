"""Files are synced while they are written, so that the disk works beside the copying."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from sdconvert import atomic, convert, output


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was synced."""
    times: Counter[str] = Counter()

    def sync(file: atomic.NewFile) -> None:
        times[file.path.name] += 1
        original(file)

    original = atomic.NewFile.sync
    monkeypatch.setattr(atomic.NewFile, "sync", sync)
    return times


def test_a_large_file_is_synced_again_and_again(
    tmp_path: Path, synced: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_EARLY", 8 << 20)
    weights = {"w": torch.arange(9 << 20, dtype=torch.int32)}
    torch.save(weights, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert synced["a.safetensors"] == 36 // 8 + 1
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert torch.equal(torch.load(tmp_path / "b.pt")["w"], weights["w"])


def test_a_small_file_is_synced_once(tmp_path: Path, synced: Counter[str]) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert synced == {"a.safetensors": 1}


def test_an_error_of_a_sync_on_the_way_is_one_of_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(file: atomic.NewFile) -> None:
        if not failed:
            failed.append(True)
            raise OSError(5, "Input/output error")

    failed: list[bool] = []
    monkeypatch.setattr(atomic.NewFile, "sync", sync)
    monkeypatch.setattr(output, "_EARLY", 4 << 20)
    torch.save({"w": torch.ones(4 << 20)}, tmp_path / "a.pt")
    with pytest.raises(output.OutputError, match=r"cannot be written: Input/output error\. Nothing was left behind"):
        convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
