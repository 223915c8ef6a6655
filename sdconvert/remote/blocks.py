"""A remote file as a source: small reads share blocks that are kept, large ones go straight through.

Strategy: reading headers is many small reads, most of them near each other, and each request
costs a round trip. So small reads are served from blocks; a run of them that goes on fetches
as much again each time, and the end of a file, where zip directories lie, comes in one piece.
Large reads are not kept, but use what is there at their ends. Once it is known what will be
read (`expect`), that is fetched a few MiB at a time, each byte once, and nothing beside it.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol

from ..errors import UnreadableError
from .proof import Proof

_BLOCK = 32 << 10
_LARGE = 512 << 10  # Reads from here on are not kept.
_KEPT = 2048  # Blocks: 64 MiB.
_HEAD = 2  # Blocks of the first read of all: most pickles and headers fit.
_TAIL = 256 << 10  # Bytes at the end that are fetched together.
_EXPECTED = 128  # Blocks of one request for what will be read for sure: 4 MiB.
_AHEAD = 16  # Blocks of one request, at most, when small reads follow each other: 512 KiB.


class Ranges(Protocol):
    """What fetches: a file at a server, of `nbytes` bytes, known as `name` in messages."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on, by any thread. UnreadableError if that cannot be done."""

    def check_unchanged(self) -> None:
        """UnreadableError if the file is not any more what it was when it was opened."""

    def close(self) -> None:
        """Let go of what it holds."""


