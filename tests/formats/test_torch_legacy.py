"""What the legacy stream is: five pickles, then for each storage its count and its elements."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

import sdconvert
from tests.outputs import contents


def legacy(obj: object, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    torch.save(obj, stream, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    weights = {"a.w": torch.randn(3, 4), "b.w": torch.arange(5), "c.w": torch.tensor(2.5).double()}
    (tmp_path / "m.pt").write_bytes(legacy(weights, protocol))
    report = sdconvert.convert(tmp_path / "m.pt")
    assert report.container == "torch-legacy"
    found = contents(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_dtypes_without_a_storage_class_are_read_though_torch_itself_cannot(tmp_path: Path) -> None:
    weights = {"u.w": torch.tensor([1, 65535], dtype=torch.uint16), "f.w": torch.randn(4).to(torch.float8_e5m2)}
    (tmp_path / "m.pt").write_bytes(legacy(weights))
    sdconvert.convert(tmp_path / "m.pt")
    found = contents(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name].view(torch.uint8), weights[name].view(torch.uint8)) for name in weights)


def test_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.arange(20.0)
    weights = {"a.w": base[:10], "b.w": base[10:], "c.w": base[::2], "d.w": base.view(4, 5).t()}
    (tmp_path / "m.pt").write_bytes(legacy(weights))
    report = sdconvert.convert(tmp_path / "m.pt")
    found = contents(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert any("overlap" in warning for warning in report.warnings)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = legacy({"a.w": torch.randn(3)})
    for size in range(16, len(whole)):
        (tmp_path / "m.pt").write_bytes(whole[:size])
        with pytest.raises(sdconvert.SdconvertError):
            sdconvert.convert(tmp_path / "m.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_second_checkpoint_behind_it_is_refused_with_the_place(tmp_path: Path) -> None:
    whole = legacy({"a.w": torch.randn(3)})
    (tmp_path / "m.pt").write_bytes(whole + whole)
    with pytest.raises(sdconvert.UnreadableError, match=f"{len(whole)} bytes follow.*after byte {len(whole)}"):
        sdconvert.convert(tmp_path / "m.pt")
