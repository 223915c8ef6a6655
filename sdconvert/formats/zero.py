"""DeepSpeed's ZeRO partitions, put together: which elements of which rank's flat tensors make up each parameter.

Stages 1 and 2: the parameters of a group, flattened one after another, are cut into one partition
for each rank; the last one is padded. Stage 3: every parameter by itself is cut into equal parts, the
last one padded; a rank's parts of all parameters follow each other through its flat tensors, and one may
go on in the next. Source: ``deepspeed/utils/zero_to_fp32.py``, whose checks are repeated here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import UnreadableError, within
from ..tensor import Piece, Shape, TensorRef, contiguous_strides, numel, strided

_DAMAGED = "The checkpoint is damaged, or files of several were mixed"


class Param(NamedTuple):
    """A parameter that was cut up. `gap` elements of padding follow it in its group."""

    name: str
    shape: Shape
    gap: int = 0


class Flat:
    """One-dimensional tensors of one dtype, end to end."""

    def __init__(self, parts: Sequence[TensorRef]) -> None:
        self.parts = parts
        self.starts: list[int] = []
        self.numel = 0
        for part in parts:
            if len(part.shape) != 1 or not part.is_plain or part.dtype != parts[0].dtype:
                raise UnreadableError(f"a flat partition is not one plain row of numbers. {_DAMAGED}")
            self.starts.append(self.numel)
            self.numel += part.numel

    def pieces(self, begin: int, count: int, at: int) -> Iterator[Piece]:
        """Elements `begin` to `begin + count`, which go to a tensor's elements from `at` on."""
        if begin + count > self.numel:
            raise UnreadableError(f"it needs {begin + count} elements of its partitions' {self.numel}. {_DAMAGED}")
        number = max(0, bisect_right(self.starts, begin) - 1)
        while count:
            part, skip = self.parts[number], begin - self.starts[number]
            here = min(count, part.numel - skip)
            if here:
                piece = part.pieces[0]
                yield Piece(piece.storage, piece.offset + skip, (1,), (here,), at, (1,))
            begin, count, at, number = begin + here, count - here, at + here, number + 1


def joined(shape: Shape, like: TensorRef, pieces: list[Piece]) -> TensorRef:
    """The tensor of `shape` that one-dimensional `pieces` fill from its first element to its last.

    `like` is any tensor of its dtype, for one that has no elements.
    """
    if len(pieces) == 1 or not pieces:
        storage, offset = (pieces[0].storage, pieces[0].offset) if pieces else (like.pieces[0].storage, 0)
        return strided(like.dtype, shape, storage, offset, contiguous_strides(shape))
    if len({piece.storage.big_endian for piece in pieces}) > 1:
        raise UnreadableError(f"its parts differ in byte order. {_DAMAGED}")
    return TensorRef(like.dtype, shape, tuple(pieces))


def stage_2(groups: Sequence[Sequence[Param]], ranks: Sequence[Sequence[TensorRef]]) -> Iterator[tuple[str, TensorRef]]:
    """The parameters of stages 1 and 2: `groups` of parameters, and for each rank its partition of each group."""
    for number, group in enumerate(groups):
        whole = Flat([partitions[number] for partitions in ranks])
        at = 0
        for name, shape, gap in group:
            with within(name):
                yield name, joined(shape, whole.parts[0], list(whole.pieces(at, numel(shape), 0)))
            at += numel(shape) + gap
        # Partitions are padded to a multiple of twice the ranks, by a rule that changed over time.
        step = 2 * len(ranks)
        if -(-at // step) != -(-whole.numel // step):
            raise UnreadableError(f"group {number} has {whole.numel} elements, its parameters take {at}. {_DAMAGED}")


def stage_3(params: Sequence[Param], ranks: Sequence[Sequence[TensorRef]]) -> Iterator[tuple[str, TensorRef]]:
    """The parameters of stage 3, of all groups in order: for each rank, its flat tensors."""
    flats = [Flat(partitions) for partitions in ranks]
    if len({flat.numel for flat in flats}) > 1:
        raise UnreadableError(f"the ranks hold partitions of different sizes. {_DAMAGED}")
    at = 0
    for name, shape, _ in params:
        with within(name):
            yield name, spread(shape, flats, at)
        at += -(-numel(shape) // len(ranks))
    if at != flats[0].numel:
        raise UnreadableError(
            f"a rank's partitions have {flats[0].numel} elements, the parameters take {at}. {_DAMAGED}"
        )


def spread(shape: Shape, flats: Sequence[Flat], at: int) -> TensorRef:
    """A tensor of which every rank has an equal part, from element `at` of its flat tensors on.

    UnreadableError when a rank has less than that, or elements of another dtype.
    """
    pieces: list[Piece] = []
    like = flats[0].parts[0]
    if any(flat.parts[0].dtype is not like.dtype for flat in flats):  # Offsets would count elements of another size.
        raise UnreadableError(f"its ranks' parts have different dtypes. {_DAMAGED}")
    whole = numel(shape)
    each = -(-whole // len(flats))
    for rank, flat in enumerate(flats):
        count = max(0, min(each, whole - rank * each))
        if at + each > flat.numel:
            raise UnreadableError(f"it needs {at + each} elements of a rank's {flat.numel}. {_DAMAGED}")
        pieces += flat.pieces(at, count, rank * each)
    return joined(shape, like, pieces)
