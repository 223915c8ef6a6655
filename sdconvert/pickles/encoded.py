"""Quantized, sparse and nested tensors inside a pickle: a recipe and plain parts.

The argument shapes are those of ``Tensor._reduce_ex_internal`` in ``torch/_tensor.py`` and of the
functions of ``torch/_utils.py`` that it names, older forms included.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from ..checkpoint import EncodedTensor, LostTensor, TensorRef, TypedStorage, Value
from ..dtypes import BY_NAME
from ..encodings import COMPRESSED, PACKED, PER_CHANNEL, PER_TENSOR, encoded, packed_bytes
from ..errors import UnreadableError
from ..source import MemorySource
from ..tensor import Storage, check_numbers, contiguous_strides, is_contiguous, strided
from .nodes import Call, Global, Node
from .resolver import Rebuild, Resolver, arguments, dims, untouched, view

_PLAIN = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
# ``c10::Layout``
_LAYOUTS = {1: "sparse_coo", 2: "sparse_csr", 4: "sparse_csc", 5: "sparse_bsr", 6: "sparse_bsc"}
_LISTED = 1 << 20  # Numbers of a list that stands where a tensor would.


def constant(dtype: str, numbers: list[Any], shape: tuple[int, ...]) -> TensorRef:
    """A small tensor of Python numbers, in memory. UnreadableError when one of them is no such number."""
    letter = {"float64": "d", "float32": "f", "int64": "q"}[dtype]
    kinds = (int,) if letter == "q" else (int, float)
    if len(numbers) > _LISTED or any(type(number) not in kinds for number in numbers):
        raise UnreadableError("a list of numbers is not one. The file is damaged")
    try:
        data = struct.pack(f"<{len(numbers)}{letter}", *numbers)
    except (struct.error, OverflowError):
        raise UnreadableError(f"a number does not fit {dtype}. The file is damaged") from None
    storage = Storage(MemorySource(data), 0, len(data), "inside the pickle")
    return strided(BY_NAME[dtype], shape, storage, 0, contiguous_strides(shape))


def whole(recipe: dict[str, Any], parts: Mapping[str, Value]) -> Value:
    """The encoded tensor; what is wrong with the first part that is lost, when one is."""
    for role, part in parts.items():
        if type(part) is LostTensor:
            return LostTensor(f"{recipe['encoding']}, and its {role} {part.why}", part.empty)
        if type(part) is EncodedTensor:
            return LostTensor(f"{recipe['encoding']}, and its {role} {part.recipe['encoding']}")
    return encoded(recipe, parts)


def _name(node: Node) -> str:
    return node.name if type(node) is Global and node.module == "torch" else ""


def _qtensor(r: Resolver, call: Call) -> Value:
    """(storage, offset, size, stride, (scheme, ...), requires_grad, backward_hooks)"""
    untouched(call)
    storage, offset, size, stride, quantizer = arguments(call, 5, 7)[:5]
    typed = r.storage(storage)
    if typed.dtype is None or typed.dtype.kind != "q":
        raise UnreadableError("a quantized tensor has a storage that is not quantized. The file is damaged")
    shape = dims(size)
    check_numbers(shape, len(shape))
    recipe: dict[str, Any] = {"encoding": "quantized", "dtype": typed.dtype.name, "shape": list(shape)}
    parts: dict[str, Value] = {}
    if typed.dtype.name in PACKED:
        packed = _packed(typed, typed.dtype.name, offset, shape, dims(stride))
        if packed is None:
            return LostTensor(f"quantized ({typed.dtype.name}), a view whose elements do not begin at bytes")
        parts["packed"] = packed
    else:
        plain = BY_NAME[_PLAIN[typed.dtype.name]]
        parts["int_repr"] = view(typed._replace(dtype=plain), plain, offset, size, stride)
    if type(quantizer) is not tuple or not quantizer:
        raise UnreadableError("a quantized tensor does not say how. The file is damaged")
    scheme, *numbers = quantizer
    if _name(scheme) == PER_TENSOR and len(numbers) == 2:
        recipe |= {"scheme": PER_TENSOR, "scale": numbers[0], "zero_point": numbers[1]}
    elif _name(scheme) in (PER_CHANNEL, "per_channel_affine_float_qparams") and len(numbers) == 3:
        integral = _name(scheme) == PER_CHANNEL
        parts["scales"] = _numbers(r, numbers[0], "float64" if integral else "float32")
        parts["zero_points"] = _numbers(r, numbers[1], "int64" if integral else "float32")
        recipe |= {"scheme": PER_CHANNEL, "axis": numbers[2]}
    else:
        raise UnreadableError("a quantized tensor has a scheme that this reader does not know")
    return whole(recipe, parts)


def _packed(typed: TypedStorage, dtype: str, offset: Node, shape: tuple[int, ...], stride: Node) -> TensorRef | None:
    """The bytes of a tensor with several elements to a byte; None when it is not a whole one."""
    check_numbers((*shape, *stride), len(shape))
    if offset != 0 or len(stride) != len(shape) or not is_contiguous(shape, stride):
        return None
    count = packed_bytes(dtype, shape)
    return view(typed._replace(dtype=BY_NAME["uint8"]), BY_NAME["uint8"], 0, (count,), (1,))


def _numbers(r: Resolver, node: Node, dtype: str) -> Value:
    """A tensor, or a list of numbers as torch took before it."""
    return constant(dtype, node, (len(node),)) if type(node) is list else r.tensor(node)


def _sparse(r: Resolver, call: Call) -> Value:
    """(layout, (indices, values, size[, is_coalesced])) or (layout, (compressed, plain, values, size))"""
    untouched(call)
    layout, data, *rest = arguments(call, 2, 7)
    if type(layout) is int:  # libtorch: (layout, size, requires_grad, indices..., values, hooks).
        layout = Global("torch", _LAYOUTS.get(layout, "unknown"))
        data, rest = (*rest[1 : 4 - (layout.name == "sparse_coo")], data), []
    kind = _layout(layout)
    if type(data) is not tuple or not 3 <= len(data) <= 4 or rest:
        raise UnreadableError("a sparse tensor is not made of what it should be. The file is damaged")
    roles: tuple[str, ...]
    coalesced: Node = None
    if kind == "sparse_coo":
        roles, coalesced = ("indices", "values"), data[3] if len(data) == 4 else None
    elif kind in COMPRESSED and len(data) == 4:
        roles = ("compressed_indices", "plain_indices", "values")
    else:
        raise UnreadableError(f"a sparse tensor has the layout {kind[:60]!r}, which this reader does not know")
    parts = {role: r.tensor(part) for role, part in zip(roles, data, strict=False)}
    values = parts["values"]
    if type(values) is not TensorRef:
        return whole({"encoding": kind}, parts)
    recipe: dict[str, Any] = {
        "encoding": kind,
        "dtype": values.dtype.name,
        "shape": list(dims(data[len(roles)])),
    }
    if kind == "sparse_coo":
        recipe["is_coalesced"] = coalesced
    return whole(recipe, parts)


def _layout(node: Node) -> str:
    """The name of a ``torch.layout``: by itself, or as an argument of what looks it up."""
    if type(node) is Call and type(node.func) is Global and node.func.key == "torch.serialization._get_layout":
        text = node.args[0] if len(node.args) == 1 else None
        return text.removeprefix("torch.") if type(text) is str else ""
    return _name(node)


def _nested(r: Resolver, call: Call) -> Value:
    """(buffer, sizes, strides, offsets)"""
    untouched(call)
    roles = ("buffer", "sizes", "strides", "offsets")
    args = arguments(call, 4, 4)
    parts = {
        role: _numbers(r, node, "int64") if role == "offsets" else r.tensor(node)
        for role, node in zip(roles, args, strict=True)
    }
    buffer, sizes = parts["buffer"], parts["sizes"]
    if type(buffer) is not TensorRef or type(sizes) is not TensorRef:
        return whole({"encoding": "nested"}, parts)
    return whole({"encoding": "nested", "dtype": buffer.dtype.name, "shape": list(sizes.shape[:1])}, parts)


def _jagged(r: Resolver, call: Call) -> Value:
    """({values, offsets, lengths, _ragged_idx, _metadata_cache, ...}): the layout of nested tensors of today."""
    untouched(call)
    (fields,) = arguments(call, 1, 1)
    given = fields_of(fields)
    cache = fields_of(given.get("_metadata_cache"))
    parts = {role: r.tensor(given[role]) for role in ("values", "offsets", "lengths") if given.get(role) is not None}
    values, offsets = parts.get("values"), parts.get("offsets")
    if type(values) is not TensorRef or type(offsets) is not TensorRef:
        return whole({"encoding": "jagged"}, parts)
    recipe: dict[str, Any] = {
        "encoding": "jagged",
        "dtype": values.dtype.name,
        "shape": [max(size - 1, 0) for size in offsets.shape[:1]],
        "ragged_dim": given.get("_ragged_idx", 1),
    }
    # torch keeps the shortest and the longest length as the first sizes of tensors without elements.
    for key, name in (("min_length", "min_seqlen"), ("max_length", "max_seqlen")):
        kept = r.tensor(cache[name]) if cache.get(name) is not None else None
        recipe[key] = kept.shape[0] if type(kept) is TensorRef and kept.shape else None
    return whole(recipe, parts)


def fields_of(node: Node) -> Mapping[str, Node]:
    """The items of a dict whose keys are strings; none for what is not one."""
    pairs = getattr(node, "pairs", None) or []
    return {key: value for key, value in pairs if type(key) is str}


_U = "torch._utils."
ENCODED: Mapping[str, Rebuild] = {
    _U + "_rebuild_qtensor": _qtensor,
    _U + "_rebuild_sparse_tensor": _sparse,
    _U + "_rebuild_sparse_csr_tensor": _sparse,
    _U + "_rebuild_nested_tensor": _nested,
    "torch.nested._internal.nested_tensor._rebuild_njt": _jagged,
}
