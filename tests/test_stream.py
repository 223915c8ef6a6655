"""Checksums of a source: what was read for the output is not read again, what was not is. Reading back an output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sdconvert
from sdconvert.crc32 import crc32
from sdconvert.errors import OutputError
from sdconvert.source import MemorySource
from sdconvert.stream import Chunk, check_storages, read_back
from sdconvert.tensor import Storage

DATA = bytes(range(100))


class Counted(MemorySource):
    """Knows which ranges of it were read."""

    def __init__(self) -> None:
        super().__init__(DATA)
        self.ranges: list[tuple[int, int]] = []

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self.ranges.append((offset, offset + len(buffer)))
        super().readinto(offset, buffer)


def known(*ranges: tuple[int, int]) -> list[Chunk]:
    return [Chunk(begin, end - begin, crc32(DATA[begin:end])) for begin, end in ranges]


@pytest.mark.parametrize(
    ("ranges", "read"),
    [
        ([(0, 100)], []),
        ([(0, 40), (40, 100)], []),
        ([(40, 100), (0, 40)], []),
        ([(0, 40)], [(40, 100)]),
        ([(10, 40), (60, 70)], [(0, 10), (40, 60), (70, 100)]),
        ([(0, 50), (40, 100)], [(50, 100)]),
        ([], [(0, 100)]),
    ],
)
def test_only_gaps_are_read_for_a_checksum(ranges: list[tuple[int, int]], read: list[tuple[int, int]]) -> None:
    source = Counted()
    storage = Storage(source, 0, 100, "s", crc32(DATA))
    check_storages({storage: known(*ranges)}, [storage, storage], threads=1)
    assert source.ranges == read


def test_a_byte_that_no_tensor_covers_is_checked_too() -> None:
    storage = Storage(Counted(), 0, 100, "s", crc32(DATA[:99] + b"?"))
    with pytest.raises(sdconvert.UnreadableError, match=r"record s: checksum .*, expected .*damaged"):
        check_storages({storage: known((0, 40))}, [storage], threads=1)
    check_storages({}, [Storage(Counted(), 0, 100, "s")], threads=1)  # Without a checksum there is nothing to check.


def test_an_output_is_read_back_from_its_end_where_the_page_cache_still_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "o").write_bytes(DATA)
    places: list[int] = []
    preadv = os.preadv

    def noted(fd: int, buffers: list[memoryview], offset: int) -> int:
        places.append(offset)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", noted)
    with (tmp_path / "o").open("rb") as file:
        read_back(known((0, 30), (60, 100), (30, 60)), file.fileno(), threads=1, progress=lambda count: None)
        assert places == [60, 30, 0]
        wrong = [*known((0, 30)), Chunk(30, 70, 0)]
        with pytest.raises(OutputError, match="bytes 30 to 100 read back differently"):
            read_back(wrong, file.fileno(), threads=1, progress=lambda count: None)
