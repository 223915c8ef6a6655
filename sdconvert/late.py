"""A part of a far source whose place is found, and checked, when it is read for the first time."""

from __future__ import annotations

from collections.abc import Callable

from .errors import UnreadableError
from .source import SliceSource, Source


class LateSource:
    """`nbytes` bytes of `base` from `find()` on, which reads what is needed to know, and raises what is wrong.

    All of that lies in `span`, a begin and an end in `base`. To look there at once would cost a request
    for each part of a large file, of which few may be wanted.
    """

    far = True

    def __init__(self, base: Source, name: str, nbytes: int, span: tuple[int, int], find: Callable[[], int]) -> None:
        self.name, self.nbytes = name, nbytes
        self._base, self._span, self._find = base, span, find
        self._offset: int | None = None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if offset < 0 or end > self.nbytes:
            raise UnreadableError(f"{self.name}: byte {end} is beyond its {self.nbytes} bytes")
        if self._offset is None:  # Threads may do it twice, with the same result.
            self._offset = self._find()
        self._base.readinto(self._offset + offset, buffer)

    def expect(self, begin: int, end: int, *, checked: bool = False) -> None:
        """Some of it will be read: all of its span is fetched for that."""
        base, start = self._base, 0
        if isinstance(base, SliceSource):
            start, base = base.offset, base.base
        base.expect(start + self._span[0], start + self._span[1], checked=checked)  # type: ignore[attr-defined]
