"""Moving the bytes: from where they lie in the source to where they belong in the output.

Strategy: the output is cut into units of a few MiB; a small pool of threads takes the
next unit, reads its parts into a buffer of its own, takes checksums, and writes it with
one ``pwrite``. Reading, writing and CRC-32 release the interpreter lock. Memory is the
threads' buffers, whatever the sizes. Each unit's checksum is kept for reading it back;
checksums of parts of a source storage are combined and compared with the container's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from .crc32 import combine, crc32
from .errors import OutputError, SdconvertError, UnreadableError
from .gather import SCRATCH, cast, fill, in_order
from .plan import Entry
from .tensor import Storage, TensorRef
from .threads import started

_Item = TypeVar("_Item")

CHUNK = 4 << 20
_TILE = 16 << 20  # Gathered tensors are cut into larger units: the rows of a transposed matrix are its short runs.
# Bytes of one write, as cp's. The page cache takes memory in pieces of a write's size, and large pieces
# are the ones that a virtual machine has to fetch from its host first.
_WRITE = 128 << 10
_FEW = 4  # Parts of a unit whose checksums are joined.
_MOST_THREADS = 64  # Each has a buffer of its own.
_ALONE = 16 << 20  # Below this many bytes one thread is faster than several.

Progress = Callable[[int], None]
"""Called with the number of bytes that are done since the last call, from any thread."""


class Tail(NamedTuple):
    """`nbytes` bytes of a container that depend on the entry before them: `make(its CRC-32, its bytes)`."""

    nbytes: int
    make: Callable[[int, int], bytes]


class Placed(NamedTuple):
    """An entry and the byte of the output at which it begins, with what is right before and after it."""

    entry: Entry
    at: int
    head: bytes = b""
    tail: Tail | None = None


class Chunk(NamedTuple):
    """A range of the output and the CRC-32 of what was meant to be in it."""

    at: int
    nbytes: int
    crc32: int


class _Part(NamedTuple):
    """Elements `start` to `start + count` of an entry, in one unit; `placed` when its head and tail are too."""

    entry: Entry
    start: int
    elements: int
    placed: Placed | None = None


@dataclass
class Copied:
    """What was written: `chunks` for reading it back, `read` for checking the source's own checksums,
    `crcs` the CRC-32 of every entry that has a tail, by its place."""

    chunks: list[Chunk]
    read: dict[Storage, list[Chunk]]
    crcs: dict[int, int]


def copy(placed: Sequence[Placed], fd: int, *, nbytes: int, threads: int | None, progress: Progress) -> Copied:
    """Write every entry, its head and its tail, in the file `fd`; `placed` is in the order of places.

    `nbytes` is their sum, `threads` how many copy at once (None: by the number of processors).
    """
    copied = Copied([], {}, {})
    units = _units(placed)
    tile, turn = bytearray(), threading.Lock()

    def work(unit: tuple[int, list[_Part]], buffer: memoryview, scratch: memoryview) -> int:
        nonlocal tile
        if sum(part.elements * part.entry.dtype.itemsize for part in unit[1]) <= CHUNK:
            return move(unit, buffer, scratch)
        with turn:  # One buffer of that size for all threads.
            tile = tile or bytearray(_TILE)
            return move(unit, memoryview(tile), scratch)

    def move(unit: tuple[int, list[_Part]], buffer: memoryview, scratch: memoryview) -> int:
        at, parts = unit
        end = 0
        known: list[tuple[int, int]] = []  # CRC-32 and bytes of the parts of which it was taken.
        for entry, start, elements, framed in parts:
            if framed is not None:
                buffer[end : end + len(framed.head)] = framed.head
                end += len(framed.head)
            begin, end = end, end + elements * entry.dtype.itemsize
            try:
                crc = _read(entry, start, buffer[begin:end], scratch, copied.read)
            except SdconvertError as error:
                error.places.insert(0, entry.name)
                raise
            if framed is None and crc is not None:
                known.append((crc, end - begin))
            if framed is not None and framed.tail is not None:
                crc = copied.crcs[framed.at] = crc32(buffer[begin:end])
                buffer[end : end + framed.tail.nbytes] = framed.tail.make(crc, end - begin)
                end += framed.tail.nbytes
        data = buffer[:end]
        write(fd, data, at)
        # For a few large parts, joining their checksums is cheaper than taking one of them all again.
        joined = len(parts) <= _FEW and len(known) == len(parts)
        copied.chunks.append(Chunk(at, end, _joined(known) if joined else crc32(data)))
        return end

    in_threads(work, units, nbytes, threads, progress)
    _frame_large(placed, fd, copied)
    return copied


def _frame_large(placed: Sequence[Placed], fd: int, copied: Copied) -> None:
    """Write head and tail of the entries that were cut, whose checksums are those of their chunks joined."""
    cut = [one for one in placed if (one.head or one.tail) and _framed_nbytes(one) > CHUNK]
    chunks = {chunk.at: chunk for chunk in copied.chunks} if cut else {}
    for entry, place, head, tail in cut:
        crc, at = 0, place
        while at < place + entry.nbytes:
            crc = combine(crc, chunks[at].crc32, chunks[at].nbytes)
            at += chunks[at].nbytes
        copied.crcs[place] = crc
        end = tail.make(crc, entry.nbytes) if tail else b""
        for data, begin in ((head, place - len(head)), (end, at)):
            write(fd, data, begin)
            copied.chunks.append(Chunk(begin, len(data), crc32(data)))


def _framed_nbytes(placed: Placed) -> int:
    return len(placed.head) + placed.entry.nbytes + (placed.tail.nbytes if placed.tail else 0)


def _read(
    entry: Entry, start: int, out: memoryview, scratch: memoryview, read: dict[Storage, list[Chunk]]
) -> int | None:
    """Fill `out` with an entry's elements; their CRC-32 if it had to be taken for the source's sake."""
    tensor = entry.tensor
    if not out:
        return None
    if entry.dtype is not tensor.dtype:
        cast(tensor, start, out, entry.dtype, scratch)
        return None
    return read_elements(tensor, start, out, scratch, read)


def read_elements(
    tensor: TensorRef, start: int, out: memoryview, scratch: memoryview, read: dict[Storage, list[Chunk]]
) -> int | None:
    """Fill `out` with elements of a tensor from number `start` on. What was taken as it lies in a storage that has a
    checksum goes into `read`, for `check_storages`; if that is all of it, in a few parts, the CRC-32 of `out` comes
    back."""
    parts: list[tuple[int, int]] = []

    def seen(storage: Storage, at: int, data: memoryview) -> None:
        if storage.crc32 is not None:
            crc = crc32(data)
            # A list's append is atomic, and setdefault on a key that is an object without __eq__ is too.
            read.setdefault(storage, []).append(Chunk(at, len(data), crc))
            parts.append((crc, len(data)))

    unmoved = fill(tensor, start, out, scratch, seen)
    if not unmoved or len(parts) > _FEW or sum(nbytes for _, nbytes in parts) != len(out):
        return None
    return parts[0][0] if len(parts) == 1 else _joined(parts)


def _joined(parts: list[tuple[int, int]]) -> int:
    crc = 0
    for part, nbytes in parts:
        crc = combine(crc, part, nbytes)
    return crc


def _units(placed: Iterable[Placed]) -> Iterator[tuple[int, list[_Part]]]:
    """(place, parts) of each unit: neighbours together, large ones cut at element boundaries.

    What has a head or a tail is not cut if it fits in a unit with them, so they can be written at once.
    """
    at, size = 0, 0
    parts: list[_Part] = []
    for one in placed:
        entry, place, head, tail = one
        whole = _framed_nbytes(one) if head or tail else 0
        framed = 0 < whole <= CHUNK
        begin = place - len(head) if framed else place
        if parts and (begin != at + size or (framed and size + whole > CHUNK)):
            yield at, parts
            parts, size = [], 0
        if not parts:
            at = begin
        if framed:
            parts.append(_Part(entry, 0, entry.nbytes // entry.dtype.itemsize, one))
            size += whole
            continue
        itemsize = entry.dtype.itemsize
        start, left = 0, entry.nbytes // itemsize
        room = CHUNK if entry.tensor.is_plain or in_order(entry.tensor) else _TILE
        while left:
            count = max(0, min(left, (room - size) // itemsize))
            if count:
                parts.append(_Part(entry, start, count))
                start, left, size = start + count, left - count, size + count * itemsize
            if left:
                yield at, parts
                at, parts, size = at + size, [], 0
    if parts:
        yield at, parts


def check_storages(
    known: Mapping[Storage, Sequence[Chunk]], storages: Iterable[Storage], *, threads: int | None
) -> None:
    """UnreadableError if a storage's bytes are not those that the container's checksum was made of.

    What is `known`, because it was read for the output, is not read again; what no tensor covers is.
    """

    def work(storage: Storage, buffer: memoryview, scratch: memoryview) -> int:
        crc, at = 0, 0
        for chunk in sorted(known.get(storage, ())):
            if chunk.at >= at:  # Of overlapping views the first counts; gaps are read.
                crc = _crc_range(storage, at, chunk.at, crc, buffer)
                crc = combine(crc, chunk.crc32, chunk.nbytes)
                at = chunk.at + chunk.nbytes
        crc = _crc_range(storage, at, storage.nbytes, crc, buffer)
        if crc != storage.crc32:
            raise UnreadableError(
                f"record {storage.name}: checksum {crc:08x}, expected {storage.crc32:08x}. The file is damaged; "
                "download or copy it again"
            )
        return 0

    def is_unchecked(storage: Storage) -> bool:
        """Most storages are one tensor, read in one piece."""
        read = known.get(storage, ())
        return storage.crc32 is not None and list(read) != [(0, storage.nbytes, storage.crc32)]

    rest = [storage for storage in dict.fromkeys(storages) if is_unchecked(storage)]
    in_threads(work, iter(rest), sum(storage.nbytes for storage in rest), threads, lambda count: None)


def _crc_range(storage: Storage, begin: int, end: int, crc: int, buffer: memoryview) -> int:
    while begin < end:
        part = buffer[: min(CHUNK, end - begin)]
        storage.source.readinto(storage.offset + begin, part)
        crc = crc32(part, crc)
        begin += len(part)
    return crc


def read_back(chunks: list[Chunk], fd: int, *, threads: int | None, progress: Progress) -> None:
    """OutputError if the file `fd` does not hold what was meant to be written.

    From its end on: what was written last is what the page cache still has of a file larger than memory. Begun at the
    start, each part would push out the next, and all would come from the disk.
    """

    def work(chunk: Chunk, buffer: memoryview, scratch: memoryview) -> int:
        done = crc = 0
        while done < chunk.nbytes:
            count = os.preadv(fd, [buffer[: min(CHUNK, chunk.nbytes - done)]], chunk.at + done)
            if count == 0:
                raise OutputError(f"the output ends at byte {chunk.at + done}: the disk lost what was written")
            crc = crc32(buffer[:count], crc)
            done += count
        if crc != chunk.crc32:
            raise OutputError(
                f"bytes {chunk.at} to {chunk.at + done} read back differently from what was written. "
                "Check the disk and the memory of this machine"
            )
        return done

    in_threads(work, iter(sorted(chunks, reverse=True)), sum(chunk.nbytes for chunk in chunks), threads, progress)


def write(fd: int, data: memoryview | bytes, at: int) -> None:
    """Write all of `data` at byte `at`. OSError as the system gives it."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done : done + _WRITE], at + done)


