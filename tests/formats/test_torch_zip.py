"""What a torch zip is: one folder, ``data.pkl``, a record for each storage, checksums that must hold."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

import sdconvert
from tests.outputs import contents


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(50, 40), "b.bias": torch.arange(7), "c.half": torch.randn(9).bfloat16()}


def rewritten(source: Path, output: Path, *, method: int = zipfile.ZIP_STORED, **changed: bytes) -> None:
    """The same records in a zip that Python wrote, some with other content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(output, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.rpartition("/")[2], old.read(name)))


def check(path: Path, expected: dict[str, torch.Tensor]) -> sdconvert.Report:
    report = sdconvert.convert(path, path.with_suffix(".safetensors"))
    found = contents(path.with_suffix(".safetensors"))
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )
    return report


@pytest.mark.parametrize("name", ["plain.pt", "weird.name.v1.pt", "no_ending", "ünïcode.bin"])
def test_the_folder_inside_is_called_anything(name: str, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / name)
    (tmp_path / name).rename(tmp_path / "renamed.pt")
    assert check(tmp_path / "renamed.pt", weights).container == "torch-zip"


def test_records_may_be_deflated(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "m.pt")
    rewritten(tmp_path / "m.pt", tmp_path / "d.pt", method=zipfile.ZIP_DEFLATED)
    check(tmp_path / "d.pt", weights)


def test_large_deflated_records_go_through_one_temporary_file(tmp_path: Path) -> None:
    weights = {f"{i}.w": torch.randn(600_000) for i in range(4)}
    torch.save(weights, tmp_path / "m.pt")
    rewritten(tmp_path / "m.pt", tmp_path / "d.pt", method=zipfile.ZIP_DEFLATED)
    check(tmp_path / "d.pt", weights)


def test_big_endian_storages_are_swapped(tmp_path: Path) -> None:
    weights = {"f": torch.randn(5), "d": torch.randn(3).double(), "c": torch.randn(4, dtype=torch.complex64)}
    weights |= {"u": torch.tensor([1, 515], dtype=torch.uint16), "b": torch.tensor([1, 2], dtype=torch.uint8)}
    torch.save(weights, tmp_path / "m.pt")
    swapped = {"byteorder": b"big"}
    for number, tensor in enumerate(weights.values()):
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        swapped[str(number)] = real.numpy().byteswap().tobytes()
    rewritten(tmp_path / "m.pt", tmp_path / "big.pt", **swapped)
    check(tmp_path / "big.pt", weights)


def test_without_checksums_it_is_read_and_said(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert any("no checksums" in warning for warning in check(tmp_path / "m.pt", weights).warnings)


@pytest.mark.parametrize("size", [10, 2_000_000])
@pytest.mark.parametrize("part", ["whole", "slice", "transposed"])
def test_a_flipped_bit_is_found_and_the_record_named(part: str, size: int, tmp_path: Path) -> None:
    base = torch.arange(size * 2.0).reshape(2, size)
    tensor = {"whole": base, "slice": base[0], "transposed": base.t()}[part]
    torch.save({"a.w": tensor}, tmp_path / "m.pt")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    at = data.index(struct.pack("<5f", *range(size + 1, size + 6)))
    data[at] ^= 1
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(sdconvert.UnreadableError, match=r"data/0: checksum"):
        sdconvert.convert(tmp_path / "m.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_storage_of_another_size_than_announced_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "m.pt")
    rewritten(tmp_path / "m.pt", tmp_path / "x.pt", **{"0": b"\0" * 7996})
    with pytest.raises(sdconvert.UnreadableError, match="8000 bytes and has 7996"):
        sdconvert.convert(tmp_path / "x.pt")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(fraction: float, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "m.pt")
    data = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(sdconvert.UnreadableError):
        sdconvert.convert(tmp_path / "m.pt")


def test_a_prefix_and_a_tail_are_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(weights, stream)
    for number, data in enumerate((b"junk" + stream.getvalue(), stream.getvalue() + b"junk", stream.getvalue() * 2)):
        (tmp_path / f"{number}.pt").write_bytes(data)
        with pytest.raises(sdconvert.SdconvertError):
            sdconvert.convert(tmp_path / f"{number}.pt")


@pytest.mark.slow
def test_zip64_offsets_are_followed(tmp_path: Path) -> None:
    """A file of more than 4 GB whose large storage is a hole; only the small ones behind it are converted."""
    weights = {"big.w": torch.empty(4_400_000_000, dtype=torch.uint8, device="meta"), "z.w": torch.arange(5.0)}
    weights["big.w"] = torch.empty(1, dtype=torch.uint8).expand(1)
    with torch.serialization.skip_data():
        torch.save({"big.w": torch.empty(4_400_000_000, dtype=torch.uint8), "z.w": weights["z.w"]}, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size > 1 << 32
    with sdconvert.open(tmp_path / "m.pt") as opened:
        assert opened.state_dict["big.w"].shape == (4_400_000_000,)
        assert opened.state_dict["z.w"].shape == (5,)
