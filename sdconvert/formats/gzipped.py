"""gzip around any other container. It is unpacked once, because weights are not read in its order."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Checkpoint
from ..errors import within
from ..limits import Limits
from ..source import InflatedSource, Source
from .protocol import Nested

NAME = "gzip"


def sniff(head: bytes, source: Source) -> bool:
    return head[:3] == b"\x1f\x8b\x08"


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    most = min(limits.inflate_bytes, limits.inflate_ratio * source.nbytes)
    inner = InflatedSource(source, wbits=31, nbytes=None, most=most, name="gzip stream")
    with within("gzip stream"):
        checkpoint = nested(inner)
    return replace(checkpoint, container=f"{NAME}+{checkpoint.container}")
