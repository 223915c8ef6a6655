"""The bytes of a tensor, any part of it, into a buffer.

A contiguous tensor is one read. Any other is cut into boxes whose source spans fit a
small scratch buffer; a box is moved by slices of memoryviews, which copy strided
elements in C, along the dimension that leaves the fewest slices. No memory beyond the
scratch is needed, whatever the strides.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

from .dtypes import DType
from .tensor import Piece, Storage, TensorRef, is_contiguous, numel

SCRATCH = 1 << 20  # Bytes of scratch that `fill` wants.
_SMALL = 1 << 14  # A span of this many bytes is read whole, however little of it is wanted.
_FEW = 16  # Bytes; reads of less than that are no way to move a large tensor.
_SLICES = 1 << 16  # Slice assignments per box.
_ROW = 32  # Elements that are moved as one from which on that is faster than fewer, longer, scattered slices.
_ITEM = {1: "B", 2: "H", 4: "I", 8: "Q"}  # memoryview's formats by bytes; only moved, never read as numbers.
_CAST_PLAIN, _CAST_GATHERED = 1 << 20, 8 << 20  # Bytes that are cast at once; gathering wants long runs.
_FLIP_SIGN = bytes(byte ^ 0x80 for byte in range(256))

_Dim = tuple[int, int, int]  # Size, stride in the source, stride in the output, in items.

Seen = Callable[[Storage, int, memoryview], None]
"""Called with a range of a storage that was read, all of it to be used: the storage, the first byte, what was there."""


def fill(tensor: TensorRef, start: int, out: memoryview, scratch: memoryview, seen: Seen | None = None) -> bool:
    """Put the row-major elements of `tensor` from number `start` on into all of `out` (bytes).

    `seen` is told of what lies together in a storage in the tensor's order. True when the ranges that
    it was told of, one after another, are `out`: nothing was moved about or changed.

    `scratch` has at least `SCRATCH` bytes. UnreadableError when the source is short.
    """
    itemsize = tensor.dtype.itemsize
    if tensor.is_plain:
        piece = tensor.pieces[0]
        storage = piece.storage
        storage.source.readinto(storage.offset + (piece.offset + start) * itemsize, out)
        if seen is not None:
            seen(storage, (piece.offset + start) * itemsize, out)
        return True
    stop = start + len(out) // itemsize
    reached = start  # Where it ends what is as it was seen; -1 when something is not.
    for piece in tensor.pieces:
        if piece.at >= stop:
            continue
        low, high = _rank(piece, start), _rank(piece, stop)
        told = seen if low < high and is_contiguous(piece.shape, piece.strides) else None
        for origin, shape in _boxes(piece.shape, low, high):
            source_at, out_at = piece.offset, piece.at - start
            dims: list[_Dim] = []
            for index, size, stride, at_stride in zip(origin, shape, piece.strides, piece.at_strides, strict=True):
                source_at += index * stride
                out_at += index * at_stride
                if size == 1:
                    continue
                if dims and dims[-1][1:] == (size * stride, size * at_stride):
                    dims[-1] = (dims[-1][0] * size, stride, at_stride)  # Two dimensions that step as one.
                else:
                    dims.append((size, stride, at_stride))
            if not dims or (len(dims) == 1 and dims[0][1:] == (1, 1)):  # A row that goes where it belongs as it is.
                count = dims[0][0] if dims else 1
                row = out[out_at * itemsize : (out_at + count) * itemsize]
                piece.storage.source.readinto(piece.storage.offset + source_at * itemsize, row)
                if told is not None:
                    told(piece.storage, source_at * itemsize, row)
                reached = reached + count if told is not None and start + out_at == reached else -1
                continue
            _move(piece.storage, itemsize, source_at, out_at, dims, out, scratch, told)
            reached = -1
    if tensor.pieces[0].storage.big_endian and tensor.dtype.swap > 1:
        _swap(out, tensor.dtype.swap)
        reached = -1
    if tensor.conj and tensor.dtype.kind == "c":
        half = itemsize // 2
        _translate(out, itemsize - 1, 2 * half)
        reached = -1
    if tensor.neg:
        _translate(out, tensor.dtype.swap - 1, tensor.dtype.swap)
        reached = -1
    return reached == stop


def in_order(tensor: TensorRef) -> bool:
    """Whether each of its pieces lies in its storage in the tensor's order, so that parts of any size are read well."""
    return all(is_contiguous(piece.shape, piece.strides) for piece in tensor.pieces)


