"""What a format is: a module with a name, a test and a reader."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from ..checkpoint import Checkpoint, Value
from ..limits import Limits
from ..pickles.nodes import Global
from ..source import Folder, Source
from .zipdir import ZipDirectory


class Nested(Protocol):
    """Reads a checkpoint inside a checkpoint, a file or a part of a folder. Handed down, so that no format imports
    another."""

    def __call__(self, source: Source | Folder) -> Checkpoint:
        """What `source` holds; the errors are those of `formats.read`."""

    def among(self, count: int) -> Nested:
        """The same for each of `count` checkpoints that will be in memory together."""

    def knows(self, source: Source) -> bool:
        """Whether the content of `source` is some container's."""


class Inner:
    """Reads the checkpoints in the byte strings of one pickle, for `resolve`. `globals` are the names that the
    pickles in them mention: a report of the outer one is one of them too."""

    def __init__(self, nested: Nested) -> None:
        self.nested = nested
        self.globals: dict[str, Global] = {}

    def __call__(self, source: Source) -> Value:
        checkpoint = self.nested(source)
        self.globals.update((name.full, name) for name in checkpoint.globals)
        return checkpoint.root

    def beside(self, names: Iterable[Global]) -> tuple[Global, ...]:
        """`names`, those of the outer pickle, and the inner ones: each once."""
        return tuple(({name.full: name for name in names} | self.globals).values())


class Format(Protocol):
    """A container. One module of this package each; `formats.FORMATS` lists them."""

    NAME: str

    def sniff(self, head: bytes, source: Source) -> bool:
        """Whether the content is this container's; `head` is its first bytes (at most 512)."""

    def read(self, source: Source, nested: Nested, limits: Limits) -> Checkpoint:
        """The checkpoint in it. UnreadableError or UnsupportedError if there is none to be had."""


class ZipFormat(Protocol):
    """A kind of zip archive. One module of this package each; `torch_zip` knows them all."""

    NAME: str

    def root_of(self, names: Collection[str]) -> str | None:
        """The folder that it lies in, with its slash, "" for none; None when an archive of these names is not one."""

    def read(self, directory: ZipDirectory, root: str, nested: Nested, limits: Limits) -> Checkpoint:
        """The checkpoint in it. UnreadableError or UnsupportedError if there is none to be had."""


class DirectoryFormat(Protocol):
    """A layout of several files. One module of this package each; `formats.DIRECTORIES` lists them."""

    NAME: str

    def sniff(self, folder: Folder) -> bool:
        """Whether the names of the files in it are this layout's."""

    def read(self, folder: Folder, nested: Nested, limits: Limits) -> Checkpoint:
        """The checkpoint in it. UnreadableError or UnsupportedError if there is none to be had."""
