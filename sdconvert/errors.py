"""Every way in which sdconvert says no.

    SdconvertError
    ├── UnreadableError (ValueError)     damaged, truncated, hostile, or not a checkpoint at all
    ├── UnsupportedError                 sound, but it cannot be expressed in the output
    ├── ChoiceError                      what was asked for fits nothing, or several things; ``.candidates`` lists them
    ├── MismatchError (RuntimeError)     two things that should agree do not
    └── OutputError (OSError)            the result could not be written or published

A low layer knows what is wrong and at which offset; the layers above add where:
``with within("data.pkl"): ...`` puts a place in front of the message, so the whole
reads ``ckpt.pt: data.pkl: model.head.weight: storage '7' holds 400 bytes, ...``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import Candidate


_LONGEST = 1000  # Characters of a message; a name from a hostile file can have millions.


def printable(text: str) -> str:
    """`text` with everything a terminal could act on (controls, bidi marks, surrogates) escaped.

    Names come from files that strangers wrote; an escape sequence in one must not
    reach a terminal or forge a line of a log.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def listed(items: Sequence[str], most: int = 8, longest: int = 200) -> str:
    """The first `most` of `items` for a line of text, no more than `longest` characters of each, and how many more."""
    shown = ", ".join(item if len(item) <= longest else f"{item[:longest]}..." for item in items[:most])
    return f"{shown} and {len(items) - most:,} more" if len(items) > most else shown


class SdconvertError(Exception):
    """The base of all errors that sdconvert raises on purpose; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.places: list[str] = []

    def __str__(self) -> str:
        text = printable(": ".join([*self.places, self.message]))
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries in batches; OSError's own __reduce__ would drop places.
        return (type(self), (self.message,), self.__dict__)


class UnreadableError(SdconvertError, ValueError):
    """The source is damaged, truncated, hostile, or not a checkpoint."""


class UnsupportedError(SdconvertError):
    """The source is sound, but what it holds cannot be expressed in the output."""


class ChoiceError(SdconvertError):
    """It takes the caller to say what is meant: several state dicts fit, or an argument fits nothing that is there.

    `candidates` describes each of several, and those that there are instead; empty where a `key` is not the question.
    """

    def __init__(self, message: str, candidates: Sequence[Candidate] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class MismatchError(SdconvertError, RuntimeError):
    """Two things that should hold the same weights do not."""


class OutputError(SdconvertError, OSError):
    """The result could not be written or published. What was there before is untouched."""


@contextmanager
def within(place: str) -> Iterator[None]:
    """Put `place` in front of the text of any SdconvertError that passes through."""
    try:
        yield
    except SdconvertError as error:
        error.places.insert(0, place)
        raise