def reads(tensor: TensorRef) -> int:
    """About how many single reads of a few bytes gathering a tensor takes; 0 when they are longer, or few."""
    if tensor.is_plain or max(piece.storage.nbytes for piece in tensor.pieces) <= SCRATCH:
        return 0
    count, itemsize = 0, tensor.dtype.itemsize
    for piece in tensor.pieces:
        dims = [(stride, size) for size, stride in zip(piece.shape, piece.strides, strict=True) if size > 1 and stride]
        stride, size = min(dims, default=(1, 1))
        together = min(size, max(1, _SMALL // (stride * itemsize)))
        if together * itemsize < _FEW:
            count += numel(piece.shape) // together
    return count


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
    storage: Storage,
    itemsize: int,
    source_at: int,
    out_at: int,
    dims: list[_Dim],
    out: memoryview,
    scratch: memoryview,
    seen: Seen | None,
) -> None:
    """Copy one box from a storage to its places in `out`. With `seen`, what it spans in the source is all its own."""
    if itemsize == 16:  # No memoryview format is that long: two items side by side.
        dims = [(size, 2 * a, 2 * b) for size, a, b in dims] + [(2, 1, 1)]
        itemsize, source_at, out_at = 8, 2 * source_at, 2 * out_at
    target = out.cast(_ITEM[itemsize])  # type: ignore[call-overload]
    _Move(storage, itemsize, target, scratch, seen).box(source_at, out_at, dims)


class _Move:
    """From a storage to strided places of `target`, through a scratch that holds one span at a time."""

    def __init__(
        self, storage: Storage, itemsize: int, target: memoryview, scratch: memoryview, seen: Seen | None
    ) -> None:
        self.storage, self.itemsize, self.target, self.seen = storage, itemsize, target, seen
        self.scratch = scratch
        self.items = scratch.cast(_ITEM[itemsize])  # type: ignore[call-overload]

    def box(self, source_at: int, out_at: int, dims: list[_Dim]) -> None:
        """Copy a box: in one read if what it spans is small or dense enough, else slab by slab of the dimension
        that reaches farthest, as many slabs to a read as are worth it."""
        if self.fits(dims):
            self.read(source_at, _span(dims))
            self.scatter(out_at, dims, _places(dims))
            return
        pick = max(range(len(dims)), key=lambda i: (dims[i][0] - 1) * dims[i][1])
        size, stride, at_stride = dims[pick]
        inner = dims[:pick] + dims[pick + 1 :]
        if not self.fits(inner):
            for i in range(size):
                self.box(source_at + i * stride, out_at + i * at_stride, inner)
            return
        group = 1
        while group < size and self.fits([*inner, (2 * group, stride, at_stride)]):
            group *= 2
        for first in range(0, size, group):
            count = min(group, size - first)
            if first == 0 or count != group:
                slab = inner if count == 1 else [*inner, (count, stride, at_stride)]
                span, places = _span(slab), _places(slab)
            self.read(source_at + first * stride, span)
            self.scatter(out_at + first * at_stride, slab, places)

    def fits(self, dims: list[_Dim]) -> bool:
        """Whether a box is read at once: it spans little, or little more than is wanted, and takes few slices."""
        nbytes, wanted, longest = _span(dims) * self.itemsize, self.itemsize, 1
        for size, _, _ in dims:
            wanted *= size
            longest = max(longest, size)
        return nbytes <= min(SCRATCH, max(_SMALL, 4 * wanted)) and wanted <= _SLICES * self.itemsize * longest

    def read(self, source_at: int, items: int) -> None:
        begin, data = source_at * self.itemsize, self.scratch[: items * self.itemsize]
        self.storage.source.readinto(self.storage.offset + begin, data)
        if self.seen is not None:
            self.seen(self.storage, begin, data)

    def scatter(self, out_at: int, dims: list[_Dim], places: list[tuple[int, int]]) -> None:
        """Copy from the scratch to the target along one dimension, from and to each of `places`."""
        source, target = self.items, self.target
        if not dims:
            target[out_at] = source[0]
            return
        count, step, at_step = _along(dims)
        reach, at_reach = (count - 1) * step + 1, (count - 1) * at_step + 1
        if step == 0:
            for a, b in places:
                one = bytes(source[a : a + 1])
                repeated = memoryview(one * count).cast(_ITEM[self.itemsize])  # type: ignore[call-overload]
                target[out_at + b : out_at + b + at_reach : at_step] = repeated
            return
        if step == at_step == 1:
            target = target[out_at:]
            for a, b in places:
                target[b : b + count] = source[a : a + count]
            return
        for a, b in places:
            target[out_at + b : out_at + b + at_reach : at_step] = source[a : a + reach : step]


def _span(dims: list[_Dim]) -> int:
    """Items from the first to the last that a box touches in the source."""
    return 1 + sum([(size - 1) * stride for size, stride, _ in dims])


def _along(dims: list[_Dim]) -> _Dim:
    """The dimension along which a box is moved by slices: rows that stay together, else the longest."""
    return next((dim for dim in dims if dim[1] == dim[2] == 1 and dim[0] >= _ROW), None) or max(dims)


def _places(dims: list[_Dim]) -> list[tuple[int, int]]:
    """Where the slices of a box begin: in the source, and in the output."""
    places = [(0, 0)]
    if dims:
        rest = list(dims)
        rest.remove(_along(dims))
        if len(rest) == 1 and rest[0][1] and rest[0][2]:  # Parts of rows, of which there are many.
            size, stride, at_stride = rest[0]
            return list(zip(range(0, size * stride, stride), range(0, size * at_stride, at_stride), strict=True))
        for size, stride, at_stride in rest:
            places = [(a + i * stride, b + i * at_stride) for a, b in places for i in range(size)]
    return places


def _swap(out: memoryview, unit: int) -> None:
    numbers = array(_ITEM[unit], bytes(out))
    numbers.byteswap()
    out[:] = memoryview(numbers).cast("B")


def _translate(out: memoryview, first: int, step: int) -> None:
    """Flip the top bit of every `step`-th byte from `first` on: the signs of little-endian floats."""
    out[first::step] = out[first::step].tobytes().translate(_FLIP_SIGN)


def cast(tensor: TensorRef, start: int, out: memoryview, target: DType, scratch: memoryview) -> None:
    """Like `fill`, with the elements converted to `target` by torch, rounding as torch does.

    ImportError when torch is not installed.
    """
    import torch

    itemsize, count = tensor.dtype.itemsize, len(out) // target.itemsize
    block = min(count, (_CAST_PLAIN if tensor.is_plain else _CAST_GATHERED) // itemsize)
    raw: Any = bytearray(block * itemsize)
    values = torch.frombuffer(raw, dtype=getattr(torch, tensor.dtype.name))
    result = torch.frombuffer(out, dtype=getattr(torch, target.name))
    for done in range(0, count, block):
        size = min(block, count - done)
        fill(tensor, start + done, memoryview(raw)[: size * itemsize], scratch)
        result[done : done + size].copy_(values[:size])
