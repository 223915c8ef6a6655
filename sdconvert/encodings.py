"""Tensors that no plain tensor can be: what stands for each kind, and what must be true of it.

An encoded tensor is a recipe, JSON-ready, and plain parts by their role. `check` holds a recipe to
its parts, wherever both come from: a pickle, the metadata of a safetensors file, or a caller.
Facts: ``torch/_utils.py`` (``_rebuild_qtensor``, ``_rebuild_sparse_tensor``, ``_rebuild_nested_tensor``),
``torch/sparse`` (the invariants of the layouts), ``torch/nested/_internal/nested_tensor.py``.

=================  =====================================================================================
``quantized``      ``int_repr`` (``packed`` bytes below 8 bits); per channel ``scales`` and ``zero_points``
``sparse_coo``     ``indices`` [sparse dimensions, n] and ``values`` [n, dense dimensions...]
``sparse_csr`` ..  ``compressed_indices``, ``plain_indices``, ``values``; also csc, bsr, bsc
``nested``         ``buffer``, ``sizes``, ``strides``, ``offsets``
``jagged``         ``values``, ``offsets``, and ``lengths`` where there are any
``subclass``       the tensors that a wrapper holds, by the names of its attributes
``complex``        ``pairs``: real and imaginary parts in a last dimension of 2 (complex128, complex32)
``bits``           ``items``: opaque bits as unsigned numbers
=================  =====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .checkpoint import EncodedTensor, TensorRef
from .dtypes import BY_NAME
from .errors import UnreadableError, UnsupportedError
from .tensor import MAX_DIMENSIONS, Shape, numel

Recipe = Mapping[str, Any]

# The integers that hold each quantized type, and how many elements are in one.
_INTEGERS = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
PACKED = {"quint4x2": 2, "quint2x4": 4}
PER_TENSOR, PER_CHANNEL = "per_tensor_affine", "per_channel_affine"
COMPRESSED = {"sparse_csr": 0, "sparse_csc": 1, "sparse_bsr": 0, "sparse_bsc": 1}
"""The compressed layouts of sparse tensors, and which of the two dimensions is the compressed one."""
_DEPTH = 24  # Of what a subclass keeps beside its tensors, and of encoded tensors inside each other.
_NESTING = 100
_PARTS = 1000  # Of one tensor. A wrapper subclass has a handful.


class Fact(NamedTuple):
    """What `check` needs to know of a part: its dtype's name and its shape."""

    dtype: str
    shape: Shape


def encoded(recipe: Recipe, parts: Mapping[str, TensorRef]) -> EncodedTensor:
    """The encoded tensor of `recipe` and `parts`. UnreadableError when they do not fit each other."""
    shape = check(recipe, {role: Fact(part.dtype.name, part.shape) for role, part in parts.items()})
    return EncodedTensor(recipe, parts, BY_NAME[recipe["dtype"]], shape)


def check(recipe: Recipe, parts: Mapping[str, Fact]) -> Shape:
    """Hold `recipe` to its `parts`; the shape of the whole.

    UnreadableError says what does not fit, UnsupportedError that the encoding is not known here.
    """
    kind = recipe.get("encoding")
    rule = _RULES.get(kind) if type(kind) is str else None
    if rule is None:
        raise UnsupportedError(f"its encoding {kind!r:.60} is not one that this version knows")
    if type(recipe.get("dtype")) is not str or recipe["dtype"] not in BY_NAME:
        raise UnreadableError(f"{kind}: its dtype is none of torch's")
    shape = recipe.get("shape")
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise UnreadableError(f"{kind}: its shape is not a list of whole numbers of 0 or more")
    if _is_too_deep(recipe):
        raise UnreadableError(f"{kind}: its recipe is nested beyond reason")
    if len(parts) > _PARTS or any(role.count(".") > _DEPTH for role in parts):
        raise UnreadableError(f"{kind}: it has {len(parts)} parts, which is beyond reason")
    # Products of claims can be huge: what is compared with them is what is really there.
    rule(recipe, tuple(shape), parts)
    return tuple(shape)


