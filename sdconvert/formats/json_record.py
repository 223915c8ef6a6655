"""JSON in an archive: read whole, and held to what a strict reader would take."""

from __future__ import annotations

from typing import Any

from ..errors import UnreadableError, within
from ..inflated import credit
from ..limits import Limits
from ..strict_json import parse
from .torch_archive import check_crc
from .zipdir import ZipDirectory


def read_json(directory: ZipDirectory, name: str, limits: Limits) -> dict[str, Any]:
    """The object in the record `name`. UnreadableError when it is not there, is not one, or has a name twice."""
    with within(name):
        if name not in directory.records:
            raise UnreadableError("is not in the archive. The file is damaged")
        storage = directory.storage(name)
        if storage.nbytes > min(limits.header_bytes, credit(storage.source, limits)):
            raise UnreadableError(
                f"{storage.nbytes} bytes of JSON are too many (Limits.header_bytes, Limits.inflate_slack)"
            )
        check_crc(storage)
        return parse(storage.source, storage.offset, storage.nbytes, "text", limits.json_bytes)
