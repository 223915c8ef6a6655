"""Tensor subclasses that wrap others (DTensor, torchao's, anybody's): what they hold, without the class.

``_rebuild_from_type_v2(_rebuild_wrapper_subclass, class, (class, dtype, size, stride, offset, layout, device,
requires_grad), state)`` in ``torch/_tensor.py``: the state has the wrapped tensors among plain
attributes. The recipe keeps all of it as JSON with the tensors' roles in their places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoint import TENSORS, EncodedTensor, LostTensor, TensorRef, Value
from ..encodings import encoded
from ..errors import UnreadableError
from ..tensor import check_numbers
from .encoded import fields_of
from .nodes import Bag, Call, Global, Node, Pairs
from .resolver import Resolver, dims, dtype_of

_MOST = 2000  # Values in a state; torchao's have about 20.
_LONGEST = 16 << 10  # Characters in all of its strings.
_DEPTH = 16
_WRAPPERS = 8  # Inside of each other.

_SEQUENCES = {"builtins.set": "set", "builtins.tuple": "tuple"}
_WHOLE = ("Replicate", "Shard", "_StridedShard")


class _UnkeptError(Exception):
    """A state that no recipe can hold; the message says why."""


def _wrapper(r: Resolver, args: tuple[Node, ...], state: Node) -> Value:
    """(class, dtype, size, stride, offset, layout, device, requires_grad) and the state."""
    if len(args) != 8 or type(args[0]) is not Global:
        raise UnreadableError("a tensor subclass that wraps others is not described as torch does. The file is damaged")
    name, dtype, shape, strides = args[0].full, dtype_of(args[1]), dims(args[2]), dims(args[3])
    check_numbers((*shape, *strides), len(shape))
    if name.endswith(".FakeTensor"):
        return LostTensor("a FakeTensor, without values", empty=True)
    fields = _fields(state)
    if _is_dtensor(args[0], fields):
        return _dtensor(r, shape, fields)
    if r.depth > _WRAPPERS:
        return LostTensor(f"a {name}, inside of too many others")
    kept = _State(r)
    try:
        tree = kept.plain(state, "", 0)
    except _UnkeptError as error:
        return LostTensor(f"a {name}, {error}")
    if not kept.parts:
        return LostTensor(f"a {name}, which wraps no tensor that the file has")
    recipe = {
        "encoding": "subclass",
        "dtype": dtype.name,
        "shape": list(shape),
        "class": name,
        "strides": list(strides),
        "state": tree,
    }
    return encoded(recipe, kept.parts)


def _fields(state: Node) -> dict[str, Node]:
    """The attributes in a state: a dict, or (dict, slots)."""
    fields: dict[str, Node] = {}
    for part in state if type(state) is tuple else (state,):
        fields |= fields_of(part)
    return fields


def _is_dtensor(cls: Global, fields: Mapping[str, Node]) -> bool:
    """torch has had the class in several modules; others inherit from it. Of any other class the name says nothing."""
    if cls.module.startswith("torch.distributed.") and cls.name == "DTensor":
        return True
    return "_local_tensor" in fields and "_spec" in fields


def _dtensor(r: Resolver, shape: tuple[int, ...], fields: Mapping[str, Node]) -> Value:
    """The local tensor where it is the whole one; which part of the whole it is, where it is not."""
    if "_local_tensor" not in fields:
        raise UnreadableError("a DTensor has no local tensor. The file is damaged")
    local = r.tensor(fields["_local_tensor"])
    if type(local) is LostTensor:
        return local
    placements = _placements(fields.get("_spec"))
    if local.shape == shape and placements and all(placement in _WHOLE for placement in placements):
        return local
    held = f"a DTensor of shape {list(shape)}, of which this file holds {list(local.shape)}"
    how = ", ".join(placements)[:200] or "placements unknown"
    return LostTensor(
        f"{held} ({how}). The other ranks' files hold the rest: "
        "save with torch.distributed.checkpoint, or call full_tensor() first"
    )


def _placements(spec: Node) -> list[str]:
    """The class names of a DTensorSpec's placements."""
    states = spec.states if type(spec) is Call else ()
    for state in states:
        for part in state if type(state) is tuple else (state,):
            placements = fields_of(part).get("placements")
            if isinstance(placements, tuple | list):
                return [
                    one.func.name if type(one) is Call and type(one.func) is Global else "unknown" for one in placements
                ]
    return []


