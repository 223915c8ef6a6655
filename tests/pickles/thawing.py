"""From inert nodes back to Python's own values, so that pickle itself can be the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdconvert.pickles.machine import Pickled, run
from sdconvert.pickles.nodes import Bag, Blob, Call, Global, Pairs, PersId
from sdconvert.source import MemorySource, read

# The calls by which old protocols spell values that have no opcode of their own there.
_BUILTINS: dict[str, Callable[..., Any]] = {
    "builtins.set": frozenset,
    "builtins.frozenset": frozenset,
    "builtins.bytes": bytes,
    "builtins.bytearray": bytes,
    "builtins.complex": complex,
    "_codecs.encode": lambda text, encoding: text.encode(encoding),
}


def run_bytes(data: bytes) -> Pickled:
    """The machine on a pickle in memory."""
    return run(MemorySource(data))


def loosened(value: Any) -> Any:
    """`value` without what nodes do not tell apart: sets from frozensets, bytearrays from bytes."""
    kind = type(value)
    if kind in (set, frozenset):
        return frozenset(map(loosened, value))
    if kind is bytearray:
        return bytes(value)
    if kind is dict:
        return {loosened(key): loosened(item) for key, item in value.items()}
    return kind(map(loosened, value)) if kind in (list, tuple) else value


def thaw(node: Any) -> Any:
    """The value that a tree of nodes stands for; names and persistent ids as tuples that say so."""
    kind = type(node)
    if kind is Pairs:
        return {thaw(key): thaw(value) for key, value in node.pairs}
    if kind is Bag:
        return frozenset(thaw(item) for item in node.items)
    if kind in (list, tuple):
        return kind(map(thaw, node))
    if kind is Blob:
        return read(node.source, node.offset, node.nbytes)
    if kind is Global:
        return ("global", node.full)
    if kind is PersId:
        return ("persistent", thaw(node.pid))
    if kind is Call:
        func = _BUILTINS.get(node.func.key) if type(node.func) is Global else None
        if func is not None:
            return func(*map(thaw, node.args))
        return ("call", thaw(node.func), thaw(node.args))
    return node
