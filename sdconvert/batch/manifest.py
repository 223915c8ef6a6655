"""What was done, one line of JSON for each job, so that a batch can go on where it was cut off.

Lines are only ever appended, and synced before the driver goes on. A line that was torn by a
crash is closed by the next run and ignored by every reader.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..remote import is_url


class Manifest:
    """A manifest that is open for appending, by this process alone. OutputError when it cannot be."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):  # A FIFO or a device may be read for ever.
            os.close(self._fd)
            raise OutputError(f"{self.path}: is not a regular file. Name another manifest")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise OutputError(f"{self.path}: is being written by another run. Give each its own manifest") from None
        except OSError:
            pass  # A file system without locks.
        self._pending: list[bytes] = []
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            self._pending.append(b"\n")

    def done(self) -> set[bytes]:
        """The fingerprints of the jobs that are done and whose outputs are still there, in their size."""
        found: set[bytes] = set()
        for record in read(self.path):
            try:
                fingerprint = bytes.fromhex(record["job"])
            except (KeyError, TypeError, ValueError):
                continue
            if _is_done(record):
                found.add(fingerprint)
            else:
                found.discard(fingerprint)
        return found

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; it is on the disk after the next `sync`."""
        self._pending.append(json.dumps(record).encode() + b"\n")

    def sync(self) -> None:
        """Return when everything that was added is on the disk. OutputError when that fails."""
        if not self._pending:
            return
        data = memoryview(b"".join(self._pending))
        self._pending.clear()
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Sync, and let go of the file."""
        try:
            self.sync()
        finally:
            os.close(self._fd)


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The records of a manifest, in order, without lines that were torn."""
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if type(record) is dict:
                yield record


def _is_done(record: Mapping[str, Any]) -> bool:
    try:
        return record["status"] in ("done", "there") and all(map(_is_there, record["outputs"]))
    except Exception:  # A record that makes no sense, or a store that does not answer: then the job is done again.
        return False


def _is_there(output: Mapping[str, Any]) -> bool:
    path, nbytes = str(output["path"]), int(output["bytes"])
    if is_url(path):
        import fsspec

        fs, inside = fsspec.core.url_to_fs(path)
        return bool(fs.exists(inside)) and bool(fs.info(inside)["size"] == nbytes)
    try:
        return os.stat(path).st_size == nbytes
    except OSError:
        return False
