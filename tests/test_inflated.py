"""Compressed streams: unpacked once, to exactly what was announced, and not a byte beyond what may be."""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from binascii import crc32

import pytest

import sdconvert
from sdconvert import Limits
from sdconvert.inflated import InflatedSource, Scratch, credit, head_of, inflate, packed_bytes
from sdconvert.source import MemorySource, SliceSource, read

DATA = bytes(range(256)) * 40
RAW, GZIP = -15, 31


def deflated(data: bytes = DATA) -> bytes:
    engine = zlib.compressobj(wbits=RAW)
    return engine.compress(data) + engine.flush()


def unpacked(stream: bytes, wbits: int, most: int) -> bytes:
    out = bytearray()
    assert inflate(MemorySource(stream), wbits, most, out.extend, "r") == crc32(out)
    return bytes(out)


def test_what_may_be_unpacked_is_counted_to_the_byte() -> None:
    assert unpacked(deflated(), RAW, len(DATA)) == DATA
    with pytest.raises(sdconvert.UnreadableError, match=f"r: unpacks to more than the {len(DATA) - 1} bytes it may"):
        unpacked(deflated(), RAW, len(DATA) - 1)


def test_gzip_members_may_follow_each_other_and_nothing_else_may() -> None:
    two = gzip.compress(DATA) + gzip.compress(b"more")
    assert unpacked(two, GZIP, 2 * len(DATA)) == DATA + b"more"
    for stream, wbits in ((gzip.compress(DATA) + b"tail", GZIP), (deflated() + b"\x1f", RAW)):
        with pytest.raises(sdconvert.UnreadableError, match="data follows its compressed stream"):
            unpacked(stream, wbits, len(DATA))


@pytest.mark.parametrize("left_out", [1, 8, 100])
def test_a_stream_that_was_cut_short_ends_too_early(left_out: int) -> None:
    with pytest.raises(sdconvert.UnreadableError, match="ends too early"):
        unpacked(gzip.compress(DATA)[:-left_out], GZIP, len(DATA))


def test_a_damaged_stream_is_said_to_be_one() -> None:
    with pytest.raises(sdconvert.UnreadableError, match="its compressed data is damaged"):
        unpacked(b"\xff" * 100, RAW, len(DATA))


def source(*, nbytes: int = len(DATA), checksum: int | None = None) -> InflatedSource:
    return InflatedSource(
        MemorySource(deflated()), Scratch(), wbits=RAW, nbytes=nbytes, limits=Limits(), name="r", crc32=checksum
    )


def test_any_part_can_be_read_within_its_bounds() -> None:
    opened = source(checksum=crc32(DATA))
    assert read(opened, 300, 20) == DATA[300:320]
    assert read(opened, len(DATA) - 3, 3) == DATA[-3:]
    for offset in (-1, len(DATA) - 1):
        with pytest.raises(sdconvert.UnreadableError, match="is beyond its"):
            opened.readinto(offset, memoryview(bytearray(2)))


def test_more_or_fewer_bytes_than_were_announced_are_refused_and_so_is_another_checksum() -> None:
    with pytest.raises(
        sdconvert.UnreadableError, match=f"unpacks to {len(DATA)} bytes, {len(DATA) + 1} were announced"
    ):
        read(source(nbytes=len(DATA) + 1), 0, 1)
    with pytest.raises(sdconvert.UnreadableError, match="unpacks to more than"):
        read(source(nbytes=len(DATA) - 1), 0, 1)
    with pytest.raises(sdconvert.UnreadableError, match=r"checksum .*, expected 00000001"):
        read(source(checksum=1), 0, 1)


def test_a_disk_without_room_for_what_is_unpacked_says_where_it_would_have_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    data = bytes(5 << 20)  # More than is kept in memory.
    stream = MemorySource(gzip.compress(data))
    with pytest.raises(sdconvert.UnreadableError, match=r"r: cannot be unpacked .*No space left.*TMPDIR"):
        InflatedSource(stream, Scratch(), wbits=GZIP, nbytes=None, limits=Limits(), name="r")


def test_the_head_is_told_without_unpacking_and_of_damage_by_the_error() -> None:
    part = SliceSource(source(checksum=1), 2, 100)
    assert head_of(part, 4) == DATA[2:6]
    with pytest.raises(sdconvert.UnreadableError, match="checksum"):
        read(part, 0, 1)


def test_credit_and_size_are_those_of_the_packed_bytes() -> None:
    part = SliceSource(source(), 2, 100)
    assert packed_bytes(part) == len(deflated())
    assert credit(part, Limits()) == (2 << 20) + 12 * len(deflated())
    assert credit(part, Limits(inflate_slack=100), ratio=8) == 100 + 8 * len(deflated())
    assert credit(MemorySource(DATA), Limits()) == len(DATA)
    assert packed_bytes(SliceSource(MemorySource(DATA), 5, 60)) == 60


def inside(stream: bytes, within: SliceSource | InflatedSource | MemorySource, nbytes: int) -> InflatedSource:
    return InflatedSource(
        SliceSource(within, 0, len(stream)), Scratch(), wbits=RAW, nbytes=nbytes, limits=Limits(), name="inner"
    )


def test_what_was_packed_twice_counts_as_what_is_really_there() -> None:
    """However large the stream in between is: it was unpacked, and may be full of nothing."""
    inner = zlib.compressobj(0, wbits=RAW)
    stream = inner.compress(DATA) + inner.flush()
    outer = deflated(stream)
    between = InflatedSource(
        MemorySource(outer), Scratch(), wbits=RAW, nbytes=len(stream), limits=Limits(), name="outer"
    )
    assert packed_bytes(inside(stream, between, len(DATA))) == len(outer) < len(stream)
    assert credit(inside(stream, between, len(DATA)), Limits()) == (2 << 20) + 12 * len(outer)


def test_all_that_is_compressed_inside_of_a_stream_shares_what_its_bytes_allow() -> None:
    zeros = bytes(10_000)
    stream = deflated(zeros)
    outer = deflated(stream)
    between = InflatedSource(
        MemorySource(outer), Scratch(), wbits=RAW, nbytes=len(stream), limits=Limits(), name="outer"
    )
    allowed = (Limits().inflate_ratio * len(outer) - len(stream)) // len(zeros)
    assert 0 < allowed < 10
    for _ in range(allowed):
        assert read(inside(stream, between, len(zeros)), 0, 1) == b"\0"
    with pytest.raises(sdconvert.UnreadableError, match=r"inner: compressed data inside .*It is a bomb"):
        read(inside(stream, between, len(zeros)), 0, 1)


def test_scratch_keeps_places_apart_before_and_after_it_moves_to_a_file() -> None:
    scratch = Scratch()
    first, second, third = scratch.allocate(10), scratch.allocate(5 << 20), scratch.allocate(10)
    scratch.write(b"a" * 10, first)
    scratch.write(b"c" * 10, third)  # Beyond what is kept in memory.
    scratch.write(b"b" * (5 << 20), second)
    for at, letter in ((first, b"a"), (third, b"c"), (second + (5 << 20) - 10, b"b")):
        out = bytearray(10)
        scratch.readinto(at, memoryview(out))
        assert out == letter * 10
