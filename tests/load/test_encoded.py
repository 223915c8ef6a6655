"""Tensors that are no plain tensors, loaded: what `torch.load` gives of the same file, in models too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert.errors import UnsupportedError
from tests.test_encodings import KINDS, identical
from tests.test_subclasses import BUILDS, Kind, OldKind, Settings, Wrapper, same_state

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SOURCES = ["m.pt", "m.safetensors", "n.pt", "sharded"]


@pytest.fixture
def allowed() -> Iterator[None]:
    with torch.serialization.safe_globals([Wrapper, Settings, Kind, OldKind]):
        yield


def files(state: Any, directory: Path) -> dict[str, torch.Tensor]:
    """The state dict as torch.save's file, and all that it is converted to; what torch loads of it."""
    torch.save(state, directory / "m.pt")
    for name in ("m.safetensors", "n.pt"):
        sdconvert.convert(directory / "m.pt", directory / name)
    (directory / "sharded").mkdir()
    sdconvert.convert(directory / "m.pt", directory / "sharded" / "model.safetensors", max_shard_size=40)
    truth: dict[str, torch.Tensor] = torch.load(directory / "m.pt", weights_only=False)
    return truth


class Holder(nn.Module):
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.register_buffer("w", tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_torch_loads(kind: str, tmp_path: Path) -> None:
    truth = files({"a": torch.ones(30), "x.w": KINDS[kind](), "z": torch.zeros(30)}, tmp_path)
    for source in SOURCES:
        for copy in ("auto", "read"):
            found = sdconvert.load(tmp_path / source, copy=copy)
            assert list(found) == list(truth) or (found.keys() == truth.keys() and not source.endswith(".pt"))
            identical(found["x.w"], truth["x.w"].detach())
    kept = sdconvert.load(tmp_path / "m.pt", include="x.*", dtype="float16", device={"x": "meta"})
    assert kept["x.w"].is_meta
    assert kept["x.w"].dtype == (torch.float16 if kind == "complex128_negative" else truth["x.w"].dtype)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("build", BUILDS)
def test_wrappers_are_what_torch_loads(build: Callable[[], Wrapper], tmp_path: Path) -> None:
    truth = files({"x.w": build(), "x.b": torch.ones(2)}, tmp_path)
    for source in SOURCES:
        found = sdconvert.load(tmp_path / source)
        assert list(found) == list(truth) or (found.keys() == truth.keys() and not source.endswith(".pt"))
        same_state(found["x.w"], truth["x.w"])


@pytest.mark.parametrize("assign", ["auto", True])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"jagged", "jagged_with_lengths"}))
def test_every_kind_goes_into_a_model(kind: str, assign: bool | str, tmp_path: Path) -> None:
    """torch itself refuses some: CSR with another number of elements, 4 bits and nested ones in place."""
    truth = files(Holder(KINDS[kind]().detach()).state_dict(), tmp_path)
    for source in (*SOURCES, truth):
        model = Holder(KINDS[kind]().detach())
        held = model.w
        result = sdconvert.load_into(model, tmp_path / source if isinstance(source, str) else source, assign=assign)
        assert set(result.loaded) == truth.keys()
        assert (model.w is held) == (assign == "auto")
        identical(model.w, truth["w"])
        assert torch.equal(model.before.weight, truth["before.weight"])