class _State:
    """Turns the state of a subclass into JSON; its tensors become parts."""

    def __init__(self, r: Resolver) -> None:
        self.r = r
        self.parts: dict[str, TensorRef] = {}
        self.encoded: set[str] = set()
        self.left, self.letters = _MOST, _LONGEST

    def plain(self, node: Node, role: str, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > _DEPTH:
            raise _UnkeptError("whose attributes are more than a recipe holds")
        if node is None or type(node) is bool or (type(node) is int and node.bit_length() < 128):
            return node
        if type(node) is str:
            return self.text(node)
        if type(node) is float:
            return node if math.isfinite(node) else {"float": repr(node)}
        if type(node) is Global:
            return {"global": self.text(node.key)}
        if type(node) is list:
            return self.sequence(node, role, depth)
        if type(node) is tuple:
            return {"tuple": self.sequence(node, role, depth)}
        if type(node) is Bag:
            return {"set": self.sequence(node.items, role, depth)}
        if type(node) is Pairs:
            return {"dict": self.pairs(node.pairs, role, depth)}
        if type(node) is Call and type(node.func) is Global:
            return self.call(node, role, depth)
        raise _UnkeptError("with an attribute that a recipe cannot hold")

    def text(self, text: str) -> str:
        self.letters -= len(text)
        if self.letters < 0 or not text.isascii():
            raise _UnkeptError("with a text among its attributes that a recipe does not hold")
        return text

    def sequence(self, items: Any, role: str, depth: int) -> list[Any]:
        return [self.plain(item, role, depth + 1) for item in items]

    def pairs(self, pairs: list[tuple[Node, Node]], role: str, depth: int) -> list[Any]:
        result = []
        for key, value in pairs:
            step = str(key) if type(key) in (str, int) else ""
            inner = f"{role}.{step}" if role and step else role or step
            result.append([self.plain(key, role, depth + 1), self.plain(value, inner, depth + 1)])
        return result

    def call(self, call: Call, role: str, depth: int) -> Any:
        if call.func.key in self.r.table and type(value := self.r.value(call)) in TENSORS:
            return self.part(value, role or "data")
        if call.kwargs is not None or call.items or len(call.states) > 1:
            raise _UnkeptError("with an attribute that a recipe cannot hold")
        if call.func.key in _SEQUENCES and len(call.args) == 1 and type(call.args[0]) in (list, tuple, Bag):
            inside = call.args[0].items if type(call.args[0]) is Bag else call.args[0]
            return {_SEQUENCES[call.func.key]: self.sequence(inside, role, depth)}
        if call.func.key == "builtins.getattr" and not (call.states or call.pairs) and len(call.args) == 2:
            of, member = call.args  # Of an enumeration, as Python 3.11.0 to 3.11.3 pickles its members.
            if type(of) is Global and type(member) is str:
                return {"member": self.text(member), "of": self.text(of.key)}
        name, args = self.text(call.func.key), self.sequence(call.args, role, depth)
        if call.pairs:
            if call.func.key != "collections.OrderedDict":
                raise _UnkeptError("with an attribute that a recipe cannot hold")
            args = [*args, [[self.plain(k, role, depth + 1), self.plain(v, role, depth + 1)] for k, v in call.pairs]]
        state = self.plain(call.states[0], role, depth + 1) if call.states else None
        return {"call": name, "args": args, "state": state}

    def part(self, value: Value, role: str) -> dict[str, Any]:
        """A tensor: its role stands for it."""
        while role in self.parts or any(known.startswith(f"{role}.") for known in self.parts):
            role += "_"
        if any(role.startswith(f"{outer}.") for outer in self.encoded):
            raise _UnkeptError("with two attributes of one name")
        self.text(role)
        if type(value) is LostTensor:
            raise _UnkeptError(f"and its {role} {value.why}")
        if type(value) is EncodedTensor:
            self.encoded.add(role)
            self.parts |= {f"{role}.{inner}": part for inner, part in value.parts.items()}
            return {"encoded": role, "recipe": value.recipe}
        self.parts[role] = value
        return {"tensor": role}


Wrapper = Callable[[Resolver, tuple[Node, ...], Node], Value]
WRAPPERS: Mapping[str, Wrapper] = {"torch._utils._rebuild_wrapper_subclass": _wrapper}
"""Functions of ``_rebuild_from_type_v2`` that need the state, too."""
