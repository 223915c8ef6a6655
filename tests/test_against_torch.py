"""A model saved whole gives what its own `state_dict()` gives: names, order, bytes, ties.

The models lie in `zoo`; torch is asked, the converter has only the file.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import sdconvert
from tests.outputs import contents, same
from tests.zoo import ZOO

FORMS = [pytest.param(True, id="zip"), pytest.param(False, id="legacy")]
PROTOCOLS = [2, 3, 4, 5]


@pytest.fixture(autouse=True, params=FORMS)
def zipped(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def expected(model: nn.Module) -> dict[str, torch.Tensor]:
    """What torch says, without what has no values yet."""
    return {name: tensor for name, tensor in model.state_dict().items() if not is_lazy(tensor)}


def ties(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """alias: kept, decided by torch's own pointers."""
    first: dict[Any, str] = {}
    found = {}
    for name, t in state.items():
        if t.numel():
            view = (
                t.untyped_storage().data_ptr(),
                t.storage_offset(),
                t.shape,
                t.stride(),
                t.dtype,
                t.is_conj(),
                t.is_neg(),
            )
            if first.setdefault(view, name) != name:
                found[name] = first[view]
    return found


def check(model: nn.Module, saved: object, path: Path, prefix: str = "", **save: Any) -> sdconvert.Report:
    """Save `saved`, which holds `model`, convert, and compare with what torch says of `model`."""
    torch.save(saved, path, **save)
    state = {prefix + name: tensor for name, tensor in expected(model).items()}
    with sdconvert.open(path) as opened:
        assert list(opened.state_dict) == list(state)
        shapes = {name: (ref.dtype.name, ref.shape) for name, ref in opened.state_dict.tensors.items()}
    assert shapes == {n: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in state.items()}
    report = sdconvert.convert(path, path.with_suffix(".safetensors"))
    assert same(contents(path.with_suffix(".safetensors")), state)
    assert report.aliases == ties(state)
    return report


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ZOO)
def test_a_model_saved_whole(name: str, zipped: bool, protocol: int, tmp_path: Path) -> None:
    model = ZOO[name]()
    report = check(model, model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert report.kind == "module"
    assert report.key == ""


@pytest.mark.parametrize("name", ZOO)
def test_its_state_dict_saved(name: str, zipped: bool, tmp_path: Path) -> None:
    model = ZOO[name]()
    report = check(model, model.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert report.kind == "state_dict"


@pytest.mark.parametrize("name", ["tied", "views", "norms", "compiled", "traced_by_fx", "own_getstate"])
@pytest.mark.parametrize("key", ["model", "net", "whatever"])
def test_a_model_inside_a_dict(name: str, key: str, zipped: bool, tmp_path: Path) -> None:
    model = ZOO[name]()
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    saved = {"epoch": 3, key: model, "optimizer": optimizer, "best": 0.5}
    report = check(model, saved, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert (report.kind, report.key) == ("module", key)


@pytest.mark.parametrize("name", ["tied", "buffers", "lstm", "averaged"])
def test_a_model_inside_a_list(name: str, zipped: bool, tmp_path: Path) -> None:
    model = ZOO[name]()
    report = check(model, [1, "two", model], tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert (report.kind, report.key) == ("module", "2")


def test_a_model_inside_an_object(zipped: bool, tmp_path: Path) -> None:
    trainer = Trainer(ZOO["tied"]())
    report = check(trainer.model, trainer, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert (report.kind, report.key) == ("module", "model")


class Trainer:
    """What a pickled trainer looks like: not a module, but it has one."""

    def __init__(self, model: nn.Module) -> None:
        self.steps, self.model = 10, model
        self.history = [torch.tensor(0.1), torch.tensor(0.2)]


def test_names_of_what_is_not_initialised_are_reported(zipped: bool, tmp_path: Path) -> None:
    model = ZOO["lazy_before"]()
    report = check(model, model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    lazy = {name for name, tensor in model.state_dict().items() if is_lazy(tensor)}
    assert {one.name for one in report.skipped} == lazy > set()
    assert all("not initialised" in one.why for one in report.skipped)


def test_plain_attributes_and_hidden_buffers_are_not_weights(zipped: bool, tmp_path: Path) -> None:
    model = ZOO["buffers"]()
    report = check(model, model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert report.aliases == {"twin": "weight"}
    assert "hidden" not in expected(model)
    assert report.tensors == len(expected(model)) - 1


@pytest.mark.parametrize(("name", "prefix"), [("data_parallel", "module."), ("compiled", "_orig_mod.")])
def test_prefixes_of_wrappers_are_pointed_out_and_kept(name: str, prefix: str, zipped: bool, tmp_path: Path) -> None:
    model = ZOO[name]()
    report = check(model, model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert report.prefixes == (prefix,)
    stripped = sdconvert.convert(
        tmp_path / "m.pt", tmp_path / "s.safetensors", names=sdconvert.Names(strip_prefix="auto")
    )
    assert stripped.prefixes == ()
    assert contents(tmp_path / "s.safetensors").keys() == {name.removeprefix(prefix) for name in expected(model)}


def test_distributed_data_parallel(zipped: bool, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        check(model, model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    finally:
        torch.distributed.destroy_process_group()


def hooked() -> Iterator[tuple[str, nn.Module]]:
    model = nn.Linear(2, 2)
    model.register_state_dict_post_hook(rename_all)
    yield "rename_all", model
    model = nn.Linear(2, 2)
    model.register_state_dict_pre_hook(look)
    yield "look", model


def rename_all(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in list(state):
        state["renamed." + name] = state.pop(name)


def look(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """A hook that does nothing, which the file cannot tell."""


def test_a_hook_that_may_change_the_state_dict_is_warned_of_by_name(zipped: bool, tmp_path: Path) -> None:
    for hook, model in hooked():
        torch.save(model, tmp_path / f"{hook}.pt", _use_new_zipfile_serialization=zipped)
        report = sdconvert.convert(tmp_path / f"{hook}.pt", tmp_path / f"{hook}.safetensors")
        assert any(hook in warning and "not run" in warning for warning in report.warnings), hook
        assert contents(tmp_path / f"{hook}.safetensors").keys() == {"weight", "bias"}


def test_hooks_of_spectral_norm_are_known_and_not_warned_of(zipped: bool, tmp_path: Path) -> None:
    model = ZOO["old_spectral_norm"]()
    assert check(model, model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped).warnings == ()


def test_the_classes_are_named_and_not_needed(zipped: bool, tmp_path: Path) -> None:
    """Without torch, numpy or the models' module, in a process of its own, the output is the same."""
    model = ZOO["tied"]()
    report = check(model, model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert "tests.zoo.Tied" in report.unknown_globals
    script = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'safetensors', 'huggingface_hub', 'tests', 'tqdm'): sys.modules[name] = None\n"
        "import sdconvert\n"
        "sdconvert.convert(sys.argv[1], sys.argv[2])\n"
    )
    output = tmp_path / "alone.safetensors"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "m.pt"), str(output)], check=True)
    assert output.read_bytes() == (tmp_path / "m.safetensors").read_bytes()