class Jagged(nn.Module):
    def __init__(self, kind: str, as_parameter: bool) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)
        tensor = KINDS[kind]().detach()
        if as_parameter:
            self.w = nn.Parameter(tensor)
        else:
            self.register_buffer("w", tensor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("as_parameter", [False, True])
@pytest.mark.parametrize("kind", ["jagged", "jagged_with_lengths"])
def test_jagged_tensors_are_assigned_or_refused(kind: str, as_parameter: bool, tmp_path: Path) -> None:
    """torch itself never loads them: their shape has a symbol in it that no other tensor has. Setting `data` of one
    does nothing."""
    truth = files(Jagged(kind, as_parameter).state_dict(), tmp_path)
    for source in (*(tmp_path / name for name in SOURCES), truth):
        model = Jagged(kind, as_parameter)
        if as_parameter:
            model.w.marked = True
        sdconvert.load_into(model, source, assign=True)
        identical(model.w.detach(), truth["w"].detach())
        assert isinstance(model.w, nn.Parameter) == model.w.requires_grad == getattr(model.w, "marked", False)
        assert isinstance(model.w, nn.Parameter) == as_parameter
        before = {name: value.clone() for name, value in model.before.state_dict().items()}
        other = {"w": KINDS[kind]().detach(), "before.weight": torch.ones(3, 3), "before.bias": torch.ones(3)}
        with pytest.raises(UnsupportedError, match=r"^w does not go into the model.* in place\. assign=True may"):
            sdconvert.load_into(model, other)
        identical(model.w.detach(), truth["w"].detach())
        assert all(torch.equal(value, before[name]) for name, value in model.before.state_dict().items())


@pytest.mark.parametrize("kind", ["qint8_per_channel", "four_bits", "csr", "coo"])
def test_what_is_filled_in_place_does_not_share_memory_with_its_source(kind: str, tmp_path: Path) -> None:
    state = {"x.a": KINDS[kind](), "x.b": KINDS[kind]()}
    model = nn.ModuleDict({"x": nn.Module()})
    for name in ("a", "b"):
        model["x"].register_buffer(name, KINDS[kind]())
    sdconvert.load_into(model, state)
    identical(model["x"].a, state["x.a"])

    def memory(tensor: torch.Tensor) -> int:
        return (tensor.values() if tensor.layout == torch.sparse_csr else tensor._values()).data_ptr()

    at = memory if "c" in kind and "q" not in kind else torch.Tensor.data_ptr
    assert at(model["x"].a) != at(state["x.a"])


def test_ties_of_encoded_tensors_are_one_tensor(tmp_path: Path) -> None:
    one, two = KINDS["qint8_per_channel"](), KINDS["coo"]()
    files({"x.a": one, "x.b": two, "y.a": one, "y.b": two}, tmp_path)
    for source in SOURCES:
        found = sdconvert.load(tmp_path / source)
        assert found["x.a"] is found["y.a"], source
        assert found["x.b"] is found["y.b"], source


def test_what_torch_does_not_take_in_place_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    state = Holder(torch.eye(3).to_sparse()).state_dict()
    torch.save(state, tmp_path / "m.pt")
    model = Holder(torch.ones(3, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = dict(model.state_dict(keep_vars=True))
    with pytest.raises(sdconvert.UnsupportedError, match=r"w does not go into the model, torch says: .*assign=True"):
        sdconvert.load_into(model, tmp_path / "m.pt")
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is held[name]
        assert torch.equal(value, before[name])
    sdconvert.load_into(model, tmp_path / "m.pt", assign=True)
    identical(model.w, state["w"])


def test_after_a_refusal_what_was_filled_before_it_is_put_back(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self, w: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("a", torch.eye(2).to_sparse_csr() * 3)
            self.register_buffer("q", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
            self.register_buffer("w", w)

    model, other = Two(torch.ones(3, 3)), Two(torch.eye(3).to_sparse())
    other.a = torch.ones(2, 2).to_sparse_csr()
    other.q = torch.quantize_per_tensor(torch.zeros(3), 0.5, 7, torch.qint8)
    torch.save(other.state_dict(), tmp_path / "m.pt")
    a, q = model.a, model.q
    with pytest.raises(sdconvert.UnsupportedError):
        sdconvert.load_into(model, tmp_path / "m.pt")
    assert model.a is a
    assert model.q is q
    identical(a, Two(torch.ones(1)).a)
    identical(q, Two(torch.ones(1)).q)


@pytest.mark.usefixtures("allowed")
def test_wrappers_go_into_a_skeleton_as_parameters(tmp_path: Path) -> None:
    """As torchao's quantized weights do, in the place of plain ones."""
    truth = files({"weight": BUILDS[1](), "bias": torch.ones(2)}, tmp_path)
    for source in SOURCES:
        with sdconvert.skeleton():
            model = nn.Linear(3, 2)
        model.weight.requires_grad_(False)
        sdconvert.load_into(model, tmp_path / source)
        assert isinstance(model.weight, Wrapper)
        assert model.weight.__dict__.pop("_is_param") is True
        same_state(model.weight, truth["weight"])


def test_a_class_that_torch_does_not_allow_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    files({"weight": BUILDS[0](), "bias": torch.ones(2)}, tmp_path)
    with sdconvert.skeleton():
        model = nn.Linear(3, 2)
    weight = model.weight
    with pytest.raises(sdconvert.UnsupportedError, match=r"weight: .*add_safe_globals"):
        sdconvert.load_into(model, tmp_path / "m.safetensors")
    assert model.weight is weight
