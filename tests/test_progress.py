"""Progress: a bar for whoever asks for one, the same way in every function that takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from sdconvert.progress import bar_of, no_bar, terminal_bar

LONG: dict[str, Callable[[Path, Any], Any]] = {
    "convert": lambda folder, progress: sdconvert.convert(
        folder / "m.pt", folder / "o.safetensors", overwrite=True, progress=progress
    ),
    "save": lambda folder, progress: sdconvert.save(
        {"w": torch.ones(3)}, folder / "o.safetensors", overwrite=True, progress=progress
    ),
    "verify": lambda folder, progress: sdconvert.verify(folder / "m.pt", folder / "m.pt", progress=progress),
    "digest": lambda folder, progress: sdconvert.digest(folder / "m.pt", progress=progress),
    "load": lambda folder, progress: sdconvert.load(folder / "m.pt", copy="read", progress=progress),
}


@pytest.mark.parametrize("name", LONG)
def test_progress_is_true_or_none_or_a_bar_of_ones_own(name: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pt")
    told: list[tuple[str, int]] = []

    @contextmanager
    def bar(label: str, nbytes: int) -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        yield done.append
        told.append((label, sum(done)))
        assert sum(done) == nbytes

    for progress in (True, False, None, bar):
        LONG[name](tmp_path, progress)
    assert told[0][1] == 12


def test_none_is_no_bar_and_true_is_one_on_the_terminal() -> None:
    assert [bar_of(one) for one in (None, False, True, no_bar)] == [no_bar, no_bar, terminal_bar, no_bar]
