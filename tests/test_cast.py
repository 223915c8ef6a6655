"""``--dtype``: every pair of floating-point types, against `tensor.to(dtype)`, to the bit."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch

import sdconvert
import sdconvert.gather
from sdconvert.dtypes import BY_NAME
from sdconvert.gather import SCRATCH, cast
from sdconvert.source import MemorySource
from sdconvert.tensor import Storage, contiguous_strides, strided
from tests.outputs import contents, raw
from tests.test_encodings import KINDS, identical, saved, tensors

FLOATS = [name for name, dtype in BY_NAME.items() if dtype.kind == "f" and dtype.packed == 1]


def every(name: str) -> torch.Tensor:
    """All values of a type of up to 16 bits; of longer ones random bits, and what lies at and about every limit."""
    dtype: torch.dtype = getattr(torch, name)
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    if dtype.itemsize == 2:
        return torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    bits = torch.randint(0, 256, (1 << 15, dtype.itemsize), dtype=torch.uint8).view(dtype).flatten()
    small = [every(other).to(torch.float64) for other in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")]
    limits = torch.cat([*small, torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0])]).to(dtype)
    up, down = torch.tensor(float("inf"), dtype=dtype), torch.tensor(float("-inf"), dtype=dtype)
    finite = limits[limits.isfinite()]
    halves = (finite[:-1] + finite[1:]) / 2  # Between neighbours: ties, which go to the even one.
    about = torch.cat([limits, halves])
    return torch.cat(
        [bits, about, torch.nextafter(about, up), torch.nextafter(about, down), torch.randn(5000, dtype=dtype)]
    )


def same_numbers(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same bits; of NaNs only that they are ones, as torch's own vary with the length of a tensor."""
    assert ours.dtype == theirs.dtype
    mine, yours = ours.to(torch.float64), theirs.to(torch.float64)
    assert torch.equal(mine.isnan(), yours.isnan())
    numbers = ~yours.isnan()
    size = ours.dtype.itemsize
    unsigned = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    assert torch.equal(ours.view(unsigned)[numbers], theirs.view(unsigned)[numbers])


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_every_pair_of_types_is_cast_as_torch_casts(source: str, target: str, tmp_path: Path) -> None:
    values = every(source)
    file = saved({"x.w": values}, tmp_path / "m.pt")
    sdconvert.convert(file, tmp_path / "o.safetensors", dtype=target)
    found = contents(tmp_path / "o.safetensors")["x.w"]
    same_numbers(found, values.to(getattr(torch, target)))


@pytest.mark.parametrize("contiguous", [True, False])
def test_blocks_and_strides_change_nothing(contiguous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdconvert.gather, "_CAST_PLAIN", 4096)
    monkeypatch.setattr(sdconvert.gather, "_CAST_GATHERED", 4096)
    values = torch.randn(300, 71) if contiguous else torch.randn(71, 300).t()
    for name in ("x.safetensors", "x.pt"):
        sdconvert.convert(saved({"x.w": values}, tmp_path / "m.pt"), tmp_path / name, dtype="float16")
    found = contents(tmp_path / "x.safetensors")["x.w"]
    assert torch.equal(found, values.half())
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True)["x.w"], values.half())


def test_a_negative_view_is_negated_before_it_is_cast(tmp_path: Path) -> None:
    values = torch.randn(50, dtype=torch.complex64).conj().imag
    assert values.is_neg()
    sdconvert.convert(saved({"x.w": values}, tmp_path / "m.pt"), tmp_path / "o.safetensors", dtype=torch.bfloat16)
    assert torch.equal(contents(tmp_path / "o.safetensors")["x.w"], values.to(torch.bfloat16))


def test_ties_are_kept(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    report = sdconvert.convert(
        saved({"a.w": weight, "b.w": weight, "c.w": weight.t()}, tmp_path / "m.pt"), tmp_path / "o.pt", dtype="bf16"
    )
    assert report.aliases == {"b.w": "a.w"}
    found = torch.load(tmp_path / "o.pt", weights_only=True)
    assert found["a.w"].data_ptr() == found["b.w"].data_ptr()
    assert torch.equal(found["c.w"], weight.t().bfloat16())


LEFT_ALONE = {
    "int64": lambda: torch.arange(3),
    "uint8": lambda: torch.arange(3, dtype=torch.uint8),
    "bool": lambda: torch.tensor([True, False]),
    "complex64": lambda: torch.randn(3, dtype=torch.complex64),
    "complex128": lambda: torch.randn(3, dtype=torch.complex128),
    "float4": lambda: torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "quantized": KINDS["qint8_per_channel"],
    "float_qparams": KINDS["float_qparams"],
    "sparse": KINDS["coo"],
    "nested": KINDS["nested"],
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("order", [("plain", "sparse"), ("sparse", "plain")])
def test_a_plain_tensor_is_cast_though_a_part_of_an_encoded_one_is_the_same(
    order: tuple[str, str], ending: str, tmp_path: Path
) -> None:
    values = torch.randn(3)
    state = {"plain": values, "sparse": torch.sparse_coo_tensor(torch.tensor([[0, 2, 4]]), values, (5,))}
    out = tmp_path / f"o.{ending}"
    report = sdconvert.convert(saved({name: state[name] for name in order}, tmp_path / "m.pt"), out, dtype="float16")
    assert report.aliases == {}
    found = sdconvert.load(out)
    assert torch.equal(found["plain"], values.half())
    assert found["sparse"].dtype == torch.float32
    assert torch.equal(found["sparse"].to_dense(), state["sparse"].to_dense())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_is_no_floating_point_number_is_left_alone(kind: str, tmp_path: Path) -> None:
    tensor = LEFT_ALONE[kind]()
    source = saved({"x.w": tensor, "x.f": torch.randn(3)}, tmp_path / "m.pt")
    sdconvert.convert(source, tmp_path / "o.safetensors", dtype="float16")
    found = tensors(tmp_path / "o.safetensors")
    assert found["x.f"].dtype == torch.float16
    if kind == "float4":
        assert raw(found["x.w"].view(torch.uint8)) == raw(tensor.view(torch.uint8))
    else:
        identical(found["x.w"], tensor)


@pytest.mark.parametrize("name", ["int8", "complex64", "float4_e2m1fn_x2", "float13", ""])
def test_a_type_that_nothing_can_be_cast_to_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(sdconvert.ChoiceError, match=r"can be cast to .*bfloat16"):
        sdconvert.convert(saved({"x.w": torch.ones(1)}, tmp_path / "m.pt"), tmp_path / "o.safetensors", dtype=name)


@pytest.mark.parametrize("target", ["float8_e4m3fn", "float64"])
def test_a_cast_takes_memory_by_the_block(target: str) -> None:
    """What Python sees of it; torch's own memory is the same buffers."""
    data = bytes(32 << 20)
    tensor = strided(
        BY_NAME["float64"],
        (4 << 20,),
        Storage(MemorySource(data), 0, len(data), "s"),
        0,
        contiguous_strides((4 << 20,)),
    )
    out, scratch = memoryview(bytearray((4 << 20) * BY_NAME[target].itemsize)), memoryview(bytearray(SCRATCH))
    cast(tensor, 0, out[: BY_NAME[target].itemsize], BY_NAME[target], scratch)  # Imports torch.
    tracemalloc.start()
    try:
        cast(tensor, 0, out, BY_NAME[target], scratch)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
