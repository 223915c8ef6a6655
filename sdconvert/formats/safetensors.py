"""safetensors: an 8-byte length, a JSON header, the tensors' bytes.

Held to all that the reference reader checks (``safetensors/src/tensor.rs`` and serde: the ranges
tile the data without hole, overlap or tail), and to more: no name twice, no more dimensions than
torch has, fields by name and not by position, which it lets pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf
from typing import Any, NamedTuple

from ..checkpoint import Checkpoint, Dict
from ..dtypes import BY_CODE, DType
from ..errors import UnreadableError
from ..inflated import credit
from ..limits import Limits
from ..recipes import KEY, restored
from ..source import Source
from ..source import read as read_bytes
from ..strict_json import members
from ..tensor import Piece, Shape, Storage, TensorRef, check_numbers, contiguous_strides, numel
from .protocol import Nested

NAME = "safetensors"
_INT = frozenset({int})
_NUMBERS = "a size or an offset is not a whole number of 0 or more"
_DEPTH = 126  # serde_json stops at 128; a header is an object of objects.


def sniff(head: bytes, source: Source) -> bool:
    return (
        len(head) > 8
        and head[8:].lstrip(b" \t\n\r")[:1] in (b"{", b"")
        and int.from_bytes(head[:8], "little") <= max(source.nbytes, 1 << 40)
    )


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    size = _header_bytes(source, limits)
    start = 8 + size
    metadata: dict[str, str] | None = None
    tensors: dict[str, TensorRef] = {}
    ranges: list[tuple[int, int, str]] = []
    layouts: dict[tuple[object, ...], _Layout] = {}
    for name, info in members(source, 8, size, "header", limits.json_bytes // 3):
        if name in tensors or (name == "__metadata__" and metadata is not None):
            raise UnreadableError("header: a name is there twice. Readers differ in which one they take")
        if name == "__metadata__":
            metadata = _metadata(info)
            continue
        _check_text((name,))
        begin, end, tensors[name] = _tensor(source, start, name, info, layouts)
        ranges.append((begin, end, name))
        if len(tensors) > limits.tensors:
            raise UnreadableError(f"header: it has more than {limits.tensors} tensors (Limits.tensors)")
    metadata = metadata or {}
    expected = 0
    for begin, end, name in sorted(ranges):
        if begin != expected:
            raise UnreadableError(f"header: {name} starts at {begin}, not at {expected} where the one before ends")
        expected = end
    if start + expected != source.nbytes:
        raise UnreadableError(
            f"its tensors end at byte {start + expected}, the file at {source.nbytes}. It was cut short, or extended"
        )
    recipes = metadata.pop(KEY, None)
    # An alias that the file declares is the kept tensor under another name.
    aliases = {alias: kept for alias, kept in metadata.items() if kept in tensors and alias not in tensors}
    aliases.pop("format", None)
    tensors |= {alias: tensors[kept] for alias, kept in aliases.items()}
    whole = tensors if recipes is None else restored(tensors, recipes, limits)
    root = Dict(list(whole.items()), attributes=Dict([("_metadata", Dict())]))  # As state_dict() marks its own.
    rest = {key: value for key, value in metadata.items() if key not in aliases and key != "format"}
    return Checkpoint(NAME, root, metadata=rest)


def _header_bytes(source: Source, limits: Limits) -> int:
    size = int.from_bytes(read_bytes(source, 0, 8), "little")
    if limits.header_bytes < size <= source.nbytes - 8:
        raise UnreadableError(f"its header has {size} bytes, more than {limits.header_bytes} (Limits.header_bytes)")
    if credit(source, limits) < size <= source.nbytes - 8:
        raise UnreadableError(f"its header of {size} bytes was packed to next to nothing (Limits.inflate_slack)")
    if size > source.nbytes - 8:
        raise UnreadableError(f"its header claims {size} bytes, the file has {source.nbytes}. It was cut short")
    return size


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if type(value) is not dict or not all(type(one) is str for one in value.values()):
        raise UnreadableError("header: __metadata__ does not map names to strings. The file is damaged")
    _check_text((*value, *value.values()))
    return value


def _check_text(texts: Iterable[str]) -> None:
    """UnreadableError unless all can be written as UTF-8."""
    try:
        for text in texts:
            if not text.isascii():
                text.encode()
    except UnicodeEncodeError:
        raise UnreadableError("header: a name has half of a surrogate pair, which is no text. It is damaged") from None


class _Layout(NamedTuple):
    """What is the same for all tensors of one dtype and shape, and is checked once for all of them."""

    dtype: DType
    shape: Shape
    strides: tuple[int, ...]
    nbytes: int


def _tensor(
    source: Source, start: int, name: str, info: Any, layouts: dict[tuple[object, ...], _Layout]
) -> tuple[int, int, TensorRef]:
    if type(info) is not dict:
        raise _wrong(name, "it is not described by an object")
    code, sizes, offsets = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if type(code) is not str or type(sizes) is not list or type(offsets) is not list or len(offsets) != 2:
        raise _wrong(name, "dtype, shape or data_offsets is missing or of the wrong kind")
    begin, end = offsets
    # Before anything is looked up: True is equal to 1, and no size.
    if not _INT.issuperset(map(type, (*sizes, begin, end))) or begin < 0 or end >> 63:
        raise _wrong(name, _NUMBERS)
    if len(info) > 3:
        _check_unknown(info)
    key = (code, *sizes)
    layout = layouts.get(key)
    if layout is None:
        layout = layouts[key] = _layout(name, code, sizes)
    dtype, shape, strides, nbytes = layout
    if end - begin != nbytes:
        raise _wrong(name, f"its {nbytes} bytes do not fill {begin} to {end}")
    storage = Storage(source, start + begin, nbytes, name)
    return begin, end, TensorRef(dtype, shape, (Piece(storage, 0, strides, shape, 0, strides),))


def _layout(name: str, code: str, sizes: list[int]) -> _Layout:
    if min(sizes, default=0) < 0 or max(sizes, default=0) >> 63:
        raise _wrong(name, _NUMBERS)
    dtype = BY_CODE.get(code)
    if dtype is None:
        raise _wrong(name, f"dtype {code} is not one that torch has")
    if dtype.packed > 1:  # F4: two to a byte; torch's dtype counts the pairs.
        if not sizes or sizes[-1] % dtype.packed:
            raise _wrong(name, f"its elements of {code} do not fill whole bytes")
        sizes = [*sizes[:-1], sizes[-1] // dtype.packed]
    shape = tuple(sizes)
    check_numbers(shape, len(shape))
    strides = contiguous_strides(shape)
    if 0 in shape:  # The reference multiplies in this order, in 64 bits; torch wants strides that fit.
        if strides[0] >> 63:
            raise _wrong(name, "its dimensions multiply to more than 64 bits hold")
        whole = 1
        for size in shape:
            whole *= size
            if whole >> 64:
                raise _wrong(name, "its dimensions multiply to more than 64 bits hold")
    return _Layout(dtype, shape, strides, numel(shape) * dtype.itemsize)


def _wrong(name: str, what: str) -> UnreadableError:
    return UnreadableError(f"header: {name}: {what}. The file is damaged")


def _check_unknown(info: dict[str, Any]) -> None:
    """UnreadableError if a field that nobody knows holds what the reference's parser of JSON stops at."""
    level: list[Any] = [info]
    for _ in range(_DEPTH):
        texts = [value for value in level if type(value) is str]
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                texts += value
                below += value.values()
            elif type(value) is list:
                below += value
            elif (type(value) is float and isinf(value)) or (type(value) is int and abs(value) >> 1023):
                raise UnreadableError("header: it has a number that is too large for JSON's readers. It is damaged")
        _check_text(texts)
        level = below
        if not level:
            return
    raise UnreadableError(f"header: it nests more than {_DEPTH} levels. The file is damaged")
