"""Bare pickles, gzip, safetensors, and files that are something else."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdconvert
from tests.outputs import contents


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_tensors_carry_a_legacy_file_each(protocol: int, tmp_path: Path) -> None:
    weights = {"a.w": torch.randn(300, 9), "b.w": torch.arange(3)}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(weights, protocol))
    report = sdconvert.convert(tmp_path / "m.pkl")
    found = contents(tmp_path / "m.safetensors")
    assert report.container == "pickle"
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8", ">f4", ">i8"]
)
def test_pickled_arrays(dtype: str, protocol: int, tmp_path: Path) -> None:
    arrays = {"c": (np.arange(12) % 3).reshape(3, 4).astype(dtype)}
    arrays |= {"f": np.asfortranarray(arrays["c"]), "s": np.array(arrays["c"][0, 0]), "e": np.zeros((0, 2), dtype)}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(arrays, protocol))
    sdconvert.convert(tmp_path / "m.pkl")
    found = contents(tmp_path / "m.safetensors")
    for name, array in arrays.items():
        expected = torch.from_numpy(
            np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape)
        )
        assert torch.equal(found[name], expected), name


def test_arrays_beside_torch_tensors_are_left_out_and_said(tmp_path: Path) -> None:
    torch.save({"w.a": torch.ones(2), "mean": np.zeros(3)}, tmp_path / "m.pt")
    report = sdconvert.convert(tmp_path / "m.pt")
    assert [(one.name, one.why) for one in report.skipped] == [("mean", "a numpy array beside torch tensors")]


def test_arrays_beside_torch_tensors_are_taken_when_their_key_is_given(tmp_path: Path) -> None:
    torch.save({"model": {"w.a": torch.ones(2)}, "stats": {"mean": np.arange(3.0)}}, tmp_path / "m.pt")
    sdconvert.convert(tmp_path / "m.pt", key="stats")
    assert torch.equal(contents(tmp_path / "m.safetensors")["mean"], torch.arange(3.0).double())


@pytest.mark.parametrize("zipped", [True, False])
def test_gzip_around_a_checkpoint(zipped: bool, tmp_path: Path) -> None:
    torch.save({"a.w": torch.arange(5.0)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "m.pt.gz").write_bytes(gzip.compress((tmp_path / "m.pt").read_bytes()))
    report = sdconvert.convert(tmp_path / "m.pt.gz", tmp_path / "o.safetensors")
    assert report.container == ("gzip+torch-zip" if zipped else "gzip+torch-legacy")
    assert torch.equal(contents(tmp_path / "o.safetensors")["a.w"], torch.arange(5.0))


def test_a_damaged_gzip_stream_is_refused(tmp_path: Path) -> None:
    torch.save({"a.w": torch.arange(500.0)}, tmp_path / "m.pt")
    data = bytearray(gzip.compress((tmp_path / "m.pt").read_bytes()))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "m.gz").write_bytes(data)
    with pytest.raises(sdconvert.UnreadableError, match="gzip stream"):
        sdconvert.convert(tmp_path / "m.gz", tmp_path / "o.safetensors")


def test_safetensors_in_safetensors_out_is_the_same_file(tmp_path: Path) -> None:
    save_file({"b": torch.randn(3), "a": torch.arange(4)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    sdconvert.convert(tmp_path / "m.safetensors", tmp_path / "o.safetensors")
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_aliases_and_metadata_of_a_safetensors_file_live_on(tmp_path: Path) -> None:
    metadata = {"format": "pt", "head": "embed", "author": "me"}
    save_file({"embed": torch.randn(3)}, tmp_path / "m.safetensors", metadata=metadata)
    report = sdconvert.convert(tmp_path / "m.safetensors", tmp_path / "o.safetensors")
    assert dict(report.aliases) == {"head": "embed"}
    data = (tmp_path / "o.safetensors").read_bytes()
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"] == metadata


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x93NUMPY\x01\0" + bytes(64), "numpy array"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(64), "7z"),
        (b'{"error": "not found"}', "JSON"),
        (b"Not Found", "text file"),
        (bytes(1000), "zeros only"),
        (pickle.dumps({"a": 1}), "no tensors"),
        (b"\x80\4cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81\5\xff\xff" + bytes(64), "joblib"),
    ],
)
def test_what_is_no_checkpoint_is_named(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(sdconvert.SdconvertError, match=words):
        sdconvert.convert(tmp_path / "m.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("name", ["latest", "saved_model.pb", "nothing"])
def test_a_directory_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(sdconvert.UnsupportedError, match="is a"):
        sdconvert.convert(tmp_path)
