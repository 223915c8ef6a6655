"""Tensors in parts: whatever fills one exactly is put together, whatever does not is refused."""

from __future__ import annotations

import random
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdconvert.dtypes import BY_NAME
from sdconvert.errors import SdconvertError, UnreadableError, UnsupportedError
from sdconvert.formats import boxes as boxes_module
from sdconvert.formats.boxes import Box, assemble
from sdconvert.gather import SCRATCH, fill
from sdconvert.source import MemorySource
from sdconvert.tensor import Storage, TensorRef, contiguous_strides, strided
from tests.outputs import raw

Region = list[tuple[int, int]]  # Begin and end in each dimension.


def stored(part: torch.Tensor, *, transposed: bool = False) -> TensorRef:
    """A tensor in a storage of its own, row-major or the other way round, behind 3 elements of something else."""
    laid = part.permute(tuple(reversed(range(part.ndim)))) if transposed else part
    laid = laid.clone(memory_format=torch.contiguous_format)
    data = b"\xaa" * 3 * part.element_size() + raw(laid)
    storage = Storage(MemorySource(data), 0, len(data), "s", zlib.crc32(data))
    shape = tuple(part.shape)
    strides = contiguous_strides(shape[::-1])[::-1] if transposed else contiguous_strides(shape)
    return strided(BY_NAME[str(part.dtype)[6:]], shape, storage, 3, strides)


def cut(region: Region, chance: random.Random, depth: int) -> list[Region]:
    """A region cut along random dimensions at random places, again and again; the parts are no grid as a rule."""
    if depth == 0 or not region:
        return [region]
    d = chance.randrange(len(region))
    begin, end = region[d]
    at = chance.randint(begin, end)
    halves = [[*region[:d], span, *region[d + 1 :]] for span in ((begin, at), (at, end))]
    return [part for half in halves for part in cut(half, chance, depth - 1)]


def box(whole: torch.Tensor, region: Region, *, transposed: bool = False) -> Box:
    part = whole[tuple(slice(*span) for span in region)].clone()
    return Box(tuple(begin for begin, _ in region), stored(part, transposed=transposed))


@settings(max_examples=300)
@given(
    shape=st.lists(st.integers(0, 7), max_size=4),
    dtype=st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.complex64, torch.complex128]),
    seed=st.integers(0, 1 << 30),
    depth=st.integers(0, 4),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_range_of_any_cut(
    shape: list[int], dtype: torch.dtype, seed: int, depth: int, ends: tuple[float, float]
) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    whole = torch.randn(shape).to(dtype) if dtype != torch.uint8 else torch.randint(0, 255, shape, dtype=dtype)
    parts = cut([(0, size) for size in shape], chance, depth)
    chance.shuffle(parts)
    ref = assemble(tuple(shape), [box(whole, part, transposed=chance.random() < 0.2) for part in parts])
    assert (ref.shape, ref.dtype.name) == (tuple(shape), str(dtype)[6:])
    start, stop = sorted(round(end * whole.numel()) for end in ends)
    size = whole.element_size()
    out = bytearray((stop - start) * size)
    told: list[bytes] = []

    def seen(storage: Storage, at: int, data: memoryview) -> None:
        source = bytearray(len(data))
        storage.source.readinto(storage.offset + at, memoryview(source))
        assert source == data, "what is told of is what lies there"
        told.append(bytes(data))

    if out:
        unmoved = fill(ref, start, memoryview(out), memoryview(bytearray(SCRATCH)), seen)
        assert bytes(out) == raw(whole)[start * size : stop * size]
        assert b"".join(told) == bytes(out) or not unmoved
        assert sum(map(len, told)) <= len(out)


@pytest.mark.parametrize("rows", [7, 1500])
@pytest.mark.parametrize("columns", [1, 40, 3000])
def test_columns_of_large_tensors(rows: int, columns: int) -> None:
    """Sharded over the last dimension: rows of the parts are put side by side."""
    whole = torch.arange(rows * columns * 2, dtype=torch.int32).reshape(rows, 2 * columns)
    halves = [[(0, rows), (0, columns)], [(0, rows), (columns, 2 * columns)]]
    ref = assemble((rows, 2 * columns), [box(whole, half) for half in halves])
    told = 0

    def seen(storage: Storage, at: int, data: memoryview) -> None:
        nonlocal told
        told += len(data)

    out = bytearray(whole.nbytes)
    fill(ref, 0, memoryview(out), memoryview(bytearray(SCRATCH)), seen)
    assert bytes(out) == raw(whole)
    assert told == whole.nbytes  # Each byte was read once, and can be checked on the way.


WHOLE = torch.arange(36.0).reshape(6, 6)
PINWHEEL = [[(0, 2), (0, 4)], [(0, 4), (4, 6)], [(4, 6), (2, 6)], [(2, 6), (0, 2)], [(2, 4), (2, 4)]]


def test_parts_that_are_no_grid_are_compared_with_each_other() -> None:
    ref = assemble((6, 6), [box(WHOLE, part) for part in PINWHEEL])
    out = bytearray(144)
    fill(ref, 0, memoryview(out), memoryview(bytearray(SCRATCH)))
    assert bytes(out) == raw(WHOLE)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[(0, 3), (0, 6)]], "18 of 36 elements: some are missing"),
        (PINWHEEL[:4], "32 of 36 elements"),
        ([[(0, 4), (0, 6)], [(2, 6), (0, 6)]], "overlap"),
        ([[(0, 3), (0, 6)], [(0, 3), (0, 6)]], "overlap"),
        ([[(0, 2), (0, 6)], [(1, 3), (0, 6)], [(4, 6), (0, 6)]], "overlap"),
        ([[(0, 3), (0, 6)], [(3, 6), (0, 3)], [(3, 6), (2, 5)]], "overlap"),
        ([*PINWHEEL, PINWHEEL[4]], "overlap"),
    ],
)
def test_holes_and_overlaps_are_refused(parts: list[Region], message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        assemble((6, 6), [box(WHOLE, part) for part in parts])


def test_a_part_outside_of_its_tensor_is_refused() -> None:
    for offsets in ((4, 0), (0, 4), (1 << 40, 0)):
        with pytest.raises(UnreadableError, match="reaches outside"):
            assemble((6, 6), [Box(offsets, stored(torch.zeros(3, 3)))])


@pytest.mark.parametrize("shape", [(1 << 62, 4), (-1, 6), (2.0, 3), (True, 6), (1,) * 65, (6,), (6, 6, 1)])
def test_shapes_that_cannot_be_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SdconvertError):
        assemble(shape, [box(WHOLE, [(0, 6), (0, 6)])])


def test_parts_of_different_kinds_are_refused() -> None:
    upper, lower = (stored(WHOLE[:3].to(dtype)) for dtype in (torch.float32, torch.float64))
    with pytest.raises(UnreadableError, match="different dtypes, float32 and float64"):
        assemble((6, 6), [Box((0, 0), upper), Box((3, 0), lower)])
    negative = TensorRef(upper.dtype, upper.shape, upper.pieces, neg=True)
    with pytest.raises(UnsupportedError, match="negated"):
        assemble((6, 6), [Box((0, 0), upper), Box((3, 0), negative)])


def test_comparing_parts_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes_module, "_COMPARED", 10)
    parts = [[(0, 1), (i, i + 1)] for i in range(20)] + [[(1, 2), (0, 11)], [(1, 2), (11, 20)]]
    with pytest.raises(UnsupportedError, match="22 parts that are no grid"):
        assemble((2, 20), [box(torch.zeros(2, 20), part) for part in parts])
