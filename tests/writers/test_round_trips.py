"""There and back again: whatever torch saved, as .pt and as safetensors, in any order, is the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import sdconvert
from tests.outputs import contents, same
from tests.test_same_bytes import names, tensors


@st.composite
def tied_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Any names, dtypes and shapes (empty and 0-dim too); some names are another's tensor, some a view of it."""
    state = draw(st.dictionaries(names, tensors(), min_size=1, max_size=6))
    for name in draw(st.lists(names, max_size=3)):
        other = state[draw(st.sampled_from(sorted(state)))]
        # A view with half of the elements shares a storage and is no tie.
        state.setdefault(name, other[::2] if other.dim() and draw(st.booleans()) else other)
    return state


@settings(max_examples=150)
@given(state=tied_dicts(), zipped=st.booleans())
def test_any_dict(state: dict[str, torch.Tensor], zipped: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("trip")
    torch.save(state, directory / "m", _use_new_zipfile_serialization=zipped)
    steps = [("m", "a.safetensors"), ("m", "a.pt"), ("a.pt", "b.safetensors"), ("a.safetensors", "b.pt")]
    for source, output in [*steps, ("b.pt", "c.safetensors"), ("a.pt", "c.pt")]:
        sdconvert.convert(directory / source, directory / output)
    first = (directory / "a.safetensors").read_bytes()
    assert (directory / "b.safetensors").read_bytes() == (directory / "c.safetensors").read_bytes() == first
    assert (directory / "a.pt").read_bytes() == (directory / "c.pt").read_bytes()
    assert same(contents(directory / "a.safetensors"), state)
    for mmap in (False, True):
        found = torch.load(directory / "a.pt", weights_only=True, mmap=mmap)
        assert list(found) == list(state)
        assert same(found, state)
    report = sdconvert.convert(directory / "m", dry_run=True)
    found = torch.load(directory / "a.pt", weights_only=True)
    for alias, kept in report.aliases.items():
        assert found[alias].data_ptr() == found[kept].data_ptr()
    # Nothing but the tensors' own bytes is in a storage.
    assert all(one.untyped_storage().nbytes() == one.numel() * one.itemsize for one in found.values())
    for name in ("a.pt", "a.safetensors", "b.pt", "c.safetensors"):
        assert sdconvert.verify(directory / "m", directory / name).equal


def test_what_only_a_pt_can_hold(tmp_path: Path) -> None:
    weight = torch.arange(12.0).to(torch.complex128).reshape(3, 4) * (1 + 2j)
    state = {"a.w": weight, "b.w": weight[0, 0], "c.w": weight.conj(), "d.w": torch.empty(0, dtype=torch.complex128)}
    torch.save(state, tmp_path / "m.pt")
    sdconvert.convert(tmp_path / "m.pt", tmp_path / "o.pt")
    for mmap in (False, True):
        found = torch.load(tmp_path / "o.pt", weights_only=True, mmap=mmap)
        assert same(found, state)


@pytest.mark.slow
def test_a_hundred_thousand_names_and_back(tmp_path: Path) -> None:
    save_file(
        {f"layers.{i // 9}.w{i}": torch.tensor(i) for i in range(100_000)}, tmp_path / "a.safetensors", {"format": "pt"}
    )
    sdconvert.convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    sdconvert.convert(tmp_path / "b.pt", tmp_path / "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    found = torch.load(tmp_path / "b.pt", weights_only=True, mmap=True)
    assert len(found) == 100_000
    assert all(int(tensor) == int(name.rpartition("w")[2]) for name, tensor in found.items())
