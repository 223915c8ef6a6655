"""Anything that fsspec knows is a source, read by ranges and held to what came."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import sdconvert
from sdconvert.errors import UnreadableError
from sdconvert.source import read
from tests.remote.opened import opened_file

DATA = random.Random(2).randbytes(1_000_000)


class Moody(MemoryFileSystem):
    """Files in memory behind a connection of which `trouble` comes out."""

    protocol = "moody"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its base has it
    trouble: list[BaseException | bytes] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("moody://"))  # type: ignore[no-any-return]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if self.trouble:
            what = self.trouble.pop()
            if isinstance(what, bytes):
                return what
            raise what
        return super().cat_file(path, start=start, end=end, **options)


@pytest.fixture
def moody() -> Moody:
    fsspec.register_implementation("moody", Moody, clobber=True)
    file_system = fsspec.filesystem("moody")
    file_system.pipe_file("/a/model.bin", DATA)
    file_system.trouble.clear()
    return file_system


def test_ranges(moody: Moody) -> None:
    with opened_file("moody://a/model.bin") as source:
        assert (source.nbytes, str(source.stem)) == (len(DATA), "model")
        assert read(source, 123_456, 10) == DATA[123_456:123_466]
        assert read(source, 100, 900_000) == DATA[100:900_100]
        source.check_unchanged()


def test_trouble_that_passes_is_tried_again(moody: Moody) -> None:
    with opened_file("moody://a/model.bin") as source:
        moody.trouble += [OSError("reset"), TimeoutError("late")]
        assert read(source, 0, 10) == DATA[:10]


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (PermissionError("not yours"), "cannot be read: not yours"),
        (FileNotFoundError("gone"), "is not there"),
        (RuntimeError("odd hf_abcdefgh\nthing"), r"cannot be read: odd hf_\*\*\* thing"),
        (b"short", r"5 came\. The file changed"),
        (DATA, "The file changed, or its file system does not read ranges"),
    ],
)
def test_trouble_that_stays(moody: Moody, trouble: BaseException | bytes, says: str) -> None:
    with opened_file("moody://a/model.bin") as source:
        moody.trouble.append(trouble)
        with pytest.raises(UnreadableError, match=says):
            read(source, 500_000, 10)


def test_a_change_is_seen(moody: Moody) -> None:
    with opened_file("moody://a/model.bin") as source:
        moody.pipe_file("/a/model.bin", DATA + b"x")
        with pytest.raises(UnreadableError, match="changed while it was read"):
            source.check_unchanged()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("moody://a/nothing", "moody://a/nothing: is not there"),
        ("moody://a", "is a directory"),
        ("nosuch://a/b", "cannot be opened|reading it needs another package"),
    ],
)
def test_what_cannot_be_opened(moody: Moody, url: str, says: str) -> None:
    with pytest.raises(UnreadableError, match=says):
        opened_file(url)


def test_a_conversion(moody: Moody, tmp_path: Path) -> None:
    weight = torch.randn(300, 300)
    torch.save({"a.weight": weight}, tmp_path / "model.pt")
    moody.pipe_file("/a/model.pt", (tmp_path / "model.pt").read_bytes())
    report = sdconvert.convert("moody://a/model.pt", tmp_path / "out.safetensors")
    assert (report.source, report.tensors) == ("moody://a/model.pt", 1)
    assert sdconvert.digest(tmp_path / "out.safetensors") == sdconvert.digest(tmp_path / "model.pt")
