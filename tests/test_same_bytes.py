"""The output is, to the byte, what safetensors' own writer makes of the same tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import sdconvert
from sdconvert.errors import SdconvertError, UnsupportedError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
]
ODD_NAMES = [
    "",
    "a.b",
    'say "hi"',
    "back\\slash",
    "tab\tline\nfeed\rbell\x07nul\0",
    "\x7f\x80\x9f\u2028\u202e",
    "é中😀",
    "/",
]

names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(ODD_NAMES),
    st.from_regex(r"(layer|block)\.[0-9]{1,2}\.(weight|bias)", fullmatch=True),
).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(shapes)
    if dtype is torch.float4_e2m1fn_x2 and not shape:
        shape = (1,)  # A half-filled byte is no tensor of safetensors; it has a test of its own.
    count = torch.Size(shape).numel()
    data = bytearray(draw(st.binary(min_size=16 * count, max_size=16 * count)))
    if not count:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype)[:count].clone().reshape(shape)


def both(state: dict[str, torch.Tensor], directory: Path, **save: object) -> tuple[bytes, bytes]:
    """(our bytes, the reference's) for one state dict."""
    ours, theirs = directory / "ours.safetensors", directory / "theirs.safetensors"
    torch.save(state, directory / "source.pt", **save)  # type: ignore[arg-type]
    sdconvert.convert(directory / "source.pt", ours, overwrite=True)
    save_file(state, theirs, metadata={"format": "pt"})
    return ours.read_bytes(), theirs.read_bytes()


@settings(max_examples=200)
@given(state=st.dictionaries(names, tensors(), min_size=1, max_size=8), zipped=st.booleans())
@example(state={name: torch.arange(3.0) for name in ODD_NAMES}, zipped=True)
def test_any_dict_of_contiguous_untied_tensors(state: dict[str, torch.Tensor], zipped: bool, tmp_path: Path) -> None:
    ours, theirs = both(state, tmp_path, _use_new_zipfile_serialization=zipped)
    assert ours == theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (2, 3, 4), (3, 0, 5), (1, 1, 1, 1)], ids=str)
def test_each_dtype_by_itself(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    count = torch.Size(shape).numel()
    bits = torch.arange(count * 8, dtype=torch.uint8) % (2 if dtype is torch.bool else 251)
    tensor = bits.view(dtype)[:count].clone().reshape(shape)
    ours, theirs = both({"t": tensor}, tmp_path)
    assert ours == theirs


def test_all_dtypes_in_one_file_lie_in_the_references_order(tmp_path: Path) -> None:
    state = {
        f"{i % 3}.{dtype}": torch.zeros(2, 3, dtype=torch.uint8).repeat(1, 8).view(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    ours, theirs = both(state, tmp_path)
    assert ours == theirs


@pytest.mark.parametrize("count", [1, 2, 300])
def test_the_header_is_padded_as_the_reference_pads_it(count: int, tmp_path: Path) -> None:
    for length in range(8):
        ours, theirs = both({"n" * length + str(i): torch.zeros(i % 5) for i in range(count)}, tmp_path)
        assert ours == theirs


def test_names_in_order_of_utf8_not_of_utf16(tmp_path: Path) -> None:
    # U+FF5E sorts before U+1F600 by code point, after it by UTF-16 unit.
    ours, theirs = both({"\U0001f600": torch.zeros(1), "\uff5e": torch.ones(1), "z": torch.ones(2)}, tmp_path)
    assert ours == theirs


def test_a_name_that_safetensors_keeps_for_itself_is_refused(tmp_path: Path) -> None:
    torch.save({"__metadata__": torch.zeros(1)}, tmp_path / "source.pt")
    with pytest.raises(SdconvertError, match="__metadata__"):
        sdconvert.convert(tmp_path / "source.pt", tmp_path / "out.safetensors")


def test_half_a_byte_is_refused(tmp_path: Path) -> None:
    torch.save({"t": torch.zeros((), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "source.pt")
    with pytest.raises(UnsupportedError, match="float4_e2m1fn_x2"):
        sdconvert.convert(tmp_path / "source.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_more_metadata_follows_format_sorted(tmp_path: Path) -> None:
    torch.save({"t": torch.zeros(1)}, tmp_path / "source.pt")
    sdconvert.convert(
        tmp_path / "source.pt", tmp_path / "o.safetensors", metadata={"zeta": "1", "alpha": "2", "e": "3"}
    )
    head = (tmp_path / "o.safetensors").read_bytes()[8:]
    assert head.startswith(b'{"__metadata__":{"format":"pt","alpha":"2","e":"3","zeta":"1"},"t":')
