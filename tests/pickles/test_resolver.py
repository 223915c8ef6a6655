"""What a tensor may be cut out of: its own part of a storage, to the byte."""

from __future__ import annotations

import pytest

import sdconvert
from sdconvert.checkpoint import TypedStorage
from sdconvert.dtypes import BY_NAME
from sdconvert.pickles.resolver import view
from sdconvert.source import MemorySource
from sdconvert.tensor import Storage

UINT8, FLOAT = BY_NAME["uint8"], BY_NAME["float32"]
STORAGE = Storage(MemorySource(bytes(100)), 0, 100, "7")


def test_a_tensor_stays_in_its_part_of_a_storage_to_the_byte() -> None:
    part = TypedStorage(STORAGE, UINT8, 20, 10)  # Bytes 20 to 30.
    assert view(part, UINT8, 2, (8,), (1,)).pieces[0].offset == 22
    with pytest.raises(sdconvert.UnreadableError, match="reaches out of its part of storage 7"):
        view(part, UINT8, 2, (9,), (1,))
    with pytest.raises(sdconvert.UnreadableError, match="storage 7 holds 100 bytes, the tensor needs 101"):
        view(TypedStorage(STORAGE, UINT8, 0, 100), UINT8, 1, (100,), (1,))


def test_a_part_without_a_dtype_counts_bytes() -> None:
    part = TypedStorage(STORAGE, None, 20, 40)
    assert view(part, FLOAT, 0, (10,), (1,)).pieces[0].offset == 5
    with pytest.raises(sdconvert.UnreadableError, match="reaches out of its part"):
        view(part, FLOAT, 0, (11,), (1,))
    with pytest.raises(sdconvert.UnreadableError, match="does not start at an element"):
        view(TypedStorage(STORAGE, None, 21, 40), FLOAT, 0, (1,), (1,))


@pytest.mark.parametrize("offset", [-1, True, 1.0, None])
def test_an_offset_is_a_whole_number(offset: object) -> None:
    with pytest.raises(sdconvert.UnreadableError, match="storage offset is not a whole number"):
        view(TypedStorage(STORAGE, FLOAT, 0, 25), FLOAT, offset, (1,), (1,))