def in_threads(
    work: Callable[[_Item, memoryview, memoryview], int],
    items: Iterator[_Item],
    nbytes: int,
    threads: int | None,
    progress: Progress,
    *,
    buffer_bytes: int = CHUNK,
) -> None:
    """`work(item, buffer, scratch)` for each item, by threads with buffers of `buffer_bytes`; an error ends all."""
    lock = threading.Lock()
    failures: list[BaseException] = []

    def loop() -> None:
        buffer, scratch = memoryview(bytearray(buffer_bytes)), memoryview(bytearray(SCRATCH))
        while not failures:
            with lock:
                item = next(items, None)
            if item is None:
                return
            progress(work(item, buffer, scratch))

    def guarded() -> None:
        try:
            loop()
        except BaseException as error:
            failures.append(error)

    if threads is None:
        threads = 1 if nbytes < _ALONE else min(4, (os.cpu_count() or 1) + 1)
    threads = min(threads, _MOST_THREADS, nbytes // CHUNK + 1)
    count = threads if threads > 1 else 0
    workers = [threading.Thread(target=guarded, name="sdconvert-copy", daemon=True) for _ in range(count)]
    try:
        running = started(workers)
        if not running:
            loop()
        for worker in running:
            while worker.is_alive():  # With a time-out, or an interrupt would wait for the whole copy.
                worker.join(0.2)
    except BaseException as error:
        failures.append(error)
        for worker in workers:
            if worker.ident is not None:
                worker.join()
        raise
    if failures:
        raise failures[0]
