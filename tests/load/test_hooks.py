"""Modules with their own way of loading, and hooks around it: as with ``load_state_dict``, and undone on error."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert import MismatchError
from tests.load.models import same_bits, same_model, trained


def file_of(state: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "m.pt"
    torch.save(state, path)
    return path


class Renaming(nn.Module):
    """An override that knows an older name, and hands on to the base class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.child = nn.Linear(2, 2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "kernel" in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")
        for name in list(state_dict):
            if name.startswith(prefix + "old_child."):
                state_dict[name.replace("old_child.", "child.")] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Computing(nn.Module):
    """An override that computes with the values, in both directions that people use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.loads = 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.loads += 1
        total = state_dict[prefix + "weight"].sum().item()
        state_dict[prefix + "weight"] = state_dict[prefix + "weight"] / total
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Writing(nn.Module):
    """An override that does everything by itself, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, meta: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        if prefix + "weight" in state_dict:
            with torch.no_grad():
                self.weight.copy_(state_dict[prefix + "weight"] + 1)
        else:
            missing.append(prefix + "weight")


class Resizing(nn.Module):
    """A queue that becomes as long as the saved one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(0, 2))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.queue = torch.empty_like(state_dict[prefix + "queue"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


CASES: list[tuple[type[nn.Module], dict[str, torch.Tensor]]] = [
    (Renaming, {"kernel": torch.arange(3.0), "old_child.weight": torch.ones(2, 2), "old_child.bias": torch.ones(2)}),
    (Computing, {"weight": torch.arange(3.0)}),
    (Writing, {"weight": torch.arange(3.0)}),
    (Resizing, {"queue": torch.ones(5, 2)}),
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("kind", "state"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_an_override_does_what_it_does_for_torch(
    kind: type[nn.Module], state: dict[str, torch.Tensor], nested: bool, tmp_path: Path
) -> None:
    if nested:
        state = {f"0.{name}": value for name, value in state.items()} | {"1.weight": torch.ones(1, 1)}

    def make() -> nn.Module:
        return nn.Sequential(kind(), nn.Linear(1, 1, bias=False)) if nested else kind()

    theirs, ours = make(), make()
    theirs.load_state_dict(state)
    held = dict(ours.named_parameters())
    assert sdconvert.load_into(ours, file_of(state, tmp_path)) == ([], [])
    assert same_model(ours, theirs)
    assert all(param is held[name] for name, param in ours.named_parameters())


@pytest.mark.parametrize(("kind", "state"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_after_an_error_all_is_as_it_was(kind: type[nn.Module], state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = nn.Sequential(kind(), nn.Linear(2, 2))
    before = copy.deepcopy(model)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    broken = {f"0.{name}": value for name, value in state.items()} | {"1.weight": torch.ones(3, 2)}
    with pytest.raises(MismatchError) as ours:
        sdconvert.load_into(model, file_of(broken, tmp_path))
    for_torch = copy.deepcopy(model)
    with pytest.raises(RuntimeError) as theirs:
        for_torch.load_state_dict(broken)
    assert str(ours.value).startswith(str(theirs.value))
    assert same_model(model, before)
    assert all(tensor is held[name] for name, tensor in [*model.named_parameters(), *model.named_buffers()])
    assert vars(model[0]).keys() == vars(before[0]).keys()


def test_an_error_of_the_modules_own_goes_through_and_all_is_as_it_was(tmp_path: Path) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
            with torch.no_grad():
                self.weight.fill_(5)
            raise KeyError("mine")

    model = nn.Sequential(Writing(), Failing())
    with pytest.raises(KeyError, match="mine"):
        sdconvert.load_into(model, file_of({"0.weight": torch.ones(3), "1.weight": torch.ones(2)}, tmp_path))
    assert not model[0].weight.any()
    assert not model[1].weight.any()


def test_a_hook_before_a_load_runs_once_and_may_rename_what_is_below_it(tmp_path: Path) -> None:
    calls: list[str] = []

    def hook(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        calls.append(prefix)
        for name in list(state_dict):
            state_dict[name.replace("old", "new")] = state_dict.pop(name)

    state = {"old.weight": torch.ones(2, 2), "old.bias": torch.ones(2)}
    models = []
    for _ in range(2):
        model = nn.Module()
        model.new = nn.Linear(2, 2)
        model.register_load_state_dict_pre_hook(hook)
        models.append(model)
    models[0].load_state_dict(state)
    calls.clear()
    result = sdconvert.load_into(models[1], file_of(state, tmp_path))
    assert calls == [""]
    assert result == ([], [])
    assert same_model(models[1], models[0])


def test_a_hook_after_a_load_sees_the_weights_and_may_forgive(tmp_path: Path) -> None:
    seen: list[float] = []

    def hook(module: nn.Module, keys: Any) -> None:
        seen.append(float(module.weight.detach().sum()))
        keys.missing_keys.clear()

    model = nn.Linear(2, 2)
    model.register_load_state_dict_post_hook(hook)
    sdconvert.load_into(model, file_of({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path))
    assert seen == [4.0]
    result = sdconvert.load_into(model, file_of({"weight": torch.full((2, 2), 2.0)}, tmp_path))
    assert result.missing_keys == []
    assert float(model.weight.detach().sum()) == 8.0


class Stateful(nn.Module):
    def __init__(self, state: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize("state", [torch.arange(3.0), {"steps": 7, "names": ["a", "b"]}, 5, "text"], ids=repr)
def test_extra_state_comes_along(state: Any, tmp_path: Path) -> None:
    original = nn.Sequential(trained(Stateful(state)))
    for source in (file_of(original.state_dict(), tmp_path), original.state_dict()):
        model = nn.Sequential(Stateful())
        assert sdconvert.load_into(model, source) == ([], [])
        found = model[0].state
        assert torch.equal(found, state) if isinstance(state, torch.Tensor) else found == state
        assert same_bits(model[0].weight, original[0].weight)


def test_extra_state_that_one_side_lacks_is_named_as_torch_names_it(tmp_path: Path) -> None:
    path = file_of({"weight": torch.ones(2)}, tmp_path)
    with pytest.raises(MismatchError, match=r'Missing key\(s\) in state_dict: "_extra_state"'):
        sdconvert.load_into(Stateful(), path)
    assert sdconvert.load_into(Stateful(), path, strict=False).missing_keys == ["_extra_state"]
    path = file_of({"weight": torch.ones(2, 2), "bias": torch.ones(2), "_extra_state": torch.ones(1)}, tmp_path)
    with pytest.raises(MismatchError, match=r'Unexpected key\(s\) in state_dict: "_extra_state"'):
        sdconvert.load_into(nn.Linear(2, 2), path)


def test_parametrized_modules(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        nn.utils.parametrizations.orthogonal(model[0])
        nn.utils.parametrizations.spectral_norm(model[1])
        return model

    original = make()
    path = file_of(original.state_dict(), tmp_path)
    for assign in ("auto", True):
        model = make()
        assert sdconvert.load_into(model, path, assign=assign) == ([], [])
        assert all(
            same_bits(a, b) for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True)
        )
        assert torch.equal(model[0].weight, original[0].weight)


def test_recurrent_modules_see_their_new_weights(tmp_path: Path) -> None:
    original = nn.LSTM(3, 4, num_layers=2)
    path = file_of(original.state_dict(), tmp_path)
    with sdconvert.skeleton():
        model = nn.LSTM(3, 4, num_layers=2)
    sdconvert.load_into(model, path)
    x = torch.randn(5, 1, 3)
    assert torch.equal(model(x)[0], original(x)[0])
