"""The bytes of a tensor, any part of it, into a buffer.

A contiguous tensor is one read. Any other is cut into boxes whose source spans fit a
small scratch buffer; a box is moved by slices of memoryviews, which copy strided
elements in C, along the dimension that leaves the fewest slices. No memory beyond the
scratch is needed, whatever the strides.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from .dtypes import DType
from .tensor import Piece, Storage, TensorRef, numel

SCRATCH = 1 << 20  # Bytes of scratch that `fill` wants.
_SMALL = 1 << 14  # A span of this many bytes is read whole, however little of it is wanted.
_SLICES = 1 << 16  # Slice assignments per box.
_ITEM = {1: "B", 2: "H", 4: "I", 8: "Q"}  # memoryview's formats by bytes; only moved, never read as numbers.
_FLIP_SIGN = bytes(byte ^ 0x80 for byte in range(256))

_Dim = tuple[int, int, int]  # Size, stride in the source, stride in the output, in items.


def fill(tensor: TensorRef, start: int, out: memoryview, scratch: memoryview) -> bool:
    """Put the row-major elements of `tensor` from number `start` on into all of `out` (bytes).

    True when they were copied as they lie in one range of one storage.

    `scratch` has at least `SCRATCH` bytes. UnreadableError when the source is short.
    """
    itemsize = tensor.dtype.itemsize
    if tensor.is_plain:
        piece = tensor.pieces[0]
        storage = piece.storage
        storage.source.readinto(storage.offset + (piece.offset + start) * itemsize, out)
        return True
    stop = start + len(out) // itemsize
    for piece in tensor.pieces:
        low, high = _rank(piece, start), _rank(piece, stop)
        for origin, shape in _boxes(piece.shape, low, high):
            source_at, out_at, dims = piece.offset, piece.at - start, []
            for index, size, stride, at_stride in zip(origin, shape, piece.strides, piece.at_strides, strict=True):
                source_at += index * stride
                out_at += index * at_stride
                if size > 1:
                    dims.append((size, stride, at_stride))
            _move(piece.storage, itemsize, source_at, out_at, dims, out, scratch)
    if tensor.pieces[0].storage.big_endian and tensor.dtype.swap > 1:
        _swap(out, tensor.dtype.swap)
    if tensor.conj and tensor.dtype.kind == "c":
        half = itemsize // 2
        _translate(out, itemsize - 1, 2 * half)
    if tensor.neg:
        _negate(out, tensor.dtype)
    return False


def _rank(piece: Piece, position: int) -> int:
    """How many of the piece's elements go to places of the tensor before `position`.

    `at_strides` never let an inner dimension reach past one step of an outer one, so the
    piece's own order is the order of places, and the last step below is found digit by digit.
    """
    left = position - piece.at
    if left <= 0:
        return 0
    count, inner = 0, numel(piece.shape)
    if inner == 0:
        return 0
    for size, stride in zip(piece.shape, piece.at_strides, strict=True):
        inner //= size
        step = min((left - 1) // stride, size - 1)
        count += step * inner
        left -= step * stride
    return count + 1


def _boxes(shape: tuple[int, ...], low: int, high: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The elements number `low` to `high` of a row-major `shape`, as boxes: (origin, shape) of each."""
    if low >= high:
        return
    total = numel(shape)
    if low == 0 and high == total:
        yield (0,) * len(shape), shape
        return
    inner = total // shape[0]
    (first, head), (last, tail) = divmod(low, inner), divmod(high, inner)
    if first == last:
        for origin, box in _boxes(shape[1:], head, tail):
            yield (first, *origin), (1, *box)
        return
    if head:
        for origin, box in _boxes(shape[1:], head, inner):
            yield (first, *origin), (1, *box)
        first += 1
    if last > first:
        yield (first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:])
    if tail:
        for origin, box in _boxes(shape[1:], 0, tail):
            yield (last, *origin), (1, *box)


