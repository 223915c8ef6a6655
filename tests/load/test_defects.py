"""What today's loaders get wrong or leave unsaid.

Each test first shows it, where that is cheap, then that it is right here.
"""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

import sdconvert
from sdconvert import MismatchError
from tests.load.models import Transformer, same_model, saved, trained


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


class Untied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)


class Rotary(nn.Module):
    """A buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.register_buffer("inv_freq", 1 / 10 ** torch.arange(0.0, 4.0), persistent=False)


def on_meta(make: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def test_1_a_strict_load_leaves_nothing_on_meta(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    original = Untied()
    save_model(original, str(path), metadata={"format": "pt"})
    theirs = on_meta(Untied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_model(theirs, path, strict=True) == (set(), [])
    assert all(param.is_meta for param in theirs.parameters()), "safetensors no longer does this"

    ours = on_meta(Untied)
    assert str(sdconvert.load_into(ours, path)) == "<All keys matched successfully>"
    assert same_model(ours, original)


def test_2_a_tied_file_of_safetensors_own_loads_strictly(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    original = Tied()
    save_model(original, str(path))
    with pytest.raises(RuntimeError, match="Missing key"):
        Tied().load_state_dict(load_file(path))
    for model in (Tied(), on_meta(Tied)):
        result = sdconvert.load_into(model, path)
        assert result == ([], [])
        assert same_model(model, original)


@pytest.mark.parametrize("how", ["state_dict.pt", "safetensors"])
def test_3_assigning_keeps_ties(how: str, tmp_path: Path) -> None:
    original = Tied()
    path = saved(original, how, tmp_path)
    model = on_meta(Tied)
    result = sdconvert.load_into(model, path, assign=True)
    assert model.embed.weight is model.head.weight
    assert dict(result.ties) == {"head.weight": "embed.weight"}
    assert len(list(model.parameters())) == 1


@pytest.mark.parametrize("how", ["state_dict.pt", "safetensors", "module.pt"])
@pytest.mark.parametrize("bare", [False, True])
def test_3_a_tie_that_only_the_file_knows_is_restored(how: str, bare: bool, tmp_path: Path) -> None:
    path = saved(Tied(), how, tmp_path)
    model = on_meta(Untied) if bare else Untied()
    result = sdconvert.load_into(model, path)
    assert model.embed.weight is model.head.weight
    assert dict(result.ties) == {"head.weight": "embed.weight"}

    model = on_meta(Untied) if bare else Untied()
    result = sdconvert.load_into(model, path, retie=False)
    assert model.embed.weight is not model.head.weight
    assert model.embed.weight.data_ptr() != model.head.weight.data_ptr()
    assert torch.equal(model.embed.weight, model.head.weight)
    assert dict(result.ties) == {}


def test_4_a_skeleton_keeps_ties() -> None:
    assert Tied().to_empty(device="cpu").head.weight is not None
    with sdconvert.skeleton():
        model = Tied()
    assert model.embed.weight is model.head.weight
    assert model.embed.weight.is_meta


def test_5_a_non_persistent_buffer_is_real_in_a_skeleton_and_named_where_it_is_not(tmp_path: Path) -> None:
    original = Rotary()
    path = saved(original, "state_dict.pt", tmp_path)
    with sdconvert.skeleton():
        model = Rotary()
    sdconvert.load_into(model, path)
    assert same_model(model, original)

    with pytest.raises(MismatchError, match=r'Left on meta.*"inv_freq".*skeleton'):
        sdconvert.load_into(on_meta(Rotary), path)
    with pytest.raises(MismatchError, match='"inv_freq"'):
        sdconvert.load_into(on_meta(Rotary), path, strict=False)


def test_6_every_mismatch_is_named_at_once_in_torchs_words(tmp_path: Path) -> None:
    state = {"0.weight": torch.zeros(5, 4), "0.bias": torch.zeros(5), "2.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "m.pt")
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(RuntimeError) as theirs:
        copy.deepcopy(model).load_state_dict(state)
    with pytest.raises(RuntimeError) as ours:
        sdconvert.load_into(model, tmp_path / "m.pt")
    assert str(ours.value).startswith(str(theirs.value))
    assert isinstance(ours.value, MismatchError)


def test_6_metadata_that_lacks_the_format_is_no_obstacle_and_is_always_written(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "bare.safetensors")
    assert sdconvert.load_into(nn.Linear(2, 2), tmp_path / "bare.safetensors") == ([], [])
    sdconvert.save(nn.Linear(2, 2), tmp_path / "ours.safetensors")
    assert b'"__metadata__":{"format":"pt"}' in (tmp_path / "ours.safetensors").read_bytes()[:100]


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (torch.float32, torch.int64),
        (torch.int8, torch.float32),
        (torch.complex64, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float32, torch.float8_e4m3fn),
        (torch.int64, torch.complex64),
    ],
    ids=str,
)
def test_7_no_cast_changes_what_numbers_mean(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("x", torch.zeros(3, dtype=wanted))
    before = model.x.clone()
    torch.save({"x": torch.ones(3).to(stored)}, tmp_path / "m.pt")
    with pytest.raises(MismatchError, match=rf"dtype mismatch for x: .*{stored}.*{wanted}"):
        sdconvert.load_into(model, tmp_path / "m.pt")
    assert torch.equal(model.x.view(torch.uint8), before.view(torch.uint8))
    result = sdconvert.load_into(model, tmp_path / "m.pt", on_mismatch="skip")
    assert [tuple(one) for one in result.uncast] == [("x", str(stored)[6:], str(wanted)[6:])]


def test_7_casts_that_only_round_are_made_and_reported(tmp_path: Path) -> None:
    values = torch.randn(40)
    torch.save({"x": values, "n": torch.tensor(3, dtype=torch.int64)}, tmp_path / "m.pt")
    model = nn.Module()
    model.register_buffer("x", torch.zeros(40, dtype=torch.bfloat16))
    model.register_buffer("n", torch.zeros((), dtype=torch.int32))
    result = sdconvert.load_into(model, tmp_path / "m.pt")
    assert torch.equal(model.x, values.bfloat16())
    assert [tuple(one) for one in result.cast] == [("x", "float32", "bfloat16"), ("n", "int64", "int32")]


def test_7_integers_for_a_trainable_parameter_are_an_error_with_a_name(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}, tmp_path / "m.pt")
    with sdconvert.skeleton():
        model = nn.Linear(2, 2)
    with pytest.raises(MismatchError, match=r"dtype mismatch for weight: .*torch.int8"):
        sdconvert.load_into(model, tmp_path / "m.pt")


@pytest.mark.parametrize("keep", [True, False])
def test_8_versions_of_modules_decide_as_they_do_for_torch(keep: bool, tmp_path: Path) -> None:
    state = nn.BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    given = state if keep else dict(state)
    torch.save(given, tmp_path / "m.pt")

    def attempt(load: object) -> str:
        try:
            return str(load())  # type: ignore[operator]
        except RuntimeError as error:
            return str(error)

    theirs = attempt(lambda: nn.BatchNorm1d(3).load_state_dict(given))
    assert ("Missing key" in theirs) == keep
    for source in (given, tmp_path / "m.pt"):
        ours = attempt(lambda source=source: sdconvert.load_into(nn.BatchNorm1d(3), source))
        assert ours.startswith(theirs)


def test_8_loaded_dicts_keep_versions(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    torch.save({"module." + k: v for k, v in model.state_dict().items()}, tmp_path / "plain.pt")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert sdconvert.load(tmp_path / "m.pt")._metadata["1"] == {"version": 2}  # type: ignore[attr-defined]


def test_9_the_callers_metadata_is_not_written_to() -> None:
    source = nn.Linear(2, 2).state_dict()
    before = copy.deepcopy(source._metadata)
    sdconvert.load_into(nn.Linear(2, 2), source, assign=True)
    sdconvert.load_into(nn.BatchNorm1d(2), nn.BatchNorm1d(2).state_dict(), assign=True)
    assert source._metadata == before


def test_9_an_optimizer_stays_valid(tmp_path: Path) -> None:
    original = trained(Transformer())
    path = saved(original, "safetensors", tmp_path)
    model = Transformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sdconvert.load_into(model, path)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    before = model.embedding.weight.detach().clone()
    model(model.example()).sum().backward()
    optimizer.step()
    assert not torch.equal(model.embedding.weight, before)


def test_9_torchs_own_switch_keeps_an_optimizer_over_meta(tmp_path: Path) -> None:
    path = saved(nn.Linear(3, 3), "safetensors", tmp_path)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with sdconvert.skeleton():
            model = nn.Linear(3, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        sdconvert.load_into(model, path)
        assert optimizer.param_groups[0]["params"][0] is model.weight
        assert not model.weight.is_meta
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


_TRUNCATES = """
import os, sys, sdconvert
state = sdconvert.load(sys.argv[1], copy=sys.argv[2])
os.truncate(sys.argv[1], 4096)
print(float(sum(tensor.double().sum() for tensor in state.values())))
"""


@pytest.mark.parametrize(("copy_mode", "outcome"), [("auto", -signal.SIGBUS), ("read", 0)])
def test_10_a_file_that_shrinks_is_for_copy_read(copy_mode: str, outcome: int, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.ones(1 << 20)}, path)
    done = subprocess.run([sys.executable, "-c", _TRUNCATES, str(path), copy_mode], capture_output=True, text=True)
    assert done.returncode == outcome, done.stderr
    if copy_mode == "read":
        assert float(done.stdout) == 1 << 20


@pytest.mark.parametrize("copy_mode", ["auto", "mmap", "read"])
@pytest.mark.parametrize("cut", [1, 4096, 70_000])
def test_10_a_file_that_is_already_short_is_an_error_never_a_signal(copy_mode: str, cut: int, tmp_path: Path) -> None:
    for name in ("m.safetensors", "m.pt"):
        path = tmp_path / name
        sdconvert.save({"w": torch.ones(1 << 18)}, path)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - cut)
        model = nn.Module()
        model.register_buffer("w", torch.zeros(1 << 18))
        with pytest.raises(sdconvert.UnreadableError):
            sdconvert.load_into(model, path, copy=copy_mode)
        assert not model.w.any()


def test_10_a_file_that_shrinks_between_opening_and_mapping_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdconvert.load import mapping

    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.ones(1 << 18)}, path)
    find = mapping.Maps.find

    def shrinking(self: mapping.Maps, source: object, offset: int) -> object:
        with open(path, "r+b") as file:
            file.truncate(4096)
        return find(self, source, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(mapping.Maps, "find", shrinking)
    with pytest.raises(sdconvert.UnreadableError, match="was changed while it was read"):
        sdconvert.load(path)


def test_10_a_mapping_outlives_the_file_and_does_not_write_to_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.ones(5000)}, path)
    before = path.read_bytes()
    state = sdconvert.load(path)
    state["w"].add_(1)
    assert path.read_bytes() == before
    path.unlink()
    assert state["w"].sum() == 10000


@pytest.mark.parametrize("device", ["meta", torch.device("cpu"), torch.device("meta"), "cpu", "cpu:0"], ids=repr)
def test_11_devices_by_any_of_their_names(device: str | torch.device, tmp_path: Path) -> None:
    sdconvert.save({"w": torch.ones(3)}, tmp_path / "m.safetensors")
    state = sdconvert.load(tmp_path / "m.safetensors", device=device)
    assert state["w"].device.type == torch.device(device).type
    assert state["w"].shape == (3,)


def test_12_what_worked_before_still_does(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(nn.Linear(4, 4))
    torch.save(old.state_dict(), tmp_path / "m.pt")
    new = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    result = sdconvert.load_into(new, tmp_path / "m.pt")
    assert result == ([], [])
    assert torch.equal(new.parametrizations.weight.original0, old.weight_g)
    assert torch.allclose(new.weight, old.weight)

    lazy = nn.LazyLinear(4)
    torch.save(nn.Linear(7, 4).state_dict(), tmp_path / "lazy.pt")
    result = sdconvert.load_into(lazy, tmp_path / "lazy.pt")
    assert lazy.weight.shape == (4, 7)
    assert lazy(torch.ones(1, 7)).shape == (1, 4)

    frozen = nn.Linear(3, 3)
    frozen.weight.requires_grad_(False)
    path = saved(nn.Linear(3, 3), "safetensors", tmp_path)
    for assign in (True, "auto"):
        sdconvert.load_into(frozen, path, assign=assign)
        assert (frozen.weight.requires_grad, frozen.bias.requires_grad) == (False, True)
