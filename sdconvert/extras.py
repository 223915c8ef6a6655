"""What a checkpoint holds beside weights, as JSON: epochs, losses, hyper-parameters."""

from __future__ import annotations

import json
import math

from .checkpoint import Dict, EncodedTensor, Object, TensorRef, TypedStorage, Value
from .pickles.modules import attributes
from .search import children

_DEPTH = 32
_BUDGET = 64 << 20  # Roughly bytes of JSON; values may be shared and named once for each time.


def to_json(leftovers: Value) -> bytes:
    """`leftovers` as indented UTF-8 JSON. Tensors and objects become short descriptions of themselves."""
    return json.dumps(_plain(leftovers, 0, [_BUDGET]), indent=2, ensure_ascii=True).encode() + b"\n"


def _plain(value: Value, depth: int, budget: list[int]) -> object:
    budget[0] -= 16 + (len(value) if type(value) is str else 0)
    if budget[0] < 0:
        return "<...>"
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if value.bit_length() < 4096 else "<a huge number>"
    if type(value) is float:
        return value if math.isfinite(value) else str(value)  # JSON has no NaN and no infinity.
    if type(value) in (TensorRef, EncodedTensor):
        return f"<tensor {value.dtype.name} {list(value.shape)}>"
    if type(value) is TypedStorage:
        return "<storage>"
    if depth > _DEPTH:
        return "<...>"
    if type(value) is list:
        return [_plain(item, depth + 1, budget) for item in value]
    if type(value) is Dict or (type(value) is Object and (value.pairs or attributes(value) is not None)):
        return {name: _plain(item, depth + 1, budget) for name, item in children(value)}
    return f"<{value.type_name if type(value) is Object else type(value).__name__}>"
