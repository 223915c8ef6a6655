"""Several files as one string of bytes, so that a fuzzer that knows only bytes gets at all of them.

Each file begins with a line: two bytes that no UTF-8 has, and its name. What is put in or taken out of one file leaves
the others as they are. The bytes say too whether a zip is repaired first, so that what is inside of it is reached.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sdconvert.errors import UnreadableError
from sdconvert.source import MemorySource, Source

from .mutate import repaired

RAW, REPAIRED = b"\xf5\xf7", b"\xf5\xf6"


def pack(files: Mapping[str, bytes], *, raw: bool = False) -> bytes:
    """The files as one string; none of them may hold such two bytes, or it would fall apart."""
    assert not any(sign in data for data in files.values() for sign in (RAW, REPAIRED))
    sign = RAW if raw else REPAIRED
    return b"".join(sign + name.encode() + b"\n" + data for name, data in files.items())


def unpack(data: bytes, *, repair: bool = True) -> dict[str, bytes]:
    """The files in it; of two with one name, the last. Names are text, and may have what they must not."""
    files: dict[str, bytes] = {}
    for part in data.replace(RAW, REPAIRED + RAW).split(REPAIRED)[1:]:
        raw = part.startswith(RAW)
        name, _, content = part.removeprefix(RAW).partition(b"\n")
        if repair and content.startswith(b"PK") and not raw:
            content = repaired(content)
        files[name.decode("utf-8", "replace")] = content
    return files


class MemoryFolder:
    """Files by name. It asks only what `Folder` promises."""

    name, stem = "folder", Path("folder")

    def __init__(self, data: Mapping[str, bytes], entry: str = "") -> None:
        self.entry = entry
        self.sources = {name: MemorySource(content, name) for name, content in sorted(data.items())}
        self.files = {name: source.nbytes for name, source in self.sources.items()}
        self.nbytes = sum(self.files.values())

    def open(self, name: str) -> Source:
        if name not in self.sources:
            raise UnreadableError(f"{name}: is not there")
        return self.sources[name]

    def check_unchanged(self) -> None:
        """It cannot change."""

    def is_same_file(self, other: os.stat_result) -> bool:
        return False

    def close(self) -> None:
        """There is nothing to close."""
