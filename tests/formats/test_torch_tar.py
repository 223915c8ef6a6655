"""What torch saved before 0.1.10: a tar of storages, tensors and a pickle. torch still reads it, and is the oracle."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from tests.outputs import contents


class Persistent:
    """Stands for a tensor that lies outside of the pickle, under a key."""

    def __init__(self, key: int) -> None:
        self.key = key


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> str | None:
        return str(obj.key) if isinstance(obj, Persistent) else None


def pickled(obj: Any) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, 2).dump(obj)
    return stream.getvalue()


def old_tar(tensors: dict[str, torch.Tensor], views: list[tuple[int, int, int, int]], form: int) -> bytes:
    """The file that torch 0.1.9 would have written of a state dict, as ``legacy_load`` reads it."""
    storages, described, keys = b"", b"", {}
    for number, tensor in enumerate(tensors.values()):
        key = 94_000_000 + number
        storage = tensor.untyped_storage()
        kind = tensor.type().rpartition(".")[2].replace("Tensor", "Storage")
        storages += pickled((key, "cpu", getattr(torch, kind)))
        storages += struct.pack("<q", storage.nbytes() // tensor.element_size()) + bytes(storage)
        described += pickled((1000 + number, key, "Tensor"))
        described += struct.pack("<i4x", tensor.dim())
        described += struct.pack(f"<{tensor.dim()}q{tensor.dim()}q", *tensor.shape, *tensor.stride())
        described += struct.pack("<q", tensor.storage_offset())
        keys[list(tensors)[number]] = 1000 + number
    root = OrderedDict((name, Persistent(key)) for name, key in keys.items())
    files = {
        "sys_info": pickled({"protocol_version": 1000, "little_endian": True, "type_sizes": {}}),
        "pickle": pickled(root),
        "tensors": pickled(len(tensors)) + described,
        "storages": pickled(len(tensors)) + storages + pickled(views),
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1485000000.25  # A time with a fraction makes a pax header, as it did.
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.randn(4, 3, 2),
        "conv.bias": torch.randn(10)[2:6],
        "fc.weight": torch.randn(5, 3).t(),
        "steps": torch.arange(6),
        "mean": torch.randn(2).double(),
    }


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_it_gives_what_torch_gives(form: int, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.pth.tar"
    path.write_bytes(old_tar(tensors, [], form))
    theirs = torch.load(path, weights_only=False)

    report = sdconvert.convert(path, tmp_path / "o.safetensors")

    assert report.container == "torch-tar"
    found = contents(tmp_path / "o.safetensors")
    assert found.keys() == theirs.keys() == tensors.keys()
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)


def test_a_storage_that_is_cut_short_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    data = old_tar(tensors, [], tarfile.USTAR_FORMAT)
    (tmp_path / "old.tar").write_bytes(data[: data.rindex(b"storages\0") + 700])
    with pytest.raises(sdconvert.UnreadableError):
        sdconvert.convert(tmp_path / "old.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_not_a_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("pickle")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(sdconvert.UnreadableError, match="not a regular file"):
        sdconvert.convert(tmp_path / "x.tar")


def test_an_archive_around_other_files_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(__file__, "weights.th")
    with pytest.raises(sdconvert.UnsupportedError, match=r"archive around other files \(weights.th\)"):
        sdconvert.convert(tmp_path / "x.tar")
