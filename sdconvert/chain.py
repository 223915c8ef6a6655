"""Files inside archives, named as fsspec chains them: ``zip://policy.pth::ppo.zip``, ``tar://a/weights.th::model.tar.gz``.

The first name is the innermost; links may follow each other (``zip://a.pt::tar://b.zip::c.tar``).
What is stored is read where it lies; what is compressed is unpacked once. The same checks
hold as for any archive.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Protocol

from .errors import ChoiceError, UnreadableError, within
from .formats.archive import ZipFiles
from .formats.gzipped import gunzipped
from .formats.gzipped import sniff as is_gzip
from .formats.tardir import is_header, read_members
from .formats.zipdir import read_directory
from .limits import Limits
from .source import Origin, Source, read

_SCHEMES = ("zip://", "tar://")
_HEAD = 512
_SHOWN = 20


class FileOrigin(Origin, Source, Protocol):
    """A single file, wherever it is."""


class MemberSource:
    """A file inside archives inside the file `base`, which it closes with itself."""

    def __init__(self, name: str, base: FileOrigin, links: list[str], limits: Limits) -> None:
        self.name, self.base = name, base
        source: Source = base
        if len(links) > limits.nesting:
            raise UnreadableError(
                f"{name}: has more than {limits.nesting} containers inside each other (Limits.nesting)"
            )
        with within(name):
            for link in reversed(links):
                source = _member(source, link, limits)
        self.source = source
        self.nbytes = source.nbytes
        file = PurePosixPath(links[0].partition("://")[2]).name
        self.stem = (base.stem.parent / file).with_suffix("")

    def check_unchanged(self) -> None:
        """UnreadableError if the archive is not any more what was opened."""
        self.base.check_unchanged()

    def is_same_file(self, other: os.stat_result) -> bool:
        """Whether `other` is the stat of the archive."""
        return self.base.is_same_file(other)

    def close(self) -> None:
        self.base.close()


def parse(source: str) -> tuple[list[str], str] | None:
    """The links and the archive of a chained name; None when it is none.

    The archive may be a path, or a URL of something that is not on this machine. ChoiceError when a part is empty.
    """
    if not source.startswith(_SCHEMES):
        return None
    links: list[str] = []
    rest = source
    while rest.startswith(_SCHEMES):
        link, _, rest = rest.partition("::")
        if not link.partition("://")[2].strip("/"):
            raise ChoiceError(f"{source}: {link} names no file in the archive")
        links.append(link)
    if not rest:
        raise ChoiceError(f"{source}: names no archive. Write {source}::ARCHIVE")
    return links, rest


def _member(source: Source, link: str, limits: Limits) -> Source:
    """The file that `link` names in the archive `source`."""
    scheme, _, name = link.partition("://")
    name = name.lstrip("/")
    with within(link):
        head = read(source, 0, min(_HEAD, source.nbytes))
        if scheme == "zip":
            if head[:2] != b"PK":
                raise UnreadableError(f"the archive around it is not a zip; it begins with {head[:8].hex(' ')}")
            files: Mapping[str, Source] = ZipFiles(read_directory(source, limits))
        else:
            if is_gzip(head, source):
                source = gunzipped(source, limits)
                head = read(source, 0, min(_HEAD, source.nbytes))
            if not is_header(head):
                raise UnreadableError(f"the archive around it is not a tar; it begins with {head[:8].hex(' ')}")
            files = read_members(source)
        if name not in files:
            inside = sorted(files)
            shown = ", ".join(inside[:_SHOWN]) + ", ..." * (len(inside) > _SHOWN)
            raise ChoiceError(f"there is no such file in the archive. There is {shown or 'nothing'}")
        if isinstance(files, ZipFiles):
            files.check(name)
        return files[name]
