"""JSON that two readers could not read differently: no name twice, no NaN, an object at the top."""

from __future__ import annotations

import json
from typing import Any

from ..errors import UnreadableError


def parse(data: bytes, what: str) -> dict[str, Any]:
    """The object in `data`, UTF-8. UnreadableError, in which `what` names it, when there is none."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except _RefusedError as error:
        raise UnreadableError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"its {what} is not JSON: {str(error)[:100]}. The file is damaged") from None
    if type(value) is not dict:
        raise UnreadableError(f"its {what} is not a JSON object. The file is damaged")
    return value


class _RefusedError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError("a name is there twice. Readers differ in which one they take")
    return result


def _no_constant(name: str) -> None:
    raise _RefusedError(f"{name} is not JSON. The file is damaged")
