"""Compressed ranges as sources: unpacked once, checked, and kept where they can be read at any offset.

What a stream claims to unpack to is a claim. Nothing is allocated for it; bytes are kept as
they come, up to the announced number, and must then be exactly that many.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from typing import IO

from .crc32 import crc32
from .errors import UnreadableError
from .limits import Limits
from .source import SliceSource, Source, read

_IN_MEMORY = 4 << 20
_STEP = 256 << 10


class Scratch:
    """Where unpacked bytes are kept: in memory while they are few, then in one unnamed temporary file.

    One for each archive, so that a thousand compressed records need neither a thousand files
    nor four gigabytes. Threads may write to places that they allocated, and read at any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._end = 0

    def allocate(self, nbytes: int) -> int:
        """The place of `nbytes` bytes that nobody else writes to."""
        with self._lock:
            at, self._end = self._end, self._end + nbytes
            return at

    def write(self, data: bytes, at: int) -> None:
        """Keep `data` at `at`. OSError when there is no space for it."""
        with self._lock:
            if self._file is None and at + len(data) > _IN_MEMORY:
                import tempfile  # It brings in half of the standard library, and few files are compressed.

                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this object
                _pwrite(self._file.fileno(), self._memory, 0)
                self._memory = bytearray()
            if self._file is None:
                self._memory.extend(bytes(max(0, at + len(data) - len(self._memory))))
                self._memory[at : at + len(data)] = data
                return
        _pwrite(self._file.fileno(), data, at)

    def readinto(self, at: int, buffer: memoryview) -> None:
        """Fill `buffer` with what was written at `at`."""
        with self._lock:
            if self._file is None:
                buffer[:] = self._memory[at : at + len(buffer)]
                return
        done = 0
        while done < len(buffer):
            count = os.preadv(self._file.fileno(), [buffer[done:]], at + done)
            if count == 0:
                raise UnreadableError("its temporary copy is short")
            done += count

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


class _Allowance:
    """How much may be unpacked in all from some bytes that are really there, whatever is inside of what."""

    def __init__(self, nbytes: int) -> None:
        self._left, self._lock = nbytes, threading.Lock()

    def take(self, nbytes: int, name: str) -> None:
        """UnreadableError when `nbytes` more are too many."""
        with self._lock:
            self._left -= nbytes
            if self._left < 0:
                raise UnreadableError(
                    f"{name}: compressed data inside compressed data multiplies beyond reason (Limits.inflate_ratio). "
                    "It is a bomb"
                )


