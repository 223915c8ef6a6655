"""JSON in an archive: read whole, and held to what a strict reader would take."""

from __future__ import annotations

import json
from typing import Any

from ..errors import UnreadableError, within
from ..inflated import credit
from ..limits import Limits
from ..source import read as read_bytes
from .torch_archive import check_crc
from .zipdir import ZipDirectory


def read_json(directory: ZipDirectory, name: str, limits: Limits) -> dict[str, Any]:
    """The object in the record `name`. UnreadableError when it is not there, is not one, or has a name twice."""
    with within(name):
        if name not in directory.records:
            raise UnreadableError("is not in the archive. The file is damaged")
        storage = directory.storage(name)
        if storage.nbytes > min(limits.header_bytes, credit(storage.source)):
            raise UnreadableError(f"{storage.nbytes} bytes of JSON are too many (Limits.header_bytes)")
        check_crc(storage)
        try:
            text = read_bytes(storage.source, storage.offset, storage.nbytes).decode("utf-8")
            found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
            text.encode()
        except UnreadableError:
            raise
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"it is not JSON: {str(error)[:100]}. The file is damaged") from None
        if type(found) is not dict:
            raise UnreadableError("it is not a JSON object. The file is damaged")
        return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise UnreadableError("a name is there twice. Readers differ in which one they take")
    return result


def _no_constant(name: str) -> None:
    raise UnreadableError(f"{name} is not JSON. The file is damaged")