def _move(
    storage: Storage, itemsize: int, source_at: int, out_at: int, dims: list[_Dim], out: memoryview, scratch: memoryview
) -> None:
    """Copy one box, split until what it spans in the source fits the scratch and is worth reading."""
    if itemsize == 16:  # No memoryview format is that long: two items side by side.
        dims = [(size, 2 * a, 2 * b) for size, a, b in dims] + [(2, 1, 1)]
        itemsize, source_at, out_at = 8, 2 * source_at, 2 * out_at
    target = out.cast(_ITEM[itemsize])  # type: ignore[call-overload]
    todo = [(source_at, out_at, dims)]
    while todo:
        source_at, out_at, dims = todo.pop()
        span = (1 + sum((size - 1) * stride for size, stride, _ in dims)) * itemsize
        items = 1
        for size, _, _ in dims:
            items *= size
        longest = max((size for size, _, _ in dims), default=1)
        wide = span > SCRATCH or span > max(_SMALL, 4 * items * itemsize)
        if wide or items > _SLICES * longest:
            # Halve what spans the most, or, when only the slices are too many, the longest dimension.
            pick = max(range(len(dims)), key=lambda i: (dims[i][0] - 1) * dims[i][1] if wide else dims[i][0])
            size, stride, at_stride = dims[pick]
            half = size // 2
            first, rest = list(dims), list(dims)
            first[pick], rest[pick] = (half, stride, at_stride), (size - half, stride, at_stride)
            todo.append((source_at + half * stride, out_at + half * at_stride, rest))
            todo.append((source_at, out_at, first))
            continue
        part = scratch[:span]
        storage.source.readinto(storage.offset + source_at * itemsize, part)
        _scatter(part.cast(_ITEM[itemsize]), target, out_at, dims)  # type: ignore[call-overload]


def _scatter(source: memoryview, target: memoryview, out_at: int, dims: list[_Dim]) -> None:
    """Copy a box that lies in memory: `source[...strides]` to `target[out_at + ...strides]`."""
    if not dims:
        target[out_at] = source[0]
        return
    along = max(range(len(dims)), key=lambda i: dims[i][0])
    count, step, at_step = dims[along]
    places = [(0, out_at)]
    for number, (size, stride, at_stride) in enumerate(dims):
        if number != along:
            places = [(a + i * stride, b + i * at_stride) for a, b in places for i in range(size)]
    reach, at_reach = (count - 1) * step + 1, (count - 1) * at_step + 1
    if step == 0:
        for a, b in places:
            repeated = memoryview(bytes(source[a : a + 1]) * count).cast(source.format)  # type: ignore[call-overload]
            target[b : b + at_reach : at_step] = repeated
    else:
        for a, b in places:
            target[b : b + at_reach : at_step] = source[a : a + reach : step]


def _swap(out: memoryview, unit: int) -> None:
    numbers = array(_ITEM[unit], bytes(out))
    numbers.byteswap()
    out[:] = memoryview(numbers).cast("B")


def _translate(out: memoryview, first: int, step: int) -> None:
    """Flip the top bit of every `step`-th byte from `first` on: the signs of little-endian floats."""
    out[first::step] = out[first::step].tobytes().translate(_FLIP_SIGN)


def _negate(out: memoryview, dtype: DType) -> None:
    if dtype.kind in "fc":
        _translate(out, dtype.swap - 1, dtype.swap)
        return
    numbers = array(_ITEM[dtype.itemsize], bytes(out))
    mask = (1 << 8 * dtype.itemsize) - 1
    out[:] = memoryview(array(_ITEM[dtype.itemsize], [-n & mask for n in numbers])).cast("B")


def cast(tensor: TensorRef, start: int, out: memoryview, target: DType, scratch: memoryview) -> None:
    """Like `fill`, with the elements converted to `target` by torch, rounding as torch does.

    ImportError when torch is not installed.
    """
    import torch

    count = len(out) // target.itemsize
    raw: Any = bytearray(count * tensor.dtype.itemsize)
    fill(tensor, start, memoryview(raw), scratch)
    values = torch.frombuffer(raw, dtype=getattr(torch, tensor.dtype.name))
    torch.frombuffer(out, dtype=getattr(torch, target.name)).copy_(values)