def _is_too_deep(recipe: Recipe) -> bool:
    """Whether a recipe, with those inside it, is nested deeper than whoever walks it by recursion can go."""
    below: list[Any] = list(recipe.values())
    for _ in range(_NESTING):
        below = [
            item
            for value in below
            if type(value) in (list, dict)
            for item in (value.values() if type(value) is dict else value)
        ]
        if not below:
            return False
    return True


def stand_in(dtype: str, shape: Shape) -> Fact:
    """What holds a tensor of complex128, complex32 or opaque bits in safetensors."""
    row = BY_NAME[dtype]
    assert row.stand_in is not None
    return Fact(row.stand_in, (*shape, 2) if row.kind == "c" else shape)


def plain_recipe(dtype: str, shape: Shape) -> tuple[dict[str, Any], str]:
    """The recipe for such a tensor, and the role of its only part."""
    kind, role = ("complex", "pairs") if BY_NAME[dtype].kind == "c" else ("bits", "items")
    return {"encoding": kind, "dtype": dtype, "shape": list(shape)}, role


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _expect(recipe: Recipe, parts: Mapping[str, Fact], **expected: tuple[tuple[str, ...], Shape]) -> None:
    """UnreadableError unless the parts are exactly `expected`: for each role the dtypes it may have and its shape."""
    kind = recipe["encoding"]
    if parts.keys() != expected.keys():
        there, wanted = ", ".join(parts) or "none", ", ".join(expected)
        raise UnreadableError(f"{kind}: its parts are {there:.200}, not {wanted}. It is damaged")
    for role, (dtypes, shape) in expected.items():
        fact = parts[role]
        if fact.dtype not in dtypes:
            raise UnreadableError(f"{kind}: {role} is {fact.dtype}, not {' or '.join(dtypes)}. It is damaged")
        if fact.shape != shape:
            raise UnreadableError(
                f"{kind}: {role} has shape {_shown(fact.shape)}, but {_shown(shape)} is needed. It is damaged"
            )


def _shown(shape: Shape) -> str:
    return f"{list(shape)}"[:200]


def _wrong(recipe: Recipe, what: str) -> UnreadableError:
    return UnreadableError(f"{recipe['encoding']}: {what}. It is damaged")


def _keys(recipe: Recipe, *keys: str) -> None:
    """UnreadableError unless the recipe has exactly these keys beside the three that all have."""
    if recipe.keys() != {"encoding", "dtype", "shape", *keys}:
        raise _wrong(recipe, f"its recipe has {', '.join(map(str, recipe)):.200}")


def _quantized(recipe: Recipe, shape: Shape, parts: Mapping[str, Fact]) -> None:
    dtype, scheme = recipe["dtype"], recipe.get("scheme")
    expected: dict[str, tuple[tuple[str, ...], Shape]]
    if dtype in _INTEGERS:
        expected = {"int_repr": ((_INTEGERS[dtype],), shape)}
    elif dtype in PACKED:
        expected = {"packed": (("uint8",), (packed_bytes(dtype, shape),))}
    else:
        raise _wrong(recipe, f"{dtype} is not quantized")
    if scheme == PER_TENSOR:
        _keys(recipe, "scheme", "scale", "zero_point")
        scale, zero = recipe["scale"], recipe["zero_point"]
        if type(scale) is not float or not math.isfinite(scale):
            raise _wrong(recipe, "its scale is not a finite number")
        if type(zero) is not int or not -(1 << 63) <= zero < 1 << 63:
            raise _wrong(recipe, "its zero point is not a whole number of 64 bits")
    elif scheme == PER_CHANNEL:
        _keys(recipe, "scheme", "axis")
        axis = recipe["axis"]
        if type(axis) is not int or not 0 <= axis < len(shape):
            raise _wrong(recipe, "its axis is not one of its dimensions")
        zeros = parts.get("zero_points", Fact("", ()))
        # Zero points that are no integers make what torch calls per_channel_affine_float_qparams.
        scales = ("float32",) if zeros.dtype == "float32" else ("float32", "float64")
        expected["scales"] = (scales, (shape[axis],))
        expected["zero_points"] = (("int64", "int32", "float32"), (shape[axis],))
    else:
        raise _wrong(recipe, f"its scheme {scheme!r:.60} is not known")
    _expect(recipe, parts, **expected)


