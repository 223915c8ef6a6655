"""The bytes of a pickle, a window at a time, with frames held to their word.

Allocation follows what is there: every announced length is checked against the bytes
that are left before anything is read, and long byte strings are not read at all.
"""

from __future__ import annotations

from ..errors import UnreadableError
from ..inflated import credit
from ..limits import Limits
from ..source import Source, read
from .nodes import Blob

_FIRST, _SIZE = 1 << 12, 1 << 18  # Bytes of pickle in memory at a time: few at first, as some files have many pickles.
_MARGIN = 16  # No opcode with fixed arguments is longer; the end of the window is padded with as much.
_BLOB = 4096  # Longer byte strings stay in the source.


class Window:
    """A cursor over `source`. `pos` counts from `base`, the source offset of the bytes in `buf`.

    Below `safe` a whole opcode with fixed arguments can be read from `buf` without a check;
    from there on `advance` decides.
    """

    def __init__(self, source: Source, offset: int, limits: Limits) -> None:
        self.source, self.limits = source, limits
        self.buf, self.base, self.pos, self.valid, self.safe = b"", offset, 0, 0, 0
        self.frame_end: int | None = None
        self.step = _FIRST
        # Checkpoints' pickles deflate to a fifth. An opcode of one byte can take sixty in memory.
        self.budget = min(limits.pickle_bytes, credit(source, limits, ratio=8))
        self.budget_end = offset + self.budget

    def damaged(self, what: str) -> UnreadableError:
        return UnreadableError(f"the pickle is damaged near byte {self.base + self.pos}: {what}")

    def advance(self) -> None:
        """Called when `pos` reaches `safe`: leave a frame, move the window, or find that it is over."""
        at = self.base + self.pos
        if self.frame_end is not None:
            if at > self.frame_end:
                raise self.damaged("an opcode crosses the end of its frame")
            if at == self.frame_end:
                self.frame_end = None
        if at >= self.source.nbytes:
            raise self.damaged("it ends before its STOP. The file was cut short")
        if at >= self.budget_end:
            limits = "Limits.pickle_bytes" if self.budget == self.limits.pickle_bytes else "Limits.inflate_slack"
            raise self.damaged(f"it is longer than the {self.budget} bytes that it may have ({limits})")
        if self.valid - self.pos < _MARGIN and self.base + self.valid < self.source.nbytes:
            self.load(at, self.step)
        self.set_safe()

    def set_safe(self) -> None:
        at_end = self.base + self.valid == self.source.nbytes
        self.safe = self.valid if at_end else self.valid - _MARGIN + 1
        if self.frame_end is not None:
            self.safe = min(self.safe, self.frame_end - self.base)
        self.safe = min(self.safe, self.budget_end - self.base)

    def load(self, at: int, count: int) -> None:
        count = min(count, self.source.nbytes - at)
        self.buf = read(self.source, at, count) + bytes(_MARGIN)
        self.base, self.pos, self.valid = at, 0, count
        self.step = min(8 * self.step, _SIZE)
        self.set_safe()

    def claim(self, count: int) -> int:
        """The source offset of the next `count` bytes, after a check that they are there, and in the frame."""
        at = self.base + self.pos
        end = at + count
        if count < 0 or end > self.source.nbytes:
            raise self.damaged(f"a value of {count} bytes is announced, only {self.source.nbytes - at} are left")
        if self.frame_end is not None and end > self.frame_end:
            raise self.damaged("a value crosses the end of its frame")
        return at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        at = self.claim(count)
        if self.pos + count > self.valid:
            self.load(at, max(count, self.step))
        self.pos += count
        return self.buf[self.pos - count : self.pos]

    def take_text(self, count: int) -> bytes:
        if count > self.limits.text_bytes:
            raise self.damaged(f"a string of {count} bytes is longer than Limits.text_bytes")
        return self.take(count)

    def take_bytes(self, count: int) -> bytes | Blob:
        """The next `count` bytes, or where they are if they are many."""
        if count <= _BLOB:
            return self.take(count)
        at = self.claim(count)
        self.budget_end += count
        if self.pos + count <= self.valid:
            self.pos += count
        else:
            self.base, self.pos, self.valid, self.buf = at + count, 0, 0, b""
            self.set_safe()
        return Blob(self.source, at, count)

    def line(self) -> bytes:
        """The bytes up to the next newline, which is consumed too."""
        size, most = self.step, self.limits.text_bytes + 1
        while (end := self.buf.find(b"\n", self.pos, min(self.valid, self.pos + most))) < 0:
            if self.valid - self.pos >= most:
                raise self.damaged("a line is longer than Limits.text_bytes")
            if self.base + self.valid >= self.source.nbytes:
                raise self.damaged("a line does not end")
            self.load(self.base + self.pos, min(size, most))
            size *= 4
        return self.take(end + 1 - self.pos)[:-1]
