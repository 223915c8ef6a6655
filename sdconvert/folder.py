"""A directory on the disk as a `Folder`: files by relative name, opened once each, and never outside of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .errors import UnreadableError, within
from .source import FileSource, Folder, Source

_DEPTH = 4  # DeepSpeed's, PyTorch Lightning's and diffusers' directories are two or three deep.
_FILES = 1_000_000


class LocalFolder:
    """The regular files in and below a directory, links to files included, links to directories not.

    A link may lead out of it, as those in the cache of the Hub do: whoever made the
    directory made the link. Names that come out of a file never become one.
    """

    def __init__(self, path: str | os.PathLike[str], entry: str = "") -> None:
        self.name = os.fspath(path)
        # "." and ".." have no name of their own that an output could be called after.
        self.stem = Path(self.name) if Path(self.name).name not in ("", "..") else Path(os.path.abspath(self.name))
        self.entry = entry
        self._opened: dict[str, FileSource] = {}
        found: dict[str, int] = {}
        try:
            _list(self.name, "", 0, found)
        except OSError as error:
            raise UnreadableError(f"{self.name}: cannot be listed: {error.strerror}") from error
        self.files: Mapping[str, int] = dict(sorted(found.items()))

    @property
    def nbytes(self) -> int:
        """Bytes of the files that were opened; what nobody read is not a part of the checkpoint."""
        return sum(source.nbytes for source in self._opened.values())

    def open(self, name: str) -> Source:
        """The file called `name`. UnreadableError when it is not in the directory, or cannot be opened."""
        if name not in self._opened:
            if name not in self.files:
                raise UnreadableError(f"{name}: is not there. Download or copy the directory again")
            self._opened[name] = FileSource(os.path.join(self.name, name))
        return self._opened[name]

    def check_unchanged(self) -> None:
        """UnreadableError if a file that was read is not any more what it was."""
        for name, source in self._opened.items():
            with within(name):
                source.check_unchanged()

    def is_same_file(self, other: os.stat_result) -> bool:
        """Whether `other` is the stat of one of the files that were opened."""
        return any(source.is_same_file(other) for source in self._opened.values())

    def close(self) -> None:
        """Close every file."""
        for source in self._opened.values():
            source.close()


def _list(root: str, below: str, depth: int, found: dict[str, int]) -> None:
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            if entry.is_file():
                found[name] = entry.stat().st_size
            elif depth < _DEPTH and entry.is_dir(follow_symlinks=False):
                _list(root, f"{name}/", depth + 1, found)
            if len(found) > _FILES:
                raise UnreadableError(f"{root}: has more than {_FILES} files. Name the checkpoint itself")


class FolderView:
    """A part of another folder: what is below `below` (which ends with a slash, or is ""), at another entry.

    Whoever opened the folder closes it; names in messages are those of the part.
    """

    def __init__(self, folder: Folder, below: str = "", entry: str = "") -> None:
        self._folder, self._below = folder, below
        self.entry = entry
        self.name = f"{folder.name}/{below}".removesuffix("/") if below else folder.name
        self.stem = folder.stem / below if below else folder.stem
        if below:
            found = {name: size for name, size in folder.files.items() if name.startswith(below)}
            self.files: Mapping[str, int] = {name[len(below) :]: size for name, size in found.items()}
        else:
            self.files = folder.files

    @property
    def nbytes(self) -> int:
        """Bytes of the files of the whole folder that were opened."""
        return self._folder.nbytes

    def open(self, name: str) -> Source:
        """The file called `name`. UnreadableError if there is none."""
        return self._folder.open(self._below + name)

    def check_unchanged(self) -> None:
        """UnreadableError if a file that was read is not any more what it was."""
        self._folder.check_unchanged()

    def is_same_file(self, other: os.stat_result) -> bool:
        """Whether `other` is the stat of one of the files that were opened."""
        return self._folder.is_same_file(other)

    def close(self) -> None:
        """Close every file of the folder."""
        self._folder.close()
