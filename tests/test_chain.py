"""``zip://policy.pth::ppo.zip``: one file of an archive as the source, as fsspec spells it."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import sdconvert
from sdconvert.cli import main
from tests.outputs import contents, same

WEIGHTS = {"a.w": torch.arange(6.0).view(2, 3), "a.b": torch.ones(2)}


def saved(*, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(WEIGHTS, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return stream.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("link", "data"),
    [
        ("zip://run/policy.pth", zip_of({"run/policy.pth": saved(), "other.pth": saved()})),
        ("zip:///run/policy.pth", zip_of({"run/policy.pth": saved()}, zipfile.ZIP_DEFLATED)),
        ("zip://run/policy.pth", zip_of({"run/policy.pth": saved(zipped=False)})),
        ("tar://run/policy.pth", tar_of({"./run/policy.pth": saved()})),
        ("tar://run/policy.pth", gzip.compress(tar_of({"run/policy.pth": saved()}))),
        ("zip://policy.pth::tar://a.zip", tar_of({"a.zip": zip_of({"policy.pth": saved()})})),
        ("tar://policy.pth::zip://a.tar.gz", zip_of({"a.tar.gz": gzip.compress(tar_of({"policy.pth": saved()}))})),
    ],
)
def test_the_file_is_read_where_it_is(link: str, data: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "archive.bin"
    archive.write_bytes(data)
    report = sdconvert.convert(f"{link}::{archive}")
    # Named for the file in the archive, beside the archive.
    assert [one.path for one in report.outputs] == [str(tmp_path / "policy.safetensors")]
    assert same(contents(tmp_path / "policy.safetensors"), WEIGHTS)
    assert sdconvert.verify(f"{link}::{archive}", tmp_path / "policy.safetensors").equal


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_archive_may_be_far_away(method: int, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    name = f"/chained-{tmp_path.name}-{method}.zip"
    fsspec.filesystem("memory").pipe(name, zip_of({"run/policy.pth": saved(), "x.txt": b"-" * 100}, method))
    sdconvert.convert(f"zip://run/policy.pth::memory:/{name}", tmp_path / "o.safetensors")
    assert same(contents(tmp_path / "o.safetensors"), WEIGHTS)
    sdconvert.convert(f"memory:/{name}", tmp_path / "p.safetensors")
    assert same(contents(tmp_path / "p.safetensors"), WEIGHTS)


def test_it_is_a_choice_that_always_works(tmp_path: Path) -> None:
    """Also where the archive by itself is refused, for what lies beside the file."""
    (tmp_path / "m.zip").write_bytes(zip_of({"good.pt": saved(), "bad.pt": saved()[:-50]}))
    with pytest.raises(sdconvert.UnreadableError, match=r"bad\.pt"):
        sdconvert.convert(tmp_path / "m.zip")
    sdconvert.convert(f"zip://good.pt::{tmp_path / 'm.zip'}")
    assert same(contents(tmp_path / "good.safetensors"), WEIGHTS)


def test_the_command_line_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.zip").write_bytes(zip_of({"good.pt": saved()}))
    assert main(["to-safetensors", f"zip://good.pt::{tmp_path / 'm.zip'}", str(tmp_path / "o.safetensors")]) == 0
    assert main(["to-safetensors", f"zip://none.pt::{tmp_path / 'm.zip'}", str(tmp_path / "p.safetensors")]) == 1
    assert "zip://none.pt: there is no such file in the archive. There is good.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("zip://a.pt", sdconvert.ChoiceError, "names no archive"),
        ("zip://::{}", sdconvert.ChoiceError, "names no file"),
        ("zip://b.pt::{}", sdconvert.ChoiceError, "no such file in the archive. There is a.pt, deep/"),
        ("zip://../a.pt::{}", sdconvert.ChoiceError, "no such file"),
        ("zip://deep::{}", sdconvert.ChoiceError, "no such file"),
        ("tar://a.pt::{}", sdconvert.UnreadableError, "is not a tar"),
        ("zip://x::zip://a.pt::{}", sdconvert.ChoiceError, "no such file"),
        ("zip://x::tar://a.pt::{}", sdconvert.UnreadableError, "is not a tar"),
        ("zip://a.pt::.", sdconvert.UnreadableError, "is a directory"),
        ("zip://a.pt::{}.missing", sdconvert.UnreadableError, "cannot be opened"),
        ("::".join(["zip://a"] * 9) + "::{}", sdconvert.UnreadableError, "containers inside each other"),
    ],
)
def test_what_cannot_be_is_refused(source: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(zip_of({"a.pt": saved(), "deep/b.pt": saved()}))
    with pytest.raises(error, match=words):
        sdconvert.convert(source.format(tmp_path / "m.zip"), tmp_path / "o.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.zip"]


def test_the_archive_itself_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(zip_of({"m.pt": saved()}))
    with pytest.raises(sdconvert.SdconvertError, match=r"source|itself"):
        sdconvert.convert(f"zip://m.pt::{path}", overwrite=True)
    assert zipfile.is_zipfile(path)


def test_a_file_whose_checksum_is_wrong_is_refused(tmp_path: Path) -> None:
    data = bytearray(zip_of({"m.pt": saved(zipped=False)}))
    data[data.find(bytes(WEIGHTS["a.w"].numpy()))] ^= 1
    (tmp_path / "m.zip").write_bytes(data)
    with pytest.raises(sdconvert.UnreadableError, match="checksum"):
        sdconvert.convert(f"zip://m.pt::{tmp_path / 'm.zip'}")
