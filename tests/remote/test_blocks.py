"""Small reads share blocks, large ones go through, and every byte is the right one whatever the order."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdconvert.errors import UnreadableError
from sdconvert.remote.blocks import RemoteSource
from sdconvert.source import SliceSource, is_far, read

KIB = 1 << 10
DATA = random.Random(0).randbytes(3_000_001)


class Recorded:
    """Ranges of bytes in memory that remember what was asked for."""

    name = "memory://x/model.tar.gz"

    def __init__(self, data: bytes = DATA) -> None:
        self.data, self.nbytes = data, len(data)
        self.asked: list[tuple[int, int]] = []
        self.broken = 0

    def fetch(self, offset: int, buffer: memoryview) -> None:
        self.asked.append((offset, len(buffer)))
        if self.broken:
            self.broken -= 1
            raise UnreadableError("broken")
        assert offset >= 0
        assert offset + len(buffer) <= self.nbytes
        buffer[:] = self.data[offset : offset + len(buffer)]

    def check_unchanged(self) -> None: ...

    def close(self) -> None: ...


@given(st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, 1_500_000)), max_size=30))
def test_every_read_gives_the_bytes_that_are_there(reads: list[tuple[int, int]]) -> None:
    source = RemoteSource(Recorded())
    for offset, count in reads:
        count = min(count, len(DATA) - offset)
        assert read(source, offset, count) == DATA[offset : offset + count]


def test_threads_share_what_is_on_its_way() -> None:
    ranges = Recorded()
    source = RemoteSource(ranges)
    together = threading.Barrier(8)

    def look(number: int) -> bytes:
        together.wait()
        return b"".join(read(source, at, 100) for at in range(1_000_000, 1_400_000, 1000))

    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(look, range(8)))
    assert results == {b"".join(DATA[at : at + 100] for at in range(1_000_000, 1_400_000, 1000))}
    assert sum(count for _, count in ranges.asked) < 1_000_000
    assert len(set(ranges.asked)) == len(ranges.asked)


def test_reads_that_follow_each_other_take_ever_larger_requests() -> None:
    ranges = Recorded()
    source = RemoteSource(ranges)
    for at in range(1_000_000, 2_000_000, 5000):
        read(source, at, 5000)
    assert len(ranges.asked) <= 7
    assert max(count for _, count in ranges.asked) == 512 * KIB


def test_reads_far_from_each_other_stay_small() -> None:
    ranges = Recorded()
    source = RemoteSource(ranges)
    for at in range(500_000, 2_500_000, 200_000):
        read(source, at, 8)
    assert {count for _, count in ranges.asked} == {32 * KIB}


def test_the_end_comes_in_one_piece() -> None:
    ranges = Recorded()
    source = RemoteSource(ranges)
    for at in (len(DATA) - 22, len(DATA) - 65557, len(DATA) - 200_000):
        read(source, at, 22)
    [(offset, count)] = ranges.asked
    assert offset + count == len(DATA)
    assert 256 * KIB <= count < 300 * KIB


def test_a_large_read_uses_what_is_there_at_its_ends_and_is_not_kept() -> None:
    ranges = Recorded()
    source = RemoteSource(ranges)
    read(source, 1_000_000, 100)
    read(source, 2_000_000, 100)
    ranges.asked.clear()
    assert read(source, 1_000_050, 1_000_000) == DATA[1_000_050:2_000_050]
    assert sum(count for _, count in ranges.asked) < 1_000_000
    ranges.asked.clear()
    read(source, 1_500_000, 100)
    assert len(ranges.asked) == 1


def test_what_is_expected_is_fetched_once_and_nothing_beside_it() -> None:
    ranges = Recorded(DATA * 8)
    source = RemoteSource(ranges)
    parts = [(1_000_000, 9_000_000), (12_000_000, 12_000_100), (12_010_000, 20_000_000)]
    for begin, end in parts:
        source.expect(begin, end)
    steps = [(at, min(500_000, end - at)) for begin, end in parts for at in range(begin, end, 500_000)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: read(source, *step), steps))
    assert b"".join(found) == b"".join(ranges.data[begin:end] for begin, end in parts)
    wanted = sum(end - begin for begin, end in parts)
    assert sum(count for _, count in ranges.asked) < wanted + 4 * 64 * KIB
    assert len(ranges.asked) < 14
    assert max(count for _, count in ranges.asked) == 4096 * KIB


@given(st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, 700_000), st.booleans()), max_size=20))
def test_expecting_changes_no_byte(reads: list[tuple[int, int, bool]]) -> None:
    source = RemoteSource(Recorded())
    for offset, count, told in reads:
        count = min(count, len(DATA) - offset)
        if told:
            source.expect(offset, offset + count)
        assert read(source, offset, count) == DATA[offset : offset + count]


def test_a_small_file_is_one_request() -> None:
    ranges = Recorded(DATA[:40_000])
    source = RemoteSource(ranges)
    assert read(source, 0, 8) + read(source, 39_000, 1000) == DATA[:8] + DATA[39_000:40_000]
    assert len(ranges.asked) == 1


def test_what_failed_is_asked_for_again() -> None:
    ranges = Recorded()
    source = RemoteSource(ranges)
    ranges.broken = 1
    with pytest.raises(UnreadableError, match="broken"):
        read(source, 0, 10)
    assert read(source, 0, 10) == DATA[:10]


def test_memory_is_bounded() -> None:
    ranges = Recorded()
    ranges.nbytes = 1 << 40
    ranges.data = bytes(1)
    source = RemoteSource(ranges)
    ranges.fetch = lambda offset, buffer: None  # type: ignore[method-assign]
    for at in range(0, 1 << 30, 1 << 17):
        read(source, at, 8)
    assert sum(map(len, source._blocks.values())) <= 64 << 20


def test_beyond_the_end() -> None:
    source = RemoteSource(Recorded())
    with pytest.raises(UnreadableError, match="there are only 3000001"):
        source.readinto(len(DATA) - 1, memoryview(bytearray(2)))


def test_it_says_that_it_is_far_and_how_an_output_is_called() -> None:
    source = RemoteSource(Recorded())
    assert is_far(source)
    assert is_far(SliceSource(source, 10, 10))
    assert str(source.stem) == "model.tar"
