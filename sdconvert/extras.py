"""What a checkpoint holds beside weights, as JSON: epochs, losses, hyper-parameters."""

from __future__ import annotations

import json
import math

from .checkpoint import Dict, EncodedTensor, Object, TensorRef, TypedStorage, Value
from .pickles.modules import attributes
from .tree import children

_DEPTH = 32
_MOST = 16 << 20  # Bytes of JSON. Values may be shared, and are written once for each time that they are named.
_LONGEST = 4 << 20  # Characters of one string.
_LEFT_OUT = b'"<...>"'


def to_json(leftovers: Value) -> bytes:
    """`leftovers` as indented ASCII JSON. Tensors and objects become short descriptions of themselves.

    What is nested too deeply, and all that comes after 16 MiB, is a ``"<...>"``.
    """
    out = bytearray()
    _write(leftovers, 0, out)
    return bytes(out) + b"\n"


def _write(value: Value, depth: int, out: bytearray) -> None:
    """Add `value` to `out`. Straight into bytes, as objects for the json module would take many times their size."""
    items = _items(value)
    if items is None:
        out += _atom(value)
        return
    opening, closing = (b"[", b"]") if type(value) is list else (b"{", b"}")
    if depth > _DEPTH:
        out += _LEFT_OUT
        return
    out += opening
    before = b"\n" + b"  " * (depth + 1)
    for number, (name, item) in enumerate(items):
        out += b"," + before if number else before
        if len(out) > _MOST:  # Once over, every container that is still open ends here.
            out += _LEFT_OUT if name is None else _LEFT_OUT + b": " + _LEFT_OUT
            break
        if name is not None:
            out += _text(name) + b": "
        if type(item) in (list, Dict, Object):
            _write(item, depth + 1, out)
        else:
            out += _atom(item)
    if items:
        out += b"\n" + b"  " * depth
    out += closing


def _items(value: Value) -> list[tuple[str | None, Value]] | None:
    """What is in a container, by name or without; None for what is not one."""
    if type(value) is list:
        return [(None, item) for item in value]
    if type(value) is Dict or (type(value) is Object and (value.pairs or attributes(value) is not None)):
        return list(dict(children(value)).items())
    return None


def _atom(value: Value) -> bytes:
    if type(value) is str:
        return _text(value)
    if value is None:
        return b"null"
    if type(value) is bool:
        return b"true" if value else b"false"
    if type(value) is int:
        return b"%d" % value if value.bit_length() < 4096 else b'"<a huge number>"'
    if type(value) is float:  # JSON has no NaN and no infinity.
        return (json.dumps(value) if math.isfinite(value) else json.dumps(str(value))).encode()
    if type(value) in (TensorRef, EncodedTensor):
        return _text(f"<tensor {value.dtype.name} {list(value.shape)}>")
    if type(value) is TypedStorage:
        return _text("<storage>")
    return _text(f"<{value.type_name if type(value) is Object else type(value).__name__}>")


def _text(text: str) -> bytes:
    return json.dumps(text if len(text) <= _LONGEST else f"<a text of {len(text)} characters>").encode()
