"""What a format is: a module with a name, a test and a reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..checkpoint import Checkpoint
from ..limits import Limits
from ..source import Source

Nested = Callable[[Source], Checkpoint]
"""Reads a checkpoint inside a checkpoint. Handed down, so that no format imports another."""


class Format(Protocol):
    """A container. One module of this package each; `formats.FORMATS` lists them."""

    NAME: str

    def sniff(self, head: bytes, source: Source) -> bool:
        """Whether the content is this container's; `head` is its first bytes (at most 512)."""

    def read(self, source: Source, nested: Nested, limits: Limits) -> Checkpoint:
        """The checkpoint in it. UnreadableError or UnsupportedError if there is none to be had."""
