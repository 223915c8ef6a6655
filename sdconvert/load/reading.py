"""From the source straight into the memory that is to hold it: by threads, in pieces, nothing in between.

Where a container has a checksum of a storage and every byte of it was read, it is compared.
What is mapped instead of read, and storages of which only a part is wanted, are not checked:
that would read what nobody asked for. `verify` checks a whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..crc32 import combine, crc32
from ..dtypes import DType
from ..errors import UnreadableError, within
from ..gather import cast, fill
from ..stream import in_threads
from ..tensor import Storage, TensorRef

CHUNK = 4 << 20
_FEW = 512 << 10  # Bytes; parts are put together into one turn of a thread up to here.
_TILE = 16 << 20  # Gathered tensors are cut into larger parts: what is read for one part is not kept for the next.

Crcs = dict[Storage, list[tuple[int, int, int]]]
"""For each storage (place, bytes, CRC-32) of what was read of it."""


class Part(NamedTuple):
    """Row-major elements from number `start` on, as `dtype`, that fill all of `out` (bytes)."""

    tensor: TensorRef
    dtype: DType
    start: int
    out: memoryview


def parts_of(tensor: TensorRef, dtype: DType, out: memoryview, most: int = CHUNK) -> Iterator[Part]:
    """All of a tensor, cut into parts of about `most` bytes; `out` is where the whole goes."""
    step = most if tensor.is_plain else max(most, _TILE)
    step -= step % dtype.itemsize
    for at in range(0, len(out), step):
        yield Part(tensor, dtype, at // dtype.itemsize, out[at : at + step])


def read_part(part: Part, scratch: memoryview, crcs: Crcs) -> int:
    """Read one part; its bytes. UnreadableError names the storage."""
    tensor, dtype, start, out = part
    piece = tensor.pieces[0]
    with within(f"storage {piece.storage.name}"):
        if dtype is not tensor.dtype:
            cast(tensor, start, out, dtype, scratch)
        elif fill(tensor, start, out, scratch) and piece.storage.crc32 is not None:
            at = (piece.offset + start) * dtype.itemsize
            # A list's append is atomic, and setdefault on a key without __eq__ is too.
            crcs.setdefault(piece.storage, []).append((at, len(out), crc32(out)))
    return len(out)


def read_all(parts: Sequence[Part], *, threads: int | None, progress: Callable[[int], None]) -> None:
    """Read every part, in the order of their places. UnreadableError when a source is short or damaged."""
    crcs: Crcs = {}

    def work(group: list[Part], buffer: memoryview, scratch: memoryview) -> int:
        return sum(read_part(part, scratch, crcs) for part in group)

    nbytes = sum(len(part.out) for part in parts)
    in_threads(work, _groups(parts), nbytes, threads, progress, buffer_bytes=0)  # They read to where it belongs.
    check(crcs)


def _groups(parts: Iterable[Part]) -> Iterator[list[Part]]:
    group: list[Part] = []
    size = 0
    for part in sorted(parts, key=_place):
        group.append(part)
        size += len(part.out)
        if size >= _FEW:
            yield group
            group, size = [], 0
    if group:
        yield group


def _place(part: Part) -> tuple[str, int, int]:
    storage = part.tensor.pieces[0].storage
    return storage.source.name, storage.offset, part.tensor.pieces[0].offset + part.start


def check(crcs: Crcs) -> None:
    """UnreadableError if a storage that was read from end to end is not what the container's checksum was made of."""
    for storage, chunks in crcs.items():
        crc = at = 0
        for begin, nbytes, part in sorted(chunks):
            if begin == at:  # Of views that overlap, the first counts.
                crc, at = combine(crc, part, nbytes), at + nbytes
        if at == storage.nbytes and crc != storage.crc32:
            raise UnreadableError(
                f"record {storage.name}: checksum {crc:08x}, expected {storage.crc32:08x}. The file is damaged; "
                "download or copy it again"
            )
