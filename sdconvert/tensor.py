"""A tensor as the file describes it: where its bytes lie, never the bytes themselves.

A `Storage` is a range of a source. A `Piece` maps a strided box of a storage onto a
strided box of the tensor. A `TensorRef` is a dtype, a shape and the pieces that fill it:
one for an ordinary tensor, several for one that was saved in parts. All are checked
when they are made, so whoever holds one may read through it without looking again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from .dtypes import DType
from .errors import UnreadableError
from .source import SliceSource, Source, is_far

Shape = tuple[int, ...]

_INT = frozenset({int})
MAX_DIMENSIONS = 64  # torch's own (``kMaxDims`` and the fixed sizes of its iterators).


@dataclass(eq=False, slots=True)
class Storage:
    """`nbytes` bytes of `source` from `offset` on, shared by any number of tensors. Not to be changed: only making
    it frozen would take four times as long, and there is one for each tensor of most files.

    `crc32` is the container's checksum of exactly these bytes, None when it has none.
    `big_endian` says how multi-byte elements lie in it. Two storages are the same one
    only when they are the same object: that is what a tie is decided by.
    """

    source: Source
    offset: int
    nbytes: int
    name: str
    crc32: int | None = None
    big_endian: bool = False

    def __post_init__(self) -> None:
        if self.offset < 0 or self.nbytes < 0 or self.offset + self.nbytes > self.source.nbytes:
            raise UnreadableError(
                f"storage {self.name} claims bytes {self.offset} to {self.offset + self.nbytes}, "
                f"but there are only {self.source.nbytes}. The file is damaged or was cut short"
            )


class Piece(NamedTuple):
    """The box of `shape` elements that starts `offset` elements into `storage` with `strides`,
    and goes to the row-major tensor from element `at` on with `at_strides`.

    All five count elements of the tensor's dtype. `at_strides` never increase and never
    make two elements meet, so the box's own order is the tensor's order.
    """

    storage: Storage
    offset: int
    strides: tuple[int, ...]
    shape: Shape
    at: int
    at_strides: tuple[int, ...]


class TensorRef(NamedTuple):
    """A tensor of `shape` whose row-major elements `pieces` fill, without hole or overlap.

    With `conj` (`neg`) the values are the conjugates (negatives) of what is stored.
    `array` marks what was a numpy array rather than a torch tensor.
    """

    dtype: DType
    shape: Shape
    pieces: tuple[Piece, ...]
    conj: bool = False
    neg: bool = False
    array: bool = False

    @property
    def numel(self) -> int:
        """Elements, as torch counts them."""
        return numel(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when written contiguously."""
        return numel(self.shape) * self.dtype.itemsize

    @property
    def is_plain(self) -> bool:
        """Whether its bytes can be copied from one range of one storage as they are."""
        if len(self.pieces) != 1 or self.conj or self.neg:
            return False
        piece = self.pieces[0]
        if piece.storage.big_endian and self.dtype.swap > 1:
            return False
        return piece.strides == piece.at_strides or is_contiguous(piece.shape, piece.strides)


def expect(tensors: Iterable[TensorRef], *, checked: bool = False) -> None:
    """Tell sources that are far which of their bytes will be read, so that they fetch these ahead, and no others.

    Their method `expect` takes the begin and the end of a range, and whether whoever reads it compares it with a
    checksum: with `checked`, that is so where the container has one. Sources on this machine need no telling.
    """
    for storage in {piece.storage for tensor in tensors for piece in tensor.pieces}:
        source, begin = storage.source, storage.offset
        if is_far(source) and storage.nbytes:
            if isinstance(source, SliceSource):
                begin, source = begin + source.offset, source.base
            known = checked and storage.crc32 is not None
            source.expect(begin, begin + storage.nbytes, checked=known)  # type: ignore[attr-defined]


def check_numbers(numbers: tuple[object, ...], dimensions: int) -> None:
    """UnreadableError unless all are ints from 0 to 2**63 - 1, for a tensor of not too many dimensions.

    To be called before anything is computed from them: products of claims can be huge.
    """
    if dimensions > MAX_DIMENSIONS:
        raise UnreadableError(f"a tensor has {dimensions} dimensions; torch stops at {MAX_DIMENSIONS}")
    # By exact type: True is an int too, and no size.
    if not _INT.issuperset(map(type, numbers)) or min(numbers, default=0) < 0 or max(numbers, default=0) >> 63:  # type: ignore[type-var, operator]
        raise UnreadableError(
            "a tensor's size, stride or offset is not a whole number from 0 to 2**63. The file is damaged"
        )


def end_of(tensor: TensorRef) -> int:
    """The byte of its storage just after the last one that a tensor of one piece touches; 0 for an empty one."""
    piece = tensor.pieces[0]
    if not tensor.numel:
        return 0
    last = piece.offset + sum([(size - 1) * stride for size, stride in zip(piece.shape, piece.strides, strict=True)])
    return (last + 1) * tensor.dtype.itemsize


def numel(shape: Shape) -> int:
    """The number of elements of a row-major box of `shape`; 1 for a scalar."""
    return prod(shape)


def contiguous_strides(shape: Shape) -> tuple[int, ...]:
    """Row-major strides in elements, as torch gives a fresh tensor of `shape`."""
    if len(shape) < 2:
        return (1,) * len(shape)
    if len(shape) == 2:
        return (shape[1] or 1, 1)
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size or 1
    strides.reverse()
    return tuple(strides)


def is_contiguous(shape: Shape, strides: tuple[int, ...]) -> bool:
    """torch's rule: the stride of a dimension with one element does not matter, and none of an empty tensor does."""
    if 0 in shape:
        return True
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


def strided(
    dtype: DType,
    shape: Shape,
    storage: Storage,
    offset: int,
    strides: tuple[int, ...],
    conj: bool = False,
    neg: bool = False,
    array: bool = False,
) -> TensorRef:
    """A tensor seen through `strides` from element `offset` of `storage` on.

    UnreadableError when a number is negative, not an int, or leads outside the storage.
    """
    if len(shape) != len(strides):
        raise UnreadableError(f"a tensor has {len(shape)} dimensions but {len(strides)} strides. The file is damaged")
    numbers = (offset, *shape, *strides)
    check_numbers(numbers, len(shape))
    count, dense = numel(shape), contiguous_strides(shape)
    if strides == dense:
        last = offset + count - 1
    else:
        if count == 0 or 1 in shape:  # What a stride of these is cannot be told from outside, so it is made the same.
            strides = tuple(
                d if size == 1 or not count else s for size, s, d in zip(shape, strides, dense, strict=True)
            )
        last = offset + sum([(size - 1) * stride for size, stride in zip(shape, strides, strict=True)])
    needed = (last + 1) * dtype.itemsize if count else 0
    if needed > storage.nbytes:
        raise UnreadableError(
            f"storage {storage.name} holds {storage.nbytes} bytes, the tensor needs {needed}. The file is damaged"
        )
    if max(count, last, *dense[:1]) >> 63 > 0:  # The strides of an empty tensor have to fit too, or torch has none.
        raise UnreadableError("a tensor's dimensions multiply to more than 64 bits hold. The file is damaged")
    piece = Piece(storage, offset, strides, shape, 0, dense)
    return TensorRef(dtype, shape, (piece,), conj, neg, array)
