"""JSON that two readers could not read differently, and that costs no more memory than it may.

No name twice, no NaN, an object at the top; ``-0`` is no integer, as it is none for Rust's serde. As objects of Python,
JSON takes up to 45 times its bytes (``[[],[],...``), so what it will take is told from its signs before it is
parsed (`cost`), or it is read one member after another (`members`).
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator
from json.decoder import JSONDecodeError, JSONDecoder
from typing import Any

from .errors import UnreadableError
from .source import Source
from .source import read as read_bytes

_CHUNK = 1 << 20
# What CPython 3.10 to 3.13 take at most for each sign, containers with few or no items among them.
_PRICES = ((b"{", 120), (b"[", 96), (b",", 36), (b":", 110), (b'"', 25))
_NEGATIVE_ZEROS = tuple(f"{before}-0" for before in ":,[ \t\r\n")
_SPACE = re.compile(r"[ \t\n\r]*")


def parse(source: Source, offset: int, nbytes: int, what: str, most: int) -> dict[str, Any]:
    """The object in `nbytes` bytes of `source`, UTF-8. UnreadableError, in which `what` names it, when there is
    none, or when it would take more than `most` bytes of memory (``Limits.json_bytes``)."""
    price, width = 0, 1
    for at in range(offset, offset + nbytes, _CHUNK):
        chunk = read_bytes(source, at, min(_CHUNK, offset + nbytes - at))
        price += _signs(chunk)
        if not chunk.isascii():  # One character decides how many bytes each of a str takes.
            largest = max(chunk)
            width = max(width, 4 if largest >= 0xF0 else 2 if largest >= 0xC4 else 1)
        _check(price + nbytes * (2 + width), what, most)
    return _object(_decoded(read_bytes(source, offset, nbytes), what), what)


def parse_text(text: str, what: str, most: int) -> dict[str, Any]:
    """The object in `text`. The errors are those of `parse`."""
    _check(cost(text), what, most)
    return _object(text, what)


def cost(text: str) -> int:
    """About the most bytes of memory that the objects of some JSON take."""
    return sum(text.count(sign.decode()) * price for sign, price in _PRICES) + sys.getsizeof(text)


def members(source: Source, offset: int, nbytes: int, what: str, most: int) -> Iterator[tuple[str, Any]]:
    """The names and values of the object in `nbytes` bytes of `source`, in order, never all of them in memory.

    Whether a name is there twice, the caller sees. UnreadableError is raised where the JSON is wrong: what came
    before is not to be used then. A value that would take more than `most` bytes is refused.
    """
    window = _Window(source, offset, nbytes, what, most)
    window.expect("{")
    if window.peek() != "}":
        while True:
            yield window.quick() or window.pair()
            if window.text[window.at : window.at + 1] != "," and window.peek() != ",":
                break
            window.at += 1
    window.expect("}")
    if window.peek():
        raise _not_json(what, "something follows its end")


class _Window:
    """The part of the text that is being parsed: it moves on, and grows for a value that is larger than it is."""

    def __init__(self, source: Source, offset: int, nbytes: int, what: str, most: int) -> None:
        self.source, self.next, self.end, self.what, self.most = source, offset, offset + nbytes, what, most
        self.text, self.at = "", 0
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.raw_decode = _READER.raw_decode

    def more(self) -> None:
        """Drop what was read and take in at least as much again as is left."""
        count = min(max(_CHUNK, len(self.text) - self.at), self.end - self.next)
        data = read_bytes(self.source, self.next, count)
        self.next += count
        try:
            new = self.decode(data, self.next == self.end)
        except UnicodeDecodeError as error:
            raise _not_json(self.what, str(error)) from None
        kept, self.at = self.text[self.at :], 0
        if kept and len(kept) + len(new) > 2 * _CHUNK:  # One value is as large as that; it is parsed again and again.
            _check(cost(kept) + cost(new) + 2 * sys.getsizeof(kept), self.what, self.most)
        self.text = kept + new
        odd = any(sign in self.text for sign in _NEGATIVE_ZEROS)
        self.raw_decode = (_CAREFUL_READER if odd else _READER).raw_decode

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if self.next == self.end:
                return ""
            self.more()

    def expect(self, sign: str) -> None:
        if self.peek() != sign:
            raise _not_json(self.what, f"a {sign} is missing")
        self.at += 1

    def after_space(self, at: int) -> int:
        """Where the value at `at` begins. To let the decoder find the space takes as long as the text is: it counts
        the lines up to there for its error. IndexError at the end."""
        if self.text[at] > " ":
            return at
        space = _SPACE.match(self.text, at)
        return space.end() if space else at

    def quick(self) -> tuple[str, Any] | None:
        """The next name and value if all of it is here, as nearly always, and no space is before the colon."""
        try:
            name, at = self.raw_decode(self.text, self.after_space(self.at))
            if type(name) is not str or self.text[at] != ":":
                return None
            value, at = self.raw_decode(self.text, self.after_space(at + 1))
        except (ValueError, IndexError, RecursionError, _RefusedError):
            return None
        if at == len(self.text):  # Half of a number, perhaps.
            return None
        self.at = at
        return name, value

    def pair(self) -> tuple[str, Any]:
        """The next name and value. UnreadableError when they are wrong."""
        name = self.value()
        if type(name) is not str:
            raise _not_json(self.what, "a name is not a string")
        self.expect(":")
        return name, self.value()

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.raw_decode(self.text, self.at)
            except _RefusedError as error:
                raise UnreadableError(f"{self.what}: {error}") from None
            except JSONDecodeError as error:
                if self.next == self.end or not _is_cut(error, self.text):
                    raise _not_json(self.what, error.msg) from None
            except (ValueError, RecursionError) as error:
                raise _not_json(self.what, str(error)) from None
            else:
                if end < len(self.text) or self.next == self.end:  # Else it may be half of a number.
                    self.at = end
                    return value
            self.more()


def _is_cut(error: JSONDecodeError, text: str) -> bool:
    """Whether what is wrong may be only that the text goes on: a string has no end, or a word or an escape none."""
    return error.msg.startswith("Unterminated string") or error.pos > len(text) - 16


def _signs(chunk: bytes) -> int:
    return sum(chunk.count(sign) * price for sign, price in _PRICES)


def _check(price: int, what: str, most: int) -> None:
    if price > most:
        raise UnreadableError(f"its {what} would take more than {most} bytes of memory (Limits.json_bytes)")


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(what, str(error)) from None


def _object(text: str, what: str) -> dict[str, Any]:
    odd = any(sign in text for sign in _NEGATIVE_ZEROS)
    try:
        value = (_CAREFUL_READER if odd else _READER).decode(text)
    except _RefusedError as error:
        raise UnreadableError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _not_json(what, str(error)) from None
    if type(value) is not dict:
        raise UnreadableError(f"its {what} is not a JSON object. The file is damaged")
    return value


def _not_json(what: str, why: str) -> UnreadableError:
    return UnreadableError(f"its {what} is not JSON: {why[:100]}. The file is damaged")


class _RefusedError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError("a name is there twice. Readers differ in which one they take")
    return result


def _no_constant(name: str) -> None:
    raise _RefusedError(f"{name} is not JSON. The file is damaged")


def _whole(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)


_READER = JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_CAREFUL_READER = JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole)
