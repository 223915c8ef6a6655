"""The parts of a checkpoint's values, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .checkpoint import TENSORS, Dict, Object, Value
from .pickles.modules import attributes
from .pickles.nodes import Call, Global, kind_of

# Of keys that are not text: how many parts are spelled out, and of how many characters. Their names are made anew
# each time, from what a pickle may have to hand for a byte.
_PARTS, _SPELLED = 4, 64
_SHORT = (int, bool, float, Global)


def children(node: Value) -> Iterator[tuple[str, Value]]:
    """The named values directly below a node, a repeated key once, with its last value.

    Keys that differ may give the same name (1 and "1"); both are there, for whoever cares.
    """
    if type(node) is Dict:
        yield from _items(node.pairs)
    elif type(node) is list:
        yield from _named(node) or ((str(index), value) for index, value in enumerate(node))
    elif type(node) is Object:
        yield from _inside(node)


def _inside(node: Object) -> Iterator[tuple[str, Value]]:
    """The items of an object that is a dict as well, its attributes and slots, then what it was made of.

    Classes such as EasyDict keep each item as an attribute, too, and those that say ``self.__dict__ = self``
    keep nothing else: what is there twice under one name is one.
    """
    items = list(_items(node.pairs))
    yield from items
    known = dict(items)
    here, slots = attributes(node), None
    if type(node.state) is list and len(node.state) == 2 and type(node.state[1]) is Dict:
        slots = node.state[1]
    for part in (here, slots):
        if part is not None:
            yield from ((name, value) for name, value in _items(part.pairs) if not _is_there(name, value, known))
    if here is None and slots is None and node.state is not None and node.state is not node:
        yield "state", node.state
    for index, value in enumerate([*node.items, *node.args]):
        if not (_is_pair(value) and _is_there(value[0], value[1], known)):  # addict's Dict is made of its items.
            yield str(index), value


def _is_there(name: str, value: Value, known: Mapping[str, Value]) -> bool:
    """Whether a value is among `known` under that name: itself or, if it is plain, its like."""
    return name in known and (known[name] is value or (type(value) in (int, float, str) and known[name] == value))


def _named(node: list[Value]) -> list[tuple[str, Value]]:
    """The items of a list of names and tensors, such as ``list(model.named_parameters())``; none of another list."""
    if not all(_is_pair(pair) and type(pair[1]) in TENSORS for pair in node):
        return []
    return [(name, tensor) for name, tensor in node] if len({name for name, _ in node}) == len(node) else []


def _is_pair(value: Value) -> bool:
    return type(value) is list and len(value) == 2 and type(value[0]) is str and value[0] != ""


def _items(pairs: list[tuple[Value, Value]]) -> Iterable[tuple[str, Value]]:
    if all(type(key) is str for key, _ in pairs):
        return dict(pairs).items()
    # By name, not by key: numbers can be chosen so that their hashes collide.
    last: dict[object, tuple[str, Value]] = {}
    for key, value in pairs:
        name = name_of(key)
        if type(key) in (str, bytes):
            same: object = key
        elif type(key) in (int, bool, float) and key == key and not name.startswith("<"):
            same = (_number(key),)
        else:
            same = id(key)
        last[same] = (last[same][0] if same in last else name, value)
    return last.values()


def _number(key: float) -> str:
    """The same for numbers that Python takes for one key, of which it keeps the first: 1, True and 1.0."""
    return str(int(key)) if type(key) is not float or key.is_integer() else str(key)


def name_of(key: Value) -> str:
    """A dict's key as a part of a tensor's name: text as it is, ``("a", 1)`` as ``a.1``, ``Layer(2)`` as such."""
    if type(key) is str:
        return key
    if type(key) is bytes:  # A str of Python 2.
        try:
            return key.decode()
        except UnicodeDecodeError:
            return key.decode("latin-1")
    if type(key) in (bool, float) or key is None:
        return str(key)
    if type(key) is int:
        return str(key) if key.bit_length() < 256 else "<a huge number>"
    return _spelled(key) or f"<{kind_of(key)}>"


def _spelled(key: Value) -> str:
    """A tuple, a class, or a member of an enumeration in a few characters; nothing for what takes more."""
    if type(key) is Global:
        return key.name if len(key.name) <= _SPELLED else ""
    parts = key if type(key) is tuple else key.args if type(key) is Call and type(key.func) is Global else None
    if type(parts) is not tuple or not 0 < len(parts) <= _PARTS:
        return ""
    named = [name_of(part) for part in parts if (type(part) is str and len(part) <= _SPELLED) or type(part) in _SHORT]
    if len(named) < len(parts):
        return ""
    if type(key) is tuple:
        return ".".join(named)
    if key.func.key == "builtins.getattr":  # Of a class and a member's name.
        return ".".join(named)
    return f"{key.func.name[:_SPELLED]}({', '.join(named)})"
