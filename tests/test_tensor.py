"""Where a tensor lies: torch's rules for strides, and what no file may claim."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdconvert
from sdconvert.dtypes import BY_NAME
from sdconvert.source import MemorySource
from sdconvert.tensor import (
    Storage,
    TensorRef,
    contiguous_strides,
    end_of,
    is_contiguous,
    strided,
)

INT8, FLOAT = BY_NAME["int8"], BY_NAME["float32"]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def seen(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, nbytes: int = 100, dtype: str = "int8"
) -> TensorRef:
    return strided(BY_NAME[dtype], shape, Storage(MemorySource(bytes(nbytes)), 0, nbytes, "s"), offset, strides)


@given(SHAPES)
def test_strides_of_a_fresh_tensor_are_torchs(shape: tuple[int, ...]) -> None:
    assert contiguous_strides(shape) == torch.empty(shape).stride()


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), st.tuples(*[st.integers(0, 20)] * len(shape)))))
def test_what_is_contiguous_is_so_for_torch_and_reaches_as_far(case: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, strides = case
    theirs = torch.empty_strided(shape, strides, dtype=torch.int8)
    assert is_contiguous(shape, strides) == theirs.is_contiguous()
    ours = seen(shape, strides, nbytes=1000)
    assert ours.is_plain == theirs.is_contiguous()
    assert end_of(ours) == theirs.untyped_storage().nbytes()


def test_a_stride_that_nothing_steps_by_makes_no_difference() -> None:
    assert seen((1, 5), (77, 1)).pieces[0].strides == (5, 1)
    assert seen((0, 5), (3, 9)).pieces[0].strides == contiguous_strides((0, 5))


def test_a_tensor_ends_within_its_storage_to_the_byte() -> None:
    assert end_of(seen((5, 5), (5, 1), offset=75)) == 100
    with pytest.raises(sdconvert.UnreadableError, match=r"holds 100 bytes, the tensor needs 101"):
        seen((5, 5), (5, 1), offset=76)
    with pytest.raises(sdconvert.UnreadableError, match=r"holds 100 bytes, the tensor needs 104"):
        seen((26,), (1,), dtype="float32")
    assert seen((0,), (1,), offset=10**6).numel == 0  # As torch has it: nothing lies nowhere.


def test_elements_are_counted_in_64_bits() -> None:
    assert seen((1 << 31, 1 << 31), (0, 0)).numel == 1 << 62
    for shape in ((1 << 32, 1 << 31), (1 << 32, 1 << 32), (1 << 62, 1 << 62)):
        with pytest.raises(sdconvert.UnreadableError, match="multiply to more than 64 bits"):
            seen(shape, (0, 0))
    for shape in ((0, 1 << 62, 1 << 62), (0, 1 << 32, 1 << 31), (0, 1 << 63)):
        with pytest.raises(sdconvert.UnreadableError, match=r"multiply to more than 64 bits|not a whole number"):
            seen(shape, (1,) * len(shape))
    assert seen(((1 << 63) - 1, 0), (1, 1)).numel == 0


@pytest.mark.parametrize(("shape", "strides"), [((-1,), (1,)), ((2,), (-1,)), ((True,), (1,)), ((1 << 63,), (0,))])
def test_sizes_and_strides_are_whole_numbers(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    with pytest.raises(sdconvert.UnreadableError, match="not a whole number"):
        seen(shape, strides)
