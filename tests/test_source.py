"""A file as a source: what was opened is what is read, or an error says that it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import sdconvert
from sdconvert.source import FileSource, MemorySource, SliceSource, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.pt"
    path.write_bytes(bytes(range(100)))
    os.utime(path, ns=(10**18, 10**18))
    return path


def _rewrite(path: Path) -> None:
    path.write_bytes(bytes(100))


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, ns=(10**18, 10**18))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(10**18, 10**18))
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [(_rewrite, "was changed while"), (_append, "was changed while"), (_replace, "was replaced while")],
)
def test_a_file_that_changes_or_is_replaced_is_found_out(
    change: Callable[[Path], None], words: str, path: Path
) -> None:
    with FileSource(path) as source:
        source.check_unchanged()
        change(path)
        with pytest.raises(sdconvert.UnreadableError, match=words):
            source.check_unchanged()


def _link(path: Path) -> None:
    os.link(path, path.with_name("link"))


def _set_mode(path: Path) -> None:
    path.chmod(0o400)


@pytest.mark.parametrize("change", [Path.unlink, _link, _set_mode])
def test_what_changes_no_byte_is_no_change(change: Callable[[Path], None], path: Path) -> None:
    with FileSource(path) as source:
        change(path)
        source.check_unchanged()
        assert read(source, 98, 2) == b"bc"


def test_a_file_that_shrinks_is_an_error_with_the_byte(path: Path) -> None:
    with FileSource(path) as source:
        os.truncate(path, 60)
        assert read(source, 50, 10) == bytes(range(50, 60))
        with pytest.raises(sdconvert.UnreadableError, match=r"ended at byte 60 while it was read; it had 100 bytes"):
            read(source, 50, 20)


def test_a_part_reads_within_its_bounds_and_a_part_of_it_reads_from_the_whole() -> None:
    whole = MemorySource(bytes(range(100)))
    part = SliceSource(SliceSource(whole, 10, 50), 5, 20)
    assert (part.base, part.offset, part.nbytes) == (whole, 15, 20)
    assert read(part, 18, 2) == bytes([33, 34])
    for offset in (-1, 19):
        with pytest.raises(sdconvert.UnreadableError, match="there are only 20"):
            part.readinto(offset, memoryview(bytearray(2)))
    with pytest.raises(sdconvert.UnreadableError, match=r"claims bytes 15 to 25, but there are only 20"):
        SliceSource(part, 15, 10)
    with pytest.raises(sdconvert.UnreadableError, match="there are only 20"):
        read(part, 0, 21)
