"""Where bytes come from: `Source.read(offset, count)` and nothing else.

A source never moves a cursor, so threads share one. Files are read with ``pread`` and
not mapped: a file that shrinks under a map kills the process, a short read is an
error with a name. Only `load.mapping` maps, where that is asked for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from .errors import UnreadableError


class Source(Protocol):
    """`nbytes` bytes that can be read at any offset, by any thread. `name` is for messages."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on. UnreadableError if they are not all there."""


class Origin(Protocol):
    """What a conversion is asked to read: a file, a directory, something remote. It is closed when that is done.

    `name` is for messages, `nbytes` the bytes of all of it, `stem` the path, without an ending, that an
    output is called after when nobody names one.
    """

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def stem(self) -> Path: ...

    def check_unchanged(self) -> None:
        """UnreadableError if what was read is not any more what was opened."""

    def is_same_file(self, other: os.stat_result) -> bool:
        """Whether `other` is the stat of a file of it, by whatever path it was found."""

    def close(self) -> None:
        """Let go of it; nothing of it can be read any more."""


@runtime_checkable
class Folder(Origin, Protocol):
    """Files under names: a directory, a part of a repository. Names are relative, with slashes, never ``..``.

    `entry` is the name of the file in it that was asked for, such as an index, "" for all of it.
    """

    @property
    def files(self) -> Mapping[str, int]:
        """The bytes of every file, by name, in the order of names."""

    @property
    def entry(self) -> str: ...

    def open(self, name: str) -> Source:
        """The file called `name`, the same object every time. UnreadableError if there is none."""


def is_far(source: Source) -> bool:
    """Whether a read of `source` may be a request over a network: few large ones are wanted, and none to waste.

    Such a source has an attribute `far`, and a method `expect`: see `tensor.expect`.
    """
    return bool(getattr(source.base if isinstance(source, SliceSource) else source, "far", False))


def read(source: Source, offset: int, count: int) -> bytes:
    """`count` bytes of `source` from `offset` on; UnreadableError if they are not all there.

    The bounds are checked before anything is allocated: `count` may be a file's claim.
    """
    if offset < 0 or count < 0 or offset + count > source.nbytes:
        raise UnreadableError(
            f"bytes {offset} to {offset + count} are needed, but there are only {source.nbytes}. "
            "The file is damaged or was cut short"
        )
    buffer = bytearray(count)
    source.readinto(offset, memoryview(buffer))
    return bytes(buffer)


class FileSource:
    """A regular file, opened once. Replacing or changing it while it is read is an error."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
            self._fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UnreadableError(f"{self.name}: cannot be opened: {reason}") from error
        try:
            self._stat = os.fstat(self._fd)
        except OSError as error:
            self.close()
            raise UnreadableError(f"{self.name}: cannot be looked at: {error.strerror}") from error
        if not stat.S_ISREG(self._stat.st_mode):
            os.close(self._fd)
            what = "a directory" if stat.S_ISDIR(self._stat.st_mode) else "not a regular file"
            raise UnreadableError(f"{self.name}: is {what}. Give the checkpoint file itself")
        self.nbytes = self._stat.st_size
        self.stem = Path(self.name).with_suffix("") if Path(self.name).name else Path(self.name)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        wanted, done = len(buffer), 0
        while done < wanted:
            try:
                count = os.preadv(self._fd, [buffer[done:] if done else buffer], offset + done)
            except OSError as error:
                raise UnreadableError(f"cannot be read at byte {offset}: {error.strerror}") from error
            if count == 0:
                raise UnreadableError(
                    f"ended at byte {offset + done} while it was read; it had {self.nbytes} bytes. "
                    "Something changed it; try again when it is complete"
                )
            done += count

    def fileno(self) -> int:
        """The file's descriptor, for what needs more than bytes of it."""
        return self._fd

    def check_unchanged(self) -> None:
        """UnreadableError if the file has another size or time of change than when it was opened, or if another one
        has its name by now: what was read is whole then, but no longer what the name stands for."""
        # Not ctime: that also moves when a link is added or a mode is set, which changes no bytes.
        try:
            now, then = os.fstat(self._fd), self._stat
        except OSError as error:
            raise UnreadableError(f"cannot be looked at any more: {error.strerror}") from error
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise UnreadableError("was changed while it was read. Try again when it is complete")
        with suppress(OSError):  # Removed, it is still here to be read.
            if not self.is_same_file(os.stat(self.name)):
                raise UnreadableError("was replaced while it was read. Try again")

    def is_same_file(self, other: os.stat_result) -> bool:
        """Whether `other` is the stat of this very file, by whatever path it was found."""
        return (self._stat.st_dev, self._stat.st_ino) == (other.st_dev, other.st_ino)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):  # Nothing was written to it.
                os.close(fd)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemorySource:
    """Bytes that are already in memory, such as a byte string inside a pickle."""

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self.name = name
        self.nbytes = len(data)
        self._data = memoryview(data)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if offset < 0 or end > self.nbytes:
            raise UnreadableError(f"bytes {offset} to {end} are needed, but there are only {self.nbytes}")
        buffer[:] = self._data[offset:end]


class SliceSource:
    """A range of another source. Slices of slices read straight from the first."""

    def __init__(self, base: Source, offset: int, nbytes: int, name: str = "") -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > base.nbytes:
            raise UnreadableError(
                f"{name or 'a range'} claims bytes {offset} to {offset + nbytes}, but there are only {base.nbytes}. "
                "The file is damaged or was cut short"
            )
        self.base: Source = base.base if isinstance(base, SliceSource) else base
        self.offset: int = base.offset + offset if isinstance(base, SliceSource) else offset
        self.nbytes = nbytes
        self.name = name or base.name

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self.nbytes:
            raise UnreadableError(
                f"bytes {offset} to {offset + len(buffer)} are needed, but there are only {self.nbytes}"
            )
        self.base.readinto(self.offset + offset, buffer)
