"""Which state dict is taken, what is said of the rest, and when a person has to choose."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert.source import FileSource
from tests.conftest import Converted
from tests.outputs import contents, same


def net(seed: int = 0, *, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


SD = net().state_dict()
LOOSE = {"weight": torch.randn(2, 2), "bias": torch.randn(2)}


@pytest.mark.parametrize(
    "wrap",
    [
        "state_dict",
        "model_state_dict",
        "model",
        "model_state",
        "net",
        "network",
        "weights",
        "params",
        "module",
        "MODEL",
    ],
)
def test_a_wrapper_key_is_found(wrap: str, converted: Converted) -> None:
    report, found = converted({"epoch": 3, wrap: SD, "args": {"lr": 0.1}})
    assert (report.kind, report.key) == ("wrapped", wrap)
    assert found.keys() == SD.keys()
    assert {one.name for one in report.skipped} == {"epoch", "args"}


def test_a_wrapper_is_found_however_deep(converted: Converted) -> None:
    report, _ = converted({"a": {"b": [{"state_dict": SD, "x": torch.ones(1)}]}})
    assert report.key == "a.b.0.state_dict"


def test_optimizer_state_is_left_out_by_its_shape_and_by_its_name(converted: Converted) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    for name in ("optimizer", "odd_name", "optimizer_states"):
        state = [optimizer.state_dict()] if name == "optimizer_states" else optimizer.state_dict()
        report, found = converted({"anything": model.state_dict(), name: state, "rng_state": torch.get_rng_state()})
        assert report.key == "anything"
        assert found.keys() == SD.keys()


def test_a_lightning_checkpoint(converted: Converted) -> None:
    report, found = converted(
        {
            "epoch": 1,
            "state_dict": OrderedDict((f"model.{name}", tensor) for name, tensor in SD.items()),
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
            "hyper_parameters": {"lr": 1e-3},
        }
    )
    assert {name.partition(".")[0] for name in found} == {"model"}
    assert {one.name: one.why for one in report.skipped}["callbacks"] == "outside of the state dict (1 tensor)"


@pytest.mark.parametrize(
    "obj",
    [
        {"generator": SD, "discriminator": net(1).state_dict()},
        {"teacher": net(), "student": net(1)},
        {"actor_state_dict": SD, "critic_state_dict": net(1).state_dict()},
        [SD, net(1).state_dict()],
        {"model": SD, "ema": net(1, width=5).state_dict(), "net": net(2, width=6).state_dict()},
    ],
)
def test_several_complete_ones_are_a_choice(obj: Any, converted: Converted) -> None:
    with pytest.raises(sdconvert.ChoiceError, match="--key") as caught:
        converted(obj)
    assert len(caught.value.candidates) >= 2
    for candidate in caught.value.candidates:
        assert candidate.tensors == 4
        assert converted(obj, key=candidate.key)[0].key == candidate.key


def test_a_list_of_agents_is_chosen_from_by_index(converted: Converted) -> None:
    agents = {"agents": [{"q_network": net(i).state_dict(), "target": net(i).state_dict()} for i in range(3)]}
    _, found = converted(agents, key="agents.1.q_network")
    assert torch.equal(found["0.weight"], net(1).state_dict()["0.weight"])


@pytest.mark.parametrize("ema", ["ema", "model_ema", "ema_state_dict", "swa_model"])
def test_raw_weights_win_over_averaged_ones_of_the_same_names_and_it_is_said(ema: str, converted: Converted) -> None:
    report, found = converted({ema: net(1).state_dict(), "generator": SD})
    assert report.key == "generator"
    assert torch.equal(found["0.weight"], SD["0.weight"])
    assert [other.key for other in report.others] == [ema]
    assert ema in report.warnings[0]


def test_loose_tensors_are_taken_together_with_dotted_names(converted: Converted) -> None:
    report, found = converted({"model": {"encoder": {"layer0": LOOSE}, "decoder": LOOSE}, "step": 4})
    assert report.key == "model"
    assert sorted(found) == ["decoder.bias", "decoder.weight", "encoder.layer0.bias", "encoder.layer0.weight"]


def test_a_single_tensor_and_a_list_of_them(converted: Converted) -> None:
    assert list(converted(torch.ones(2))[1]) == ["tensor"]
    assert sorted(converted([torch.ones(2), torch.zeros(1)])[1]) == ["0", "1"]


def test_a_model_in_an_object_of_an_unknown_class(converted: Converted) -> None:
    report, _ = converted(Learner(net()))
    assert (report.kind, report.key) == ("module", "model")
    assert f"{__name__}.Learner" in report.unknown_globals


class Learner:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.lr = model, 0.1


def test_what_is_not_a_tensor_among_the_weights_is_left_out_and_said(converted: Converted) -> None:
    report, found = converted({"a.w": torch.ones(1), "steps": 7, "name": "x", "none": None, "_extra_state": {"v": 1}})
    assert list(found) == ["a.w"]
    assert {one.name: one.why for one in report.skipped} == {
        "steps": "not a tensor (int)",
        "name": "not a tensor (str)",
        "none": "None",
        "_extra_state": "no tensors in it",
    }


def test_two_tensors_never_get_one_name(converted: Converted) -> None:
    with pytest.raises(sdconvert.UnreadableError, match="both be named '1'"):
        converted({1: torch.ones(1), "1": torch.zeros(1)})


class Rebuilt(torch.Tensor):
    """A tensor that says how it wants to be pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return torch._tensor._rebuild_from_type_v2, (copy.copy, Rebuilt, (torch.ones(2),), None)


