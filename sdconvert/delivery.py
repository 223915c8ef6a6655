"""Outputs that go to a URL: made whole on this disk first, then sent, and compared with what arrived.

Any store that fsspec knows. Object stores show an upload only when it is complete, so a file goes
there under its own name; elsewhere it goes under a hidden one, and gets its own when it is whole.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import OutputError, UnsupportedError

# Their uploads are all or nothing, and moving a file is copying it.
_OBJECT_STORES = frozenset("s3 s3a gs gcs abfs abfss az adl oci oss memory".split())
_STEP = 4 << 20


@dataclass(frozen=True)
class Delivery:
    """A place to make the outputs in, and the store that they are to go to."""

    url: str
    local: Path
    """Where the output is to be written; further files may be beside it."""
    _fs: Any
    _path: str

    def send(self, files: Sequence[Path], *, overwrite: bool, verify: bool) -> list[tuple[str, int]]:
        """Send `files`, which lie beside `local`, the first one last; the URL and the bytes of each.

        With `verify` every file is read back and compared. OutputError when something fails: then
        those that had been sent are removed again, unless they replaced others.
        """
        sent: list[str] = []
        try:
            for file in reversed(files):
                target = posixpath.join(posixpath.dirname(self._path), file.name)
                if not overwrite and self._fs.exists(target):
                    raise OutputError(f"{self._url_of(file)}: exists already. --overwrite replaces it")
                self._put(file, target, sent)
                self._check(file, target, verify)
        except BaseException as error:  # An interrupt leaves nothing behind either.
            if not overwrite:
                for target in sent:
                    with suppress(Exception):
                        self._fs.rm_file(target)
            if isinstance(error, OutputError) or not isinstance(error, Exception):
                raise
            raise OutputError(f"{self.url}: cannot be written: {error or type(error).__name__}") from error
        return [(self._url_of(file), file.stat().st_size) for file in files]

    def _url_of(self, file: Path) -> str:
        return posixpath.join(posixpath.dirname(self.url), file.name)

    def _put(self, file: Path, target: str, sent: list[str]) -> None:
        protocols = self._fs.protocol
        if _OBJECT_STORES.intersection([protocols] if isinstance(protocols, str) else protocols):
            sent.append(target)
            self._fs.put_file(os.fspath(file), target)
            return
        hidden = posixpath.join(posixpath.dirname(target), f".{file.name[:50]}.{os.urandom(6).hex()}.sdconvert-tmp")
        try:
            self._fs.makedirs(posixpath.dirname(target), exist_ok=True)
            self._fs.put_file(os.fspath(file), hidden)
            sent.append(target)
            self._fs.mv(hidden, target)
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(hidden)
            raise

    def _check(self, file: Path, target: str, verify: bool) -> None:
        self._fs.invalidate_cache()
        nbytes = file.stat().st_size
        if (found := self._fs.info(target)["size"]) != nbytes:
            raise OutputError(f"{self._url_of(file)}: {found} bytes arrived of {nbytes}")
        if not verify:
            return
        with file.open("rb") as ours, self._fs.open(target, "rb", block_size=_STEP) as theirs:
            while data := ours.read(_STEP):
                if theirs.read(len(data)) != data:
                    raise OutputError(f"{self._url_of(file)}: reads back differently from what was sent")


@contextmanager
def delivery(url: str, *, overwrite: bool) -> Iterator[Delivery]:
    """A delivery to `url`, with a temporary directory that is gone afterwards.

    OutputError when something is there already (without `overwrite`), UnsupportedError when nothing
    that is installed knows such URLs.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UnsupportedError(f"{url}: {error}") from error
    name = posixpath.basename(path)
    if not name:
        raise OutputError(f"{url}: names no file. Add one")
    try:
        taken = not overwrite and fs.exists(path)
    except Exception as error:
        raise OutputError(f"{url}: cannot be looked at: {error or type(error).__name__}") from error
    if taken:
        raise OutputError(f"{url}: exists already. --overwrite replaces it")
    with tempfile.TemporaryDirectory(prefix="sdconvert-") as directory:
        yield Delivery(url, Path(directory, name), fs, path)
