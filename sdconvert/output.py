"""From layouts to files: written, read back and synced, all of them, before the first one gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from . import stream
from .atomic import NewFile, new_file, syncing
from .crc32 import crc32
from .errors import OutputError, within
from .progress import Bar
from .stream import Placed
from .tensor import Storage, expect
from .writers import Layout

_EARLY = 128 << 20  # Bytes after which a file is synced while it is still written.


@dataclass(frozen=True)
class NewOutput:
    """A file that is to be: what it will be called, and what will be in it, to the byte."""

    path: Path
    layout: Layout


@dataclass(frozen=True)
class BytesLayout:
    """A file without tensors, such as an index: its bytes are known."""

    data: bytes
    placed: tuple[Placed, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.data)

    @property
    def fixed(self) -> tuple[tuple[int, bytes], ...]:
        """All of it."""
        return ((0, self.data),)

    def finish(self, crcs: Mapping[int, int]) -> tuple[tuple[int, bytes], ...]:
        """Nothing."""
        return ()


@contextmanager
def written(
    outputs: Sequence[NewOutput],
    *,
    source: str,
    overwrite: bool,
    verify: bool,
    threads: int | None,
    progress: Bar,
) -> Iterator[list[NewFile]]:
    """The files, complete, synced and (with `verify`) read back, but without their names yet: `publish` gives them.

    They are gone when the block ends, but for those that were published. UnreadableError, with `source`
    in front, when the bytes that the tensors come from are not what they should be.
    """
    nbytes = sum(one.entry.nbytes for output in outputs for one in output.layout.placed)
    total = sum(output.layout.nbytes for output in outputs)
    copied: list[stream.Copied] = []
    expect((one.entry.tensor for output in outputs for one in output.layout.placed), checked=True)
    with ExitStack() as stack:
        files = [
            stack.enter_context(new_file(output.path, overwrite=overwrite, nbytes=output.layout.nbytes))
            for output in outputs
        ]
        with syncing() as sync:
            with progress("copying", nbytes) as update:
                for file, output in zip(files, outputs, strict=True):
                    with within(source):
                        copied.append(_copy(file, output.layout, threads, _synced_early(sync, file, update)))
                    sync(file)
            with within(source):
                storages = [
                    piece.storage
                    for output in outputs
                    for one in output.layout.placed
                    for piece in one.entry.tensor.pieces
                ]
                stream.check_storages(_together([one.read for one in copied]), storages, threads=threads)
            with progress("verifying", total if verify else 0) as update:
                for file, output, done in reversed(list(zip(files, outputs, copied, strict=True))):
                    if verify:
                        stream.read_back(done.chunks, file.fd, threads=threads, progress=update)
                    if os.fstat(file.fd).st_size != output.layout.nbytes:
                        raise OutputError(f"{file.path}: has the wrong size on the disk. Nothing was left behind")
        yield files


def _synced_early(sync: Callable[[NewFile], None], file: NewFile, update: stream.Progress) -> stream.Progress:
    """`update`, which also has the file synced now and then: the disk is at work while the rest is copied."""
    lock, left = Lock(), _EARLY

    def progress(count: int) -> None:
        nonlocal left
        with lock:
            left -= count
            due = left <= 0
            left = _EARLY if due else left
        if due:
            sync(file)
        update(count)

    return progress


def _together(parts: Sequence[dict[Storage, list[stream.Chunk]]]) -> dict[Storage, list[stream.Chunk]]:
    """What was read for several outputs, for one check of the storages that they share."""
    if len(parts) == 1:
        return parts[0]
    read: dict[Storage, list[stream.Chunk]] = {}
    for part in parts:
        for storage, chunks in part.items():
            read.setdefault(storage, []).extend(chunks)
    return read


def _copy(file: NewFile, layout: Layout, threads: int | None, update: stream.Progress) -> stream.Copied:
    nbytes = sum(one.entry.nbytes for one in layout.placed)
    chunks = _write(file, layout.fixed)
    copied = stream.copy(layout.placed, file.fd, nbytes=nbytes, threads=threads, progress=update)
    chunks += _write(file, layout.finish(copied.crcs))
    copied.chunks[:0] = chunks
    return copied


def _write(file: NewFile, parts: Iterable[tuple[int, bytes]]) -> list[stream.Chunk]:
    """Write each (place, bytes); what reading back must find."""
    chunks = []
    for at, data in parts:
        stream.write(file.fd, data, at)
        chunks.append(stream.Chunk(at, len(data), crc32(data)))
    return chunks
