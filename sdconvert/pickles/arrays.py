"""numpy's arrays, scalars and dtypes inside a pickle.

The shapes are those of ``numpy/_core/src/multiarray/methods.c`` (``array_reduce``,
``array_setstate``) and ``descriptor.c`` (``arraydescr_reduce``). Only plain numbers become
tensors; strings, objects, dates and records stay objects.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ..checkpoint import Object, Value
from ..dtypes import BY_NUMPY, DType
from ..errors import UnreadableError
from ..tensor import check_numbers, contiguous_strides, numel, strided
from .nodes import Call, Global, Node
from .resolver import Rebuild, Resolver, arguments, dims

_SCALARS = {"f": "efd", "i": "bhiq", "u": "BHIQ", "b": "?"}  # struct's letters by kind and size.


def _dtype(node: Node) -> tuple[DType, bool] | None:
    """The element type and whether it is big-endian; None for what is not a plain number."""
    if type(node) is not Call or type(node.func) is not Global or node.func.key != "numpy.dtype" or not node.args:
        return None
    name = node.args[0]
    if type(name) is not str:
        return None
    order = name[:1] if name[:1] in ("<", ">", "=", "|") else ""
    dtype = BY_NUMPY.get(name.removeprefix(order))
    if node.states:  # (version, byte order, base of a sub-array, names and fields of a record, ...)
        state = node.states[0]
        if len(node.states) > 1 or type(state) is not tuple or len(state) < 5 or state[2:5] != (None, None, None):
            return None
        order = state[1]
    return None if dtype is None else (dtype, order == ">")


def _array(r: Resolver, shape: Node, dtype: Node, fortran: Node, data: Node) -> Value:
    known = _dtype(dtype)
    if known is None or type(data) is list:
        return Object("numpy.ndarray")
    if fortran not in (True, False):
        raise UnreadableError("an array says neither that it is in Fortran's order nor that it is not. It is damaged")
    element, big_endian = known
    size = dims(shape)
    check_numbers(size, len(size))
    inside = r.whole(data, big_endian=big_endian)
    if inside.nbytes != numel(size) * element.itemsize:
        raise UnreadableError(
            f"an array needs {numel(size) * element.itemsize} bytes and has {inside.nbytes}. The file is damaged"
        )
    strides = contiguous_strides(size[::-1])[::-1] if fortran else contiguous_strides(size)
    return strided(element, size, inside, 0, strides, array=True)


def _reconstruct(r: Resolver, call: Call) -> Value:
    """(ndarray, (0,), b'b') and the state (version, shape, dtype, is Fortran, data)."""
    state = call.states[-1] if call.states else None
    if type(state) is not tuple or len(state) != 5:
        return Object("numpy.ndarray")
    return _array(r, *state[1:])


def _from_buffer(r: Resolver, call: Call) -> Value:
    """(data, dtype, shape, order): what protocol 5 writes for a contiguous array."""
    data, dtype, shape, order = arguments(call, 4, 4)
    return _array(r, shape, dtype, order == "F", data)


def _scalar(r: Resolver, call: Call) -> Value:
    """(dtype, bytes): one number, as Python's own."""
    dtype, *data = arguments(call, 1, 2)
    known = _dtype(dtype)
    if known is None or not data or known[0].kind not in _SCALARS:
        return Object("numpy.generic")
    element, big_endian = known
    raw = r.data(data[0])
    letters = _SCALARS[element.kind]
    letter = next((c for c in letters if struct.calcsize("=" + c) == element.itemsize), None)
    if letter is None or len(raw) != element.itemsize:
        raise UnreadableError("a numpy number has the wrong length. The file is damaged")
    return struct.unpack((">" if big_endian else "<") + letter, raw)[0]


ARRAYS: Mapping[str, Rebuild] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray.scalar": _scalar,
}