def packed_bytes(dtype: str, shape: Shape) -> int:
    """Bytes that torch takes for a quantized tensor of less than 8 bits: as if each row were padded to whole bytes,
    though the elements follow each other without."""
    if not shape:
        return 1
    return numel(shape[:-1]) * -(-shape[-1] // PACKED[dtype])


def _coo(recipe: Recipe, shape: Shape, parts: Mapping[str, Fact]) -> None:
    _keys(recipe, "is_coalesced")
    if recipe["is_coalesced"] not in (True, False, None) or type(recipe["is_coalesced"]) is int:
        raise _wrong(recipe, "is_coalesced is neither true nor false")
    dims, count = _head(recipe, parts, "indices", 2)
    if dims > len(shape):
        raise _wrong(recipe, f"its indices have {dims} dimensions, its shape {len(shape)}")
    values = (count, *shape[dims:])
    _expect(recipe, parts, indices=(("int64",), (dims, count)), values=((recipe["dtype"],), values))


def _head(recipe: Recipe, parts: Mapping[str, Fact], role: str, dimensions: int) -> Shape:
    """The shape of a part on which those of the others depend."""
    shape = parts[role].shape if role in parts else ()
    if len(shape) != dimensions:
        raise _wrong(recipe, f"{role} is not a tensor of {dimensions} dimensions")
    return shape


def _compressed(recipe: Recipe, shape: Shape, parts: Mapping[str, Fact]) -> None:
    _keys(recipe)
    kind = recipe["encoding"]
    compressed, plain = parts.get("compressed_indices"), parts.get("plain_indices")
    values = parts.get("values")
    if compressed is None or plain is None or values is None or not compressed.shape or not plain.shape:
        raise _wrong(recipe, "compressed_indices, plain_indices or values is missing or a scalar")
    blocks = kind in ("sparse_bsr", "sparse_bsc")
    batch = len(compressed.shape) - 1
    if len(shape) < batch + 2 or len(values.shape) < batch + 1 + 2 * blocks:
        raise _wrong(recipe, f"a shape of {len(shape)} dimensions does not go with {batch} of batches")
    block = values.shape[batch + 1 : batch + 3] if blocks else (1, 1)
    sizes = shape[batch : batch + 2]
    if 0 in block or sizes[0] % block[0] or sizes[1] % block[1]:
        raise _wrong(recipe, f"blocks of {_shown(block)} do not fill {_shown(sizes)}")
    rows = sizes[COMPRESSED[kind]] // block[COMPRESSED[kind]]
    lead, count = shape[:batch], plain.shape[-1]
    inner = (*block, *shape[batch + 2 :]) if blocks else shape[batch + 2 :]
    _expect(
        recipe,
        parts,
        compressed_indices=(("int64", "int32"), (*lead, rows + 1)),
        plain_indices=((compressed.dtype,), (*lead, count)),
        values=((recipe["dtype"],), (*lead, count, *inner)),
    )


def _nested(recipe: Recipe, shape: Shape, parts: Mapping[str, Fact]) -> None:
    _keys(recipe)
    (count, dims), (length,) = _head(recipe, parts, "sizes", 2), _head(recipe, parts, "buffer", 1)
    if shape != (count,):
        raise _wrong(recipe, f"it holds {count} tensors, not {_shown(shape)}")
    table = (("int64",), (count, dims))
    buffer = ((recipe["dtype"],), (length,))
    _expect(recipe, parts, buffer=buffer, sizes=table, strides=table, offsets=(("int64",), (count,)))


def _jagged(recipe: Recipe, shape: Shape, parts: Mapping[str, Fact]) -> None:
    _keys(recipe, "ragged_dim", "min_length", "max_length")
    (ends,) = _head(recipe, parts, "offsets", 1)
    values = parts.get("values", Fact("", ())).shape
    if ends < 1 or shape != (ends - 1,):
        raise _wrong(recipe, f"{ends} offsets do not make {_shown(shape)} tensors")
    if type(recipe["ragged_dim"]) is not int or not 1 <= recipe["ragged_dim"] <= len(values):
        raise _wrong(recipe, "its ragged dimension is not one of its values'")
    for key in ("min_length", "max_length"):
        if recipe[key] is not None and not _is_size(recipe[key]):
            raise _wrong(recipe, f"{key} is not a length")
    index = (parts["offsets"].dtype if parts["offsets"].dtype == "int32" else "int64",)
    expected = {"values": ((recipe["dtype"],), values), "offsets": (index, (ends,))}
    if "lengths" in parts:
        expected["lengths"] = (index, (ends - 1,))
    _expect(recipe, parts, **expected)


def _subclass(recipe: Recipe, shape: Shape, parts: Mapping[str, Fact]) -> None:
    _keys(recipe, "class", "strides", "state")
    strides = recipe["strides"]
    if type(recipe["class"]) is not str or type(strides) is not list or len(strides) != len(shape):
        raise _wrong(recipe, "its class or its strides are not those of a tensor")
    if not all(map(_is_size, strides)):
        raise _wrong(recipe, "a stride is not a whole number of 0 or more")
    found: list[str] = []
    for node in _nodes(recipe, recipe["state"]):
        if "tensor" in node:
            found.append(node["tensor"])
        elif "encoded" in node:
            inside = f"{node['encoded']}."
            inner = {role.removeprefix(inside): fact for role, fact in parts.items() if role.startswith(inside)}
            check(node["recipe"], inner)
            found += (inside + role for role in inner)
        if len(found) > len(parts):
            break
    if len(found) != len(parts) or set(found) != parts.keys() or not parts:
        raise _wrong(recipe, "its parts are not those that its state refers to")


_SHAPES: Mapping[str, dict[str, type]] = {
    "tensor": {"tensor": str},
    "encoded": {"encoded": str, "recipe": dict},
    "tuple": {"tuple": list},
    "set": {"set": list},
    "dict": {"dict": list},
    "global": {"global": str},
    "float": {"float": str},
    "member": {"member": str, "of": str},
    "call": {"call": str, "args": list, "state": object},
}
"""What stands for a value that is not None, a bool, a number, a string or a list: an object with these keys."""


def _nodes(recipe: Recipe, state: Any) -> Iterator[dict[str, Any]]:
    """Every such object in the state of a subclass, checked."""
    todo = [(state, 0)]
    while todo:
        value, depth = todo.pop()
        if depth > _DEPTH:
            raise _wrong(recipe, "its state is nested too deeply")
        if type(value) is list:
            todo += ((item, depth + 1) for item in value)
        elif type(value) is dict:
            fields = _SHAPES.get(next(iter(value), ""))
            if fields is None or list(fields) != list(value):
                raise _wrong(recipe, "its state has something that this version does not know")
            if not all(kind is object or type(value[key]) is kind for key, kind in fields.items()):
                raise _wrong(recipe, "its state has something of the wrong kind")
            if "dict" in value and not all(type(pair) is list and len(pair) == 2 for pair in value["dict"]):
                raise _wrong(recipe, "a dict in its state is not made of pairs")
            yield value
            if "recipe" not in value:
                todo += ((item, depth + 1) for item in value.values())
        elif type(value) not in (str, bool, int, float) and value is not None:
            raise _wrong(recipe, "its state has something that JSON has not")


def _alone(recipe: Recipe, shape: Shape, parts: Mapping[str, Fact]) -> None:
    _keys(recipe)
    expected, role = plain_recipe(recipe["dtype"], shape)
    if BY_NAME[recipe["dtype"]].stand_in is None or expected["encoding"] != recipe["encoding"]:
        raise _wrong(recipe, f"{recipe['dtype']} needs no such recipe")
    dtype, size = stand_in(recipe["dtype"], shape)
    _expect(recipe, parts, **{role: ((dtype,), size)})


_RULES: Mapping[str, Callable[[Recipe, Shape, Mapping[str, Fact]], None]] = {
    "quantized": _quantized,
    "sparse_coo": _coo,
    **dict.fromkeys(COMPRESSED, _compressed),
    "nested": _nested,
    "jagged": _jagged,
    "subclass": _subclass,
    "complex": _alone,
    "bits": _alone,
}