class RemoteSource:
    """A `Source` and an `Origin` over `Ranges`. A read of it may be a request: `far` says so to those who read.

    `digest` is that of the whole file where the server tells it: what was read is held against it in the end.
    """

    far = True

    def __init__(self, ranges: Ranges, digest: str = "") -> None:
        self.name, self.nbytes = ranges.name, ranges.nbytes
        self._proof = Proof(digest, ranges.nbytes) if digest else None
        self._unchecked = False  # Whether something will be read, or was, that has no checksum in its container.
        self._ranges = ranges
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._coming: set[int] = set()  # Blocks that some thread is fetching.
        self._ahead: OrderedDict[int, int] = OrderedDict()  # The length of a run so far, by the block that comes next.
        self._expected: list[tuple[int, int]] = []  # Ranges of blocks that will be read.
        self._sorted = True
        self._changed = threading.Condition()

    @property
    def stem(self) -> Path:
        """Its last name without an ending, in the working directory."""
        name = PurePosixPath(self.name.partition("://")[2].partition("?")[0]).name
        return Path(name).with_suffix("") if name else Path("model")

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if offset < 0 or end > self.nbytes:
            raise UnreadableError(f"bytes {offset} to {end} are needed, but there are only {self.nbytes}")
        if not buffer:
            return
        if len(buffer) < _LARGE or (self._expected and len(buffer) <= _EXPECTED * _BLOCK):
            self._shared(offset, buffer)
            return
        with self._changed:
            begin = self._copy(offset, buffer, 1)
            stop = self._copy(end - 1, buffer, -1, offset) if begin < end else end
        if begin < stop:
            self._fetch(begin, buffer[begin - offset : stop - offset])

    def expect(self, begin: int, end: int, *, checked: bool = False) -> None:
        """The bytes from `begin` to `end` will be read, once, by somebody, who compares them with a checksum or not."""
        with self._changed:
            self._unchecked = self._unchecked or not checked
            self._expected.append((begin // _BLOCK, (end + _BLOCK - 1) // _BLOCK))
            self._sorted = False

    def check_unchanged(self) -> None:
        """UnreadableError if the file is not any more what was opened, or if other bytes came than those of it."""
        self._ranges.check_unchanged()
        if self._proof is not None and not self._is_checked:
            self._proof.finish(self._ranges.fetch)

    @property
    def doubt(self) -> str:
        """Why the bytes of the weights that were read could not be checked, "" if they were. See `check_unchanged`."""
        if not self._unchecked:
            return ""
        return self._proof.doubt if self._proof is not None else "its server tells no checksum"

    def is_same_file(self, other: os.stat_result) -> bool:
        """Never: no output of ours is a file at a server."""
        return False

    def close(self) -> None:
        """Let go of connections and of what was kept."""
        self._ranges.close()
        with self._changed:
            self._blocks.clear()

    def __enter__(self) -> RemoteSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _is_checked(self) -> bool:
        """Whether the checksums of its container are compared for all that will be read of it."""
        return bool(self._expected) and not self._unchecked

    def _fetch(self, offset: int, buffer: memoryview) -> None:
        self._ranges.fetch(offset, buffer)
        if self._proof is not None and not self._is_checked:
            self._proof.saw(offset, buffer)

    def _shared(self, offset: int, buffer: memoryview) -> None:
        first, last = offset // _BLOCK, (offset + len(buffer) - 1) // _BLOCK
        while True:
            with self._changed:
                missing = [block for block in range(first, last + 1) if block not in self._blocks]
                if not missing:
                    self._copy(offset, buffer, 1)
                    return
                if not self._coming.isdisjoint(missing):
                    self._changed.wait()
                    continue
                run = self._run(missing[0], last)
                self._coming.update(run)
            self._load(run)

    def _run(self, first: int, last: int) -> range:
        """The blocks to fetch in one request when `first` is missing and those up to `last` are needed."""
        count = (self.nbytes + _BLOCK - 1) // _BLOCK
        sure, before = self._sure(first), self._ahead.pop(first, 0)
        if sure:
            wanted = max(min(sure, _EXPECTED), last + 1 - first)
        elif not self._blocks and first == 0:
            wanted = max(_HEAD, last + 1)
        else:
            wanted = max(min(before, _AHEAD), last + 1 - first)
        tail = max(0, self.nbytes - _TAIL) // _BLOCK
        if not sure and first + wanted > tail:
            wanted = count - first
            while first > tail and not self._there(first - 1):
                first, wanted = first - 1, wanted + 1
        end = first + 1
        while end < min(first + wanted, count) and not self._there(end):
            end += 1
        self._ahead[end] = before + end - first
        while len(self._ahead) > 64:
            self._ahead.popitem(last=False)
        return range(first, end)

    def _sure(self, block: int) -> int:
        """How many blocks, from this one on, will be read."""
        if not self._sorted:
            merged: list[tuple[int, int]] = []
            for begin, end in sorted(self._expected):
                if merged and begin <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
                else:
                    merged.append((begin, end))
            self._expected, self._sorted = merged, True
        at = bisect_right(self._expected, (block, 1 << 63)) - 1
        return max(0, self._expected[at][1] - block) if at >= 0 else 0

    def _there(self, block: int) -> bool:
        return block in self._blocks or block in self._coming

    def _load(self, run: range) -> None:
        begin = run.start * _BLOCK
        data = bytearray(min(run.stop * _BLOCK, self.nbytes) - begin)
        try:
            self._fetch(begin, memoryview(data))
        except BaseException:
            data = bytearray()
            raise
        finally:
            with self._changed:
                self._coming.difference_update(run)
                if data:
                    for number, block in enumerate(run):
                        self._blocks[block] = bytes(data[number * _BLOCK : (number + 1) * _BLOCK])
                while len(self._blocks) > _KEPT:
                    self._blocks.popitem(last=False)
                self._changed.notify_all()

    def _copy(self, at: int, buffer: memoryview, step: int, offset: int | None = None) -> int:
        """Fill `buffer` from blocks that are there, from byte `at` on: forwards, or backwards with `step` -1.

        Gives the byte after the last one that was filled; backwards, the last one.
        `offset` is where the buffer begins, `at` if it is not given.
        """
        start = at if offset is None else offset
        end = start + len(buffer)
        position = at
        while start <= position < end:
            block = position // _BLOCK
            data = self._blocks.get(block)
            if data is None:
                break
            self._blocks.move_to_end(block)
            begin, stop = max(start, block * _BLOCK), min(end, block * _BLOCK + len(data))
            buffer[begin - start : stop - start] = data[begin - block * _BLOCK : stop - block * _BLOCK]
            position = stop if step > 0 else begin - 1
        return position if step > 0 else position + 1
