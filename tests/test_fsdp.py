"""Two ranks of FSDP, on processors: its full state dict is like any other, its parts are refused for what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sdconvert
from tests.outputs import contents, same

_RANK = """
import os, sys, torch, warnings
warnings.filterwarnings("ignore")
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, StateDictType
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
place, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
torch.manual_seed(0)
cpu = torch.device("cpu")
inner = FSDP(checkpoint_wrapper(torch.nn.Linear(4, 2)), device_id=cpu)
model = FSDP(torch.nn.Sequential(torch.nn.Linear(3, 4), inner), device_id=cpu)
for name in ("FULL", "SHARDED", "LOCAL"):
    with FSDP.state_dict_type(model, StateDictType[f"{name}_STATE_DICT"]):
        torch.save({"model": model.state_dict(), "step": 3}, f"{place}/{name.lower()}_{rank}.pt")
torch.save(dict(model.named_parameters()), f"{place}/parameters_{rank}.pt")
full = torch.load(f"{place}/full_{rank}.pt")["model"]
WRAP = "_fsdp_wrapped_module."
parts = {"0.": WRAP + "0.", "1.": WRAP + "1." + WRAP + "_checkpoint_wrapped_module."}
torch.save({parts[name[:2]] + name[2:]: tensor for name, tensor in full.items()}, f"{place}/wrapped_{rank}.pt")
dist.barrier()
os._exit(0)  # gloo's threads may abort the interpreter while it shuts down; all is saved by now.
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks saved."""
    place = tmp_path_factory.mktemp("fsdp")
    command = [sys.executable, "-c", _RANK, str(place)]
    both = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return place


def test_the_full_state_dict_is_like_any_other(ranks: Path, tmp_path: Path) -> None:
    report = sdconvert.convert(ranks / "full_0.pt", tmp_path / "o.safetensors")
    assert report.key == "model"
    assert same(contents(tmp_path / "o.safetensors"), torch.load(ranks / "full_0.pt")["model"])


def test_wrapped_names_are_told_and_taken_off(ranks: Path, tmp_path: Path) -> None:
    report = sdconvert.convert(ranks / "wrapped_0.pt", dry_run=True)
    assert report.prefixes == ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
    names = sdconvert.Names(strip_prefix="auto")
    sdconvert.convert(ranks / "wrapped_0.pt", tmp_path / "o.safetensors", names=names)
    assert same(contents(tmp_path / "o.safetensors"), torch.load(ranks / "full_0.pt")["model"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sharded_0.pt", r"0\.weight is a ShardedTensor, of which each rank's file has a part"),
        ("local_1.pt", "_flat_param is a flat parameter of FSDP"),
        ("parameters_0.pt", r"_fsdp_wrapped_module\._flat_param is a flat parameter of FSDP"),
    ],
)
def test_a_ranks_part_is_refused(name: str, words: str, ranks: Path, tmp_path: Path) -> None:
    with pytest.raises(sdconvert.UnsupportedError, match=words) as caught:
        sdconvert.convert(ranks / name, tmp_path / "o.safetensors")
    assert "FULL_STATE_DICT" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flat"),
    [
        ("layer._flat_param", True),
        ("_fsdp_wrapped_module.flat_param", True),
        ("_fsdp_wrapped_module._fpw_module.flat_param_0", True),
        ("layer._fpw_module.flat_param_12", True),
        ("flat_param", False),
        ("layer.flat_params", False),
        ("_flat_param.weight", False),
    ],
)
def test_only_fsdps_own_names_are_flat_parameters(name: str, flat: bool, tmp_path: Path) -> None:
    save_file({name: torch.zeros(4), "other": torch.zeros(1)}, tmp_path / "m.safetensors")
    if flat:
        with pytest.raises(sdconvert.UnsupportedError, match=f"--exclude {name} leaves it out"):
            sdconvert.convert(tmp_path / "m.safetensors", tmp_path / "o.safetensors")
    without = sdconvert.Names(exclude=(name,)) if flat else None
    assert sdconvert.convert(tmp_path / "m.safetensors", tmp_path / "o.safetensors", names=without).tensors == 2 - flat
