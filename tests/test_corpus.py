"""Every real checkpoint of the corpus does what its manifest says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import sdconvert
from sdconvert.errors import SdconvertError
from tests.corpus import Sample, samples
from tests.outputs import contents, described

SAMPLES = samples()


def those(*expectations: str) -> pytest.MarkDecorator:
    """The samples of these expectations, one test each; one test that says why where there is no corpus."""
    chosen = [one for one in SAMPLES if one.expect in expectations]
    missing = pytest.param(None, marks=pytest.mark.skip(reason="there is no corpus of real checkpoints here"))
    return pytest.mark.parametrize("sample", chosen or [missing], ids=str)


def written(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_manifest_speaks_of_the_files_that_are_there(corpus: Path) -> None:
    assert len(SAMPLES) >= 100
    for sample in SAMPLES:
        assert hashlib.sha256(sample.path.read_bytes()).hexdigest() == sample.sha256, sample


@those("convert")
def test_names_dtypes_shapes_and_bytes_are_torchs(sample: Sample, tmp_path: Path) -> None:
    report = sdconvert.convert(sample.path, tmp_path / "out.safetensors")
    tensors = contents(tmp_path / "out.safetensors")
    assert {name: described(tensor) for name, tensor in tensors.items()} == sample.tensors
    assert report.verified
    assert report.tensors + len(report.aliases) == len(tensors)
    assert written(tmp_path) == ["out.safetensors"]


@those("refuse")
def test_what_is_no_checkpoint_is_refused_in_one_line(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(SdconvertError) as caught:
        sdconvert.convert(sample.path, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert str(sample.path) in str(caught.value)
    assert written(tmp_path) == []


@those("either")
def test_what_could_be_either_converts_whole_or_is_refused(sample: Sample, tmp_path: Path) -> None:
    try:
        report = sdconvert.convert(sample.path, tmp_path / "out.safetensors")
    except SdconvertError as error:
        assert "\n" not in str(error)
        assert written(tmp_path) == []
    else:
        assert written(tmp_path) == ["out.safetensors"]
        tensors = contents(tmp_path / "out.safetensors")
        assert report.tensors + len(report.aliases) == len(tensors) > 0
