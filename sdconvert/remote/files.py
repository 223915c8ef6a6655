"""Files of any file system that fsspec knows: s3://, gs://, az://, sftp://, memory:// and the like."""

from __future__ import annotations

from typing import Any

from ..errors import UnreadableError
from .http import Patience
from .tokens import scrubbed

# What file systems say about the state of a file, by their own names for it.
_STATE = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "md5", "md5Hash",
          "content_md5", "generation", "version_id", "checksum", "crc32c")  # fmt: skip
_STEP = 8 << 20  # Bytes of one request: they come as one object, and are then copied.


class FsspecRanges:
    """A file by its URL. What fsspec's file systems raise becomes an UnreadableError; OSErrors are tried again."""

    def __init__(self, url: str, *, patience: Patience) -> None:
        self.name = scrubbed(url)
        self._patience = patience
        self._fs, self._path = _file_system(url)
        self._state = self._look()
        size = self._state.get("size")
        if type(size) is not int or size < 0:
            raise UnreadableError("its file system does not say how large it is. Download the file first")
        self.nbytes = size

    @property
    def state(self) -> str:
        """Its size when it was opened, and the first of the marks that its file system tells."""
        # One will do, and some of the others change with a link or a mode, which changes no bytes.
        marks = [str(self._state[key]) for key in _STATE[1:] if self._state.get(key)]
        return "-".join([str(self.nbytes), *marks[:1]])

    def fetch(self, offset: int, buffer: memoryview) -> None:
        for at in range(0, len(buffer), _STEP):
            part = buffer[at : at + _STEP]
            begin, end = offset + at, offset + at + len(part)
            data = self._tried(lambda begin=begin, end=end: self._fs.cat_file(self._path, start=begin, end=end))
            if len(data) != len(part):
                raise UnreadableError(
                    f"bytes {begin} to {end} were asked for, {len(data)} came. The file changed, or its file system "
                    "does not read ranges"
                )
            part[:] = data

    def check_unchanged(self) -> None:
        """UnreadableError if its size, time or tag is not what it was."""
        self._fs.invalidate_cache(self._path)
        if self._look() != self._state:
            raise UnreadableError("the file changed while it was read. Try again")

    def close(self) -> None:
        """fsspec keeps its connections for the next file."""

    def _look(self) -> dict[str, object]:
        info = self._tried(lambda: self._fs.info(self._path))
        if info.get("type") == "directory":
            raise UnreadableError("is a directory. Name the checkpoint file itself")
        return {key: info[key] for key in _STATE if key in info}

    def _tried(self, call: Any) -> Any:
        tried = 0
        while True:
            try:
                return call()
            except FileNotFoundError:
                raise UnreadableError("is not there") from None
            except (PermissionError, IsADirectoryError, NotImplementedError) as error:
                raise UnreadableError(f"cannot be read: {_reason(error)}") from None
            except (OSError, TimeoutError) as error:
                tried += 1
                if tried >= self._patience.tries:
                    raise UnreadableError(f"cannot be read: {_reason(error)}. Tried {tried} times") from None
                self._patience.wait(tried)
            except Exception as error:  # Each file system has errors of its own.
                raise UnreadableError(f"cannot be read: {_reason(error)}") from None


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise UnreadableError("reading it needs fsspec: pip install fsspec") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UnreadableError(f"reading it needs another package: {scrubbed(error)[:200]}") from None
    except Exception as error:
        raise UnreadableError(f"cannot be opened: {_reason(error)}") from None
    return fs, path


def _reason(error: Exception) -> str:
    return scrubbed(error)[:200] or type(error).__name__
