"""A tensor that was saved in parts, put together: boxes of it, each a tensor of its own somewhere.

Nothing is copied: the parts become the `Piece`s of one `TensorRef`. They must fill the tensor
without hole and without overlap, which is proved and not assumed: a grid, as sharding over a
mesh makes one, by its cuts; anything else box against box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UnreadableError, UnsupportedError
from ..tensor import Piece, Shape, TensorRef, check_numbers, contiguous_strides, numel, strided

_COMPARED = 20_000_000  # Pairs of boxes: seconds of work. A grid needs none.


class Box(NamedTuple):
    """A part of a tensor: the index at which it begins, and what fills it, whose shape is the box's."""

    offsets: Shape
    tensor: TensorRef


def assemble(shape: Shape, boxes: Sequence[Box]) -> TensorRef:
    """The tensor of `shape` that `boxes` fill, at least one of them, all of one dtype.

    UnreadableError when one reaches outside, two meet, or a hole is left; UnsupportedError when they
    differ in conjugation, sign or byte order.
    """
    check_numbers(shape, len(shape))
    whole = numel(shape)
    if max((whole, *contiguous_strides(shape)[:1])) >> 63:
        raise UnreadableError("its dimensions multiply to more than 64 bits hold. The file is damaged")
    first = boxes[0].tensor
    filled = 0
    for offsets, part in boxes:
        check_numbers(offsets, len(offsets))
        if len(offsets) != len(shape) or len(part.shape) != len(shape):
            raise UnreadableError(f"a part of it has {len(part.shape)} dimensions, it has {len(shape)}")
        for at, size, most in zip(offsets, part.shape, shape, strict=True):
            if at + size > most:
                raise UnreadableError(
                    f"its part at {list(offsets)} of shape {list(part.shape)} reaches outside of {list(shape)}. "
                    "The checkpoint is damaged"
                )
        if part.dtype != first.dtype:
            raise UnreadableError(
                f"its parts have different dtypes, {first.dtype.name} and {part.dtype.name}. The checkpoint is damaged"
            )
        filled += part.numel
    if len(boxes) == 1 and first.shape == shape:
        return first
    if not whole:
        return strided(first.dtype, shape, first.pieces[0].storage, 0, contiguous_strides(shape))
    full = [box for box in boxes if box.tensor.numel]  # Ranks that have none of it may say so with an empty part.
    if filled < whole:
        raise UnreadableError(
            f"its parts fill {filled} of {whole} elements: some are missing. Copy or download the checkpoint again"
        )
    if filled > whole or not (_is_grid(shape, full) or _are_disjoint(full)):
        raise UnreadableError("its parts overlap. The checkpoint is damaged, or several were mixed in one directory")
    return _joined(shape, full)


def _joined(shape: Shape, boxes: Sequence[Box]) -> TensorRef:
    first, dense = boxes[0].tensor, contiguous_strides(shape)
    pieces: list[Piece] = []
    for offsets, part in boxes:
        if (part.conj, part.neg) != (first.conj, first.neg):
            raise UnsupportedError("its parts differ in what is conjugated or negated")
        at = sum([index * stride for index, stride in zip(offsets, dense, strict=True)])
        for piece in part.pieces:
            if piece.storage.big_endian != first.pieces[0].storage.big_endian:
                raise UnsupportedError("its parts differ in byte order")
            if len(part.pieces) > 1:
                raise UnsupportedError("its parts are in parts themselves")
            # What one element takes in a dimension of size 1 does not matter, so all strides are the whole's.
            pieces.append(Piece(piece.storage, piece.offset, piece.strides, part.shape, at, dense))
    pieces.sort(key=lambda piece: piece.at)
    return TensorRef(first.dtype, shape, tuple(pieces), first.conj, first.neg)


def _is_grid(shape: Shape, boxes: Sequence[Box]) -> bool:
    """Whether the boxes are all the cells that cuts across each dimension make, each once."""
    cells = 1
    for d, size in enumerate(shape):
        at = 0
        spans = sorted({(box.offsets[d], box.offsets[d] + box.tensor.shape[d]) for box in boxes})
        for begin, end in spans:
            if begin != at:
                return False
            at = end
        if at != size:
            return False
        cells *= len(spans)
    return cells == len(boxes) == len({str(box.offsets) for box in boxes})


def _are_disjoint(boxes: Sequence[Box]) -> bool:
    """Whether no two boxes meet: each is compared with those that it could meet in the most varied dimension."""
    dimensions = range(len(boxes[0].offsets))
    d = max(dimensions, key=lambda d: len({box.offsets[d] for box in boxes}), default=None)
    if d is None:
        return len(boxes) == 1
    left = _COMPARED
    active: list[Box] = []
    for box in sorted(boxes, key=lambda box: box.offsets[d]):
        active = [other for other in active if other.offsets[d] + other.tensor.shape[d] > box.offsets[d]]
        left -= len(active)
        if left < 0:
            raise UnsupportedError(f"it is in {len(boxes)} parts that are no grid, too many to compare with each other")
        if any(_meet(box, other) for other in active):
            return False
        active.append(box)
    return True


def _meet(one: Box, other: Box) -> bool:
    return all(
        a < b + n and b < a + m
        for a, m, b, n in zip(one.offsets, one.tensor.shape, other.offsets, other.tensor.shape, strict=True)
    )
