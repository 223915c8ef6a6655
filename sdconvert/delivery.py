"""Outputs that go to a URL: made whole on this disk first, then sent, and compared with what arrived.

Any store that fsspec knows. Object stores show an upload only when it is complete, so a file goes
there under its own name; elsewhere it goes under a hidden one, and gets its own when it is whole.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import OutputError, UnsupportedError
from .remote import is_url
from .source import Origin

# Their uploads are all or nothing, and moving a file is copying it.
_OBJECT_STORES = frozenset("s3 s3a gs gcs abfs abfss az adl oci oss memory".split())
# Those of which a part of a directory can be listed: there may be a million other outputs in it.
_LISTED_BY_PREFIX = frozenset("s3 s3a gs gcs abfs abfss az adl".split())
_STEP = 4 << 20


@dataclass(frozen=True)
class Delivery:
    """A place to make the outputs in, and the store that they are to go to."""

    url: str
    local: Path
    """Where the output is to be written; further files may be beside it."""
    _fs: Any
    _path: str

    def beside(self) -> list[str]:
        """The names of the files that are where the output goes; only those that begin like it where there may be many.

        OutputError when the store does not say.
        """
        directory = posixpath.dirname(self._path)
        try:
            self._fs.invalidate_cache()
            if _LISTED_BY_PREFIX & self._protocols:
                found = self._fs.find(directory, prefix=Path(self.local.name).stem)
            else:
                found = self._fs.ls(directory, detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise OutputError(f"{self.url}: cannot be looked at: {error or type(error).__name__}") from error
        inside = [str(path).rstrip("/").removeprefix(directory).removeprefix("/") for path in found]
        return [name for name in inside if "/" not in name]

    def open(self, name: str) -> Any:
        """The file called `name` beside the output, as it is there now, to be read. FileNotFoundError if it is not."""
        self._fs.invalidate_cache()
        return self._fs.open(posixpath.join(posixpath.dirname(self._path), name), "rb", block_size=_STEP)

    def check_source(self, names: Iterable[str], source: str, origin: Origin) -> None:
        """OutputError if a file that is to be called one of `names` is the source: `origin`, which `source` names."""
        its_path = self._path_on_store(source)
        for name in names:
            target = posixpath.join(posixpath.dirname(self._path), name)
            if target == its_path or ("file" in self._protocols and _is_file_of(origin, target)):
                raise OutputError(f"{self.url_of(name)}: is the source itself. Name another output")

    def _path_on_store(self, source: str) -> str | None:
        """The path of `source` if it is on this very store, else None."""
        if not is_url(source):
            return None
        import fsspec

        try:
            fs, path = fsspec.core.url_to_fs(source)
        except Exception:  # Whatever it is, nothing can be written to it.
            return None
        return str(path) if fs == self._fs else None

    @property
    def _protocols(self) -> frozenset[str]:
        protocols = self._fs.protocol
        return frozenset([protocols] if isinstance(protocols, str) else protocols)

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
                    raise OutputError(f"{self.url_of(file.name)}: exists already. --overwrite replaces it")
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
        return [(self.url_of(file.name), file.stat().st_size) for file in files]

    def url_of(self, name: str) -> str:
        """The URL of a file called `name` beside the output."""
        return posixpath.join(posixpath.dirname(self.url), name)

    def _put(self, file: Path, target: str, sent: list[str]) -> None:
        if _OBJECT_STORES & self._protocols:
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
            raise OutputError(f"{self.url_of(file.name)}: {found} bytes arrived of {nbytes}")
        if not verify:
            return
        with file.open("rb") as ours, self._fs.open(target, "rb", block_size=_STEP) as theirs:
            while data := ours.read(_STEP):
                if theirs.read(len(data)) != data:
                    raise OutputError(f"{self.url_of(file.name)}: reads back differently from what was sent")


def _is_file_of(origin: Origin, path: str) -> bool:
    try:
        return origin.is_same_file(os.stat(path))
    except OSError:
        return False


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
