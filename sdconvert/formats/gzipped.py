"""gzip around any other container. It is unpacked once, because weights are not read in its order."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Checkpoint
from ..errors import UnreadableError, within
from ..inflated import InflatedSource, Scratch
from ..limits import Limits
from ..source import Source
from ..source import read as read_bytes
from .protocol import Nested

NAME = "gzip"


def sniff(head: bytes, source: Source) -> bool:
    return head[:3] == b"\x1f\x8b\x08"


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    inner = gunzipped(source, limits)
    with within("gzip stream"):
        checkpoint = nested(inner)
    return replace(checkpoint, container=f"{NAME}+{checkpoint.container}")


def gunzipped(source: Source, limits: Limits) -> Source:
    """What a gzip stream unpacks to. UnreadableError when that is another one, or it is damaged."""
    inner = InflatedSource(source, Scratch(), wbits=31, nbytes=None, limits=limits, name="gzip stream")
    if sniff(read_bytes(inner, 0, min(3, inner.nbytes)), inner):
        raise UnreadableError("it is gzip inside gzip, which only a bomb needs. Unpack it once first")
    return inner