def test_what_cannot_be_written_is_refused_by_name_and_can_be_excluded(converted: Converted) -> None:
    obj = {"a.w": torch.ones(2), "q.w": torch.ones(2).as_subclass(Rebuilt)}
    with pytest.raises(sdconvert.UnsupportedError, match=r"q\.w is .*Rebuilt.*--exclude"):
        converted(obj)
    assert list(converted(obj, names=sdconvert.Names(exclude=("q.*",)))[1]) == ["a.w"]


def test_only_training_state_is_an_error_that_says_so(converted: Converted) -> None:
    with pytest.raises(sdconvert.UnreadableError, match=r"only training state\. --key optimizer"):
        converted({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}})


@pytest.mark.parametrize("whole", [True, False])
def test_an_optimizers_own_file_is_not_taken_for_weights(whole: bool, converted: Converted) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    made = optimizer if whole else optimizer.state_dict()
    with pytest.raises(sdconvert.UnreadableError, match="only training state") as refused:
        converted(made)
    if not whole:  # In the object itself the parameters are keys, and have no names.
        assert "--key . takes it all the same" in str(refused.value)
        assert "state.0.exp_avg" in converted(made, key=".")[1]


def test_a_state_beside_other_weights_is_no_optimizers(converted: Converted) -> None:
    report, found = converted({"state": {"step": torch.ones(1)}, "param_groups": [], "model": SD})
    assert (report.key, found.keys()) == ("model", SD.keys())


def test_a_model_beside_its_own_state_dict_is_no_choice(converted: Converted) -> None:
    model = net()
    report, found = converted({"model": model, "state_dict": model.state_dict(), "epoch": 1})
    assert report.key == "model"
    assert same(found, model.state_dict())
    assert any("state_dict holds the same tensors" in warning for warning in report.warnings)
    with pytest.raises(sdconvert.ChoiceError):
        converted({"model": model, "state_dict": net(1).state_dict()})


@pytest.mark.parametrize("ema", ["params_ema", "state_dict_ema", "ema"])
def test_averages_beside_a_wrapper_are_named_with_the_key_that_takes_them(ema: str, converted: Converted) -> None:
    report, found = converted({"params": SD, ema: net(1).state_dict()})
    (beside,) = report.skipped
    assert (beside.name, beside.why) == (ema, f"averaged weights (4 tensors); --key {ema} takes them")
    assert same(found, SD)


def test_tensors_without_values_are_the_reason_that_there_are_none(converted: Converted) -> None:
    with pytest.raises(sdconvert.UnreadableError, match=r"no tensors in it, but a\.w is on the meta device"):
        converted({"a.w": torch.ones(2, device="meta")})


def test_a_wrong_key_lists_what_there_is(converted: Converted) -> None:
    with pytest.raises(sdconvert.ChoiceError, match=r"nothing at key .modle.\. There is --key model"):
        converted({"model": SD}, key="modle")


def test_extras_are_json(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": SD, "epoch": 3, "hyper": {"lr": float("nan"), "size": (1, 2)}, "o": Learner(net())},
        tmp_path / "m.pt",
    )
    sdconvert.convert(tmp_path / "m.pt", extras=tmp_path / "e.json")
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["epoch"] == 3
    assert found["hyper"] == {"lr": "nan", "size": [1, 2]}


def test_extras_end_where_they_are_too_deep_or_too_long(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    text = "x" * (1 << 20)
    torch.save({"state_dict": SD, "deep": deep, "shared": [text] * 1000}, tmp_path / "m.pt")
    sdconvert.convert(tmp_path / "m.pt", extras=tmp_path / "e.json")
    assert 16 << 20 < (tmp_path / "e.json").stat().st_size < 18 << 20
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["shared"] == [text] * (len(found["shared"]) - 1) + ["<...>"]
    levels, inner = 0, found["deep"]
    while inner != "<...>":
        levels, inner = levels + 1, inner[0]
    assert levels == 32


def test_only_the_weights_bytes_are_read_of_a_training_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(*[nn.Linear(400, 400) for _ in range(4)])
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "m.pt")
    read = 0
    original = FileSource.readinto

    def counted(self: FileSource, offset: int, buffer: memoryview) -> None:
        nonlocal read
        read += len(buffer)
        original(self, offset, buffer)

    monkeypatch.setattr(FileSource, "readinto", counted)
    report = sdconvert.convert(tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size > 2.9 * report.nbytes
    assert read < report.nbytes + 200_000  # The pickle, the directory and the headers of the records.
    assert contents(tmp_path / "m.safetensors").keys() == model.state_dict().keys()


def test_a_model_among_the_hyper_parameters_is_not_the_one_that_was_trained(converted: Converted) -> None:
    report, _ = converted({"state_dict": SD, "hyper_parameters": {"net": net(1)}})
    assert report.key == "state_dict"
    assert {one.name: one.why for one in report.skipped}["hyper_parameters"] == "outside of the state dict (4 tensors)"


def test_the_state_dict_of_an_open_checkpoint_is_a_mapping(tmp_path: Path) -> None:
    torch.save({"b.w": torch.ones(2, 3), "a.w": torch.ones(1)}, tmp_path / "m.pt")
    with sdconvert.open(tmp_path / "m.pt") as checkpoint:
        found = checkpoint.state_dict
        assert [(name, tensor.shape) for name, tensor in found.items()] == [("b.w", (2, 3)), ("a.w", (1,))]
        assert "a.w" in found
        assert found.get("c.w") is None
        assert found.nbytes == 28
