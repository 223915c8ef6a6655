"""The .pt that is written: what torch itself writes of the same state dict, and what torch opens."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdconvert
from tests.corpus import Sample, samples
from tests.outputs import contents, described, same
from tests.test_same_bytes import DTYPES


def theirs(state: dict[str, torch.Tensor]) -> bytes:
    """torch.save of a state dict as a module gives it."""
    obj = OrderedDict(state)
    obj._metadata = OrderedDict()  # type: ignore[attr-defined]
    stream = io.BytesIO()
    torch.save(obj, stream)
    return stream.getvalue()


def loaded(path: Path, *, mmap: bool) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True, mmap=mmap)  # type: ignore[no-any-return]


def without_id(data: bytes) -> dict[str, bytes]:
    """The records, in order, without the one in which torch names its own build."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist() if "serialization_id" not in name}


tensors = st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)).map(
    lambda spec: (
        torch.randint(0, 255, (*spec[1], spec[0].itemsize), dtype=torch.uint8).view(spec[0]).squeeze(-1)
        if spec[0] is not torch.bool
        else torch.ones(spec[1], dtype=torch.bool)
    )
)


@settings(max_examples=150)
@given(state=st.dictionaries(st.text(min_size=1, max_size=6).filter(str.isprintable), tensors, min_size=1, max_size=6))
def test_the_records_are_torchs_own(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("pt")
    state = {f"a.{name}": tensor.clone() for name, tensor in state.items()}
    (directory / "m.pt").write_bytes(theirs(state))
    sdconvert.convert(directory / "m.pt", directory / "o.pt")
    data = (directory / "o.pt").read_bytes()
    assert without_id(data) == without_id(theirs(state))
    for mmap in (False, True):
        found = loaded(directory / "o.pt", mmap=mmap)
        assert list(found) == list(state)
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert found[name].untyped_storage().tolist() == tensor.untyped_storage().tolist()


def test_every_payload_is_aligned(tmp_path: Path) -> None:
    torch.save({f"{i}.w": torch.randn(i + 1) for i in range(30)}, tmp_path / "m.pt")
    sdconvert.convert(tmp_path / "m.pt", tmp_path / "o.pt")
    with zipfile.ZipFile(tmp_path / "o.pt") as archive:
        data = (tmp_path / "o.pt").read_bytes()
        for info in archive.infolist():
            head = data[info.header_offset :][:30]
            extra = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            assert (info.header_offset + 30 + extra) % 64 == 0


def test_ties_stay_ties_and_slices_get_storages_of_their_own(tmp_path: Path) -> None:
    base = torch.randn(1000, 10)
    torch.save({"a.w": base[:2], "b.w": base[:2], "c.w": base.t()[:1]}, tmp_path / "m.pt")
    sdconvert.convert(tmp_path / "m.pt", tmp_path / "o.pt")
    found = loaded(tmp_path / "o.pt", mmap=False)
    assert found["a.w"].data_ptr() == found["b.w"].data_ptr()
    assert found["a.w"].untyped_storage().nbytes() == 80
    assert torch.equal(found["c.w"], base.t()[:1])
    assert (tmp_path / "o.pt").stat().st_size < 10_000


@pytest.mark.parametrize("size", [1, 1_048_576 - 20, 1_048_576, 3_000_000])
def test_tensors_around_the_size_of_a_copy(size: int, tmp_path: Path) -> None:
    weights = {"a.w": torch.randn(size), "b.w": torch.randn(3), "c.w": torch.randn(size).view(1, -1).t()}
    torch.save(weights, tmp_path / "m.pt")
    sdconvert.convert(tmp_path / "m.pt", tmp_path / "o.pt")
    found = loaded(tmp_path / "o.pt", mmap=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert without_id((tmp_path / "o.pt").read_bytes())


def test_metadata_has_no_place(tmp_path: Path) -> None:
    torch.save({"a.w": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(sdconvert.ChoiceError, match="no place for metadata"):
        sdconvert.convert(tmp_path / "m.pt", tmp_path / "o.pt", metadata={"a": "b"})


CONVERTIBLE = [one for one in samples() if one.expect == "convert"]
MISSING = pytest.param(None, marks=pytest.mark.skip(reason="there is no corpus of real checkpoints here"))


@pytest.mark.parametrize("sample", CONVERTIBLE or [MISSING], ids=str)
def test_real_files_there_and_back_again(sample: Sample, tmp_path: Path) -> None:
    for number, (source, output) in enumerate(
        [(sample.path, "a.safetensors"), (sample.path, "a.pt"), ("a.safetensors", "b.pt"), ("b.pt", "b.safetensors")]
    ):
        sdconvert.convert(tmp_path / source if number else source, tmp_path / output)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    expected = contents(tmp_path / "a.safetensors")
    for mmap in (False, True):
        found = loaded(tmp_path / "a.pt", mmap=mmap)
        assert {name: described(tensor) for name, tensor in found.items()} == sample.tensors
        assert same(found, expected)
    report = sdconvert.convert(sample.path, dry_run=True)
    pointers = {found[alias].data_ptr() == found[kept].data_ptr() for alias, kept in report.aliases.items()}
    assert pointers <= {True}