def _pwrite(fd: int, data: bytes | bytearray, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count


class InflatedSource:
    """A compressed range, unpacked into `scratch` on first use, because weights are read in an
    order that has nothing to do with the stream's.

    `wbits` is zlib's: -15 for a raw deflate stream, 31 for gzip. `nbytes` must be what the
    stream really gives; None lets the stream decide (gzip), and then nothing else may be in `scratch`.
    All that is compressed inside of it, at any depth, shares what its own bytes allow (``Limits.inflate_ratio``).
    """

    def __init__(
        self,
        packed: Source,
        scratch: Scratch,
        *,
        wbits: int,
        nbytes: int | None,
        limits: Limits,
        name: str,
        crc32: int | None = None,
    ) -> None:
        self.name, self.packed = name, packed
        around = packed.base if isinstance(packed, SliceSource) else packed
        most = limits.inflate_ratio * max(packed_bytes(packed), 1)
        self._allowance: _Allowance = around._allowance if isinstance(around, InflatedSource) else _Allowance(most)
        self._scratch, self._wbits, self._crc32 = scratch, wbits, crc32
        self._at: int | None = None
        self._lock = threading.Lock()
        if nbytes is not None and nbytes > limits.inflate_bytes:
            raise UnreadableError(f"{name}: claims to unpack to {nbytes} bytes, more than Limits.inflate_bytes")
        self.nbytes: int = self._unpack(0, min(limits.inflate_bytes, most)) if nbytes is None else nbytes
        if nbytes is None:
            self._at = 0

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise UnreadableError(f"{self.name}: byte {offset + len(buffer)} is beyond its {self.nbytes} bytes")
        with self._lock:
            if self._at is None:
                at = self._scratch.allocate(self.nbytes)
                count = self._unpack(at, self.nbytes)
                if count != self.nbytes:
                    raise UnreadableError(f"{self.name}: unpacks to {count} bytes, {self.nbytes} were announced")
                self._at = at
        self._scratch.readinto(self._at + offset, buffer)

    def peek(self, count: int) -> bytes:
        """The first bytes, up to `count`, for telling what it is: nothing is unpacked for good, nor checked.

        Whoever goes on reads them again. Empty when the stream is damaged.
        """
        try:
            return zlib.decompressobj(self._wbits).decompress(
                read(self.packed, 0, min(_STEP, self.packed.nbytes)), count
            )
        except zlib.error:
            return b""

    def _unpack(self, at: int, most: int) -> int:
        """Unpack everything to the place `at`; how many bytes it was."""
        end = at

        def write(data: bytes) -> None:
            nonlocal end
            self._allowance.take(len(data), self.name)
            self._scratch.write(data, end)
            end += len(data)

        try:
            crc = inflate(self.packed, self._wbits, most, write, self.name)
        except OSError as error:
            raise UnreadableError(
                f"{self.name}: cannot be unpacked into a temporary file: {error.strerror}. "
                "TMPDIR can name a directory with more room"
            ) from error
        if self._crc32 is not None and crc != self._crc32:
            raise UnreadableError(f"{self.name}: checksum {crc:08x}, expected {self._crc32:08x}. The file is damaged")
        return end - at


def head_of(source: Source, count: int) -> bytes:
    """The first bytes of `source`, up to `count`, to tell what it is: not checked, if they are compressed."""
    count = min(count, source.nbytes)
    stream, start = (source.base, source.offset) if isinstance(source, SliceSource) else (source, 0)
    head = stream.peek(start + count)[start:] if isinstance(stream, InflatedSource) else b""
    return head or read(source, 0, count)  # Of a damaged stream, this says what is wrong.


def credit(source: Source, limits: Limits, ratio: int = 12) -> int:
    """How many bytes of `source` may be turned into objects: all that are really there, but of
    unpacked ones `ratio` times as many as were packed, and ``Limits.inflate_slack`` in any case."""
    if isinstance(source, SliceSource):
        return credit(source.base, limits, ratio)
    if isinstance(source, InflatedSource):
        return limits.inflate_slack + ratio * packed_bytes(source)
    return source.nbytes


def packed_bytes(source: Source) -> int:
    """How many bytes that are really there `source` is a part of, however often they are unpacked: what it may unpack
    to is in proportion to them, so that compressed data inside compressed data does not multiply."""
    while True:
        around = source.base if isinstance(source, SliceSource) else source
        if not isinstance(around, InflatedSource):
            return source.nbytes
        source = around.packed


def inflate(packed: Source, wbits: int, most: int, write: Callable[[bytes], object], name: str) -> int:
    """Unpack one deflate or gzip stream that must fill `packed`; the CRC-32 of what was written.

    gzip members may follow each other, as ``gzip`` itself allows. UnreadableError when the
    stream is damaged, has a tail, or gives more than `most` bytes.
    """
    engine = zlib.decompressobj(wbits)
    total = crc = position = 0
    pending = b""
    while True:
        if not pending and position < packed.nbytes:
            pending = read(packed, position, min(_STEP, packed.nbytes - position))
            position += len(pending)
        starved = not pending
        try:
            data = engine.decompress(pending, _STEP)
        except zlib.error as error:
            raise UnreadableError(f"{name}: its compressed data is damaged: {error}") from error
        total += len(data)
        if total > most:
            raise UnreadableError(
                f"{name}: unpacks to more than the {most} bytes it may (Limits.inflate_bytes, Limits.inflate_ratio)"
            )
        crc = crc32(data, crc)
        write(data)
        pending = engine.unconsumed_tail
        if engine.eof:
            pending = engine.unused_data
            if not pending and position == packed.nbytes:
                return crc
            if wbits < 0 or (pending or read(packed, position, 1))[:1] != b"\x1f":
                raise UnreadableError(f"{name}: data follows its compressed stream")
            engine = zlib.decompressobj(wbits)
        elif starved and not data:
            raise UnreadableError(f"{name}: its compressed data ends too early")
