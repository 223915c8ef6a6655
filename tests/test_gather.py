"""Any part of any strided tensor, against torch."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdconvert.gather
from sdconvert.crc32 import combine
from sdconvert.dtypes import BY_NAME
from sdconvert.gather import SCRATCH, fill
from sdconvert.source import MemorySource
from sdconvert.tensor import Piece, Storage, TensorRef, contiguous_strides, strided

DTYPES = [torch.uint8, torch.int16, torch.float32, torch.float64, torch.complex64, torch.complex128]
dims = st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 2, 3, 7, 20, 100])), max_size=5)


def part(ref: TensorRef, start: int, stop: int) -> bytes:
    out = bytearray((stop - start) * ref.dtype.itemsize)
    if out:
        fill(ref, start, memoryview(out), memoryview(bytearray(SCRATCH)))
    return bytes(out)


@pytest.mark.parametrize("tight", [False, True])
@settings(max_examples=300)
@given(
    dims=dims, offset=st.integers(0, 9), dtype=st.sampled_from(DTYPES), cut=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
def test_any_range_of_any_view(
    tight: bool, dims: list[tuple[int, int]], offset: int, dtype: torch.dtype, cut: tuple[float, float]
) -> None:
    shape, strides = tuple(n for n, _ in dims), tuple(s for _, s in dims)
    size = offset + 1 + sum((n - 1) * s for n, s in dims if n)
    raw = torch.randint(0, 255, (size * dtype.itemsize,), dtype=torch.uint8)
    view = torch.as_strided(raw.view(dtype), shape, strides, offset)
    data = raw.numpy().tobytes()
    ref = strided(BY_NAME[str(dtype)[6:]], shape, Storage(MemorySource(data), 0, len(data), "s"), offset, strides)
    start, stop = sorted(round(fraction * view.numel()) for fraction in cut)
    whole = view.clone(memory_format=torch.contiguous_format).view(-1)
    expected = whole[start:stop].view(torch.uint8).numpy().tobytes() if stop > start else b""
    with pytest.MonkeyPatch.context() as patch:
        if tight:  # As if memory were scarce: every path of the gathering is taken.
            patch.setattr(sdconvert.gather, "_SMALL", 64)
            patch.setattr(sdconvert.gather, "_SLICES", 8)
        assert part(ref, start, stop) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
@pytest.mark.parametrize(("conj", "neg"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("big", [False, True])
def test_conjugates_negatives_and_byte_order(dtype: torch.dtype, conj: bool, neg: bool, big: bool) -> None:
    values = torch.randn(4, 5, dtype=dtype)
    expected = values.conj() if conj else values
    expected = (-expected if neg else expected).resolve_conj()
    data = values.view(torch.uint8).numpy()
    known = BY_NAME[str(dtype)[6:]]
    stored = data.reshape(-1, known.swap)[:, ::-1].tobytes() if big else data.tobytes()
    storage = Storage(MemorySource(stored), 0, len(stored), "s", big_endian=big)
    ref = strided(known, (4, 5), storage, 0, (5, 1), conj, neg)
    assert part(ref, 0, 20) == expected.contiguous().view(torch.uint8).numpy().tobytes()


@settings(max_examples=200)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), at=st.tuples(st.integers(0, 9), st.integers(0, 9)), cut=st.data()
)
def test_a_tensor_in_four_pieces(rows: int, columns: int, at: tuple[int, int], cut: st.DataObject) -> None:
    """As sharded checkpoints save it: boxes of the tensor, each a storage of its own."""
    whole = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns)
    row, column = min(at[0], rows), min(at[1], columns)
    pieces = []
    for r, h in ((0, row), (row, rows - row)):
        for c, w in ((0, column), (column, columns - column)):
            data = whole[r : r + h, c : c + w].contiguous().numpy().tobytes()
            storage = Storage(MemorySource(data), 0, len(data), "s")
            pieces.append(Piece(storage, 0, contiguous_strides((h, w)), (h, w), r * columns + c, (columns, 1)))
    ref = TensorRef(BY_NAME["int32"], (rows, columns), tuple(pieces))
    start = cut.draw(st.integers(0, rows * columns))
    stop = cut.draw(st.integers(start, rows * columns))
    assert part(ref, start, stop) == whole.flatten()[start:stop].numpy().tobytes()


@given(st.binary(), st.binary())
def test_crc32_of_two_strings_joined(one: bytes, other: bytes) -> None:
    assert combine(zlib.crc32(one), zlib.crc32(other), len(other)) == zlib.crc32(one + other)
