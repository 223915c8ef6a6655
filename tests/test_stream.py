"""Checksums of a source: what was read for the output is not read again, what was not is."""

from __future__ import annotations

import pytest

import sdconvert
from sdconvert.crc32 import crc32
from sdconvert.source import MemorySource
from sdconvert.stream import Chunk, check_storages
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
