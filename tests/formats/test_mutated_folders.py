"""Directories with a file that was damaged at random: a result or one line of error, and nothing else.

The folder is in memory: a layout asks only what `Folder` promises.
"""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from sdconvert.errors import SdconvertError
from sdconvert.extract import extract
from sdconvert.formats import read_folder
from sdconvert.gather import SCRATCH, fill
from sdconvert.limits import DEFAULT_LIMITS
from sdconvert.plan import make_plan
from tests.fuzz.framing import MemoryFolder
from tests.fuzz.mutate import fuzz, mutated

from .deepspeed_files import Model, write

LIMITS = replace(DEFAULT_LIMITS, pickle_bytes=1 << 20, text_bytes=1 << 20, inflate_bytes=1 << 20, tensors=10_000)


def through(data: Mapping[str, bytes]) -> bool:
    """Read all of it; whether there were weights. Anything but an SdconvertError goes through."""
    scratch = memoryview(bytearray(SCRATCH))
    try:
        plan = make_plan(extract(read_folder(MemoryFolder(data), limits=LIMITS), limits=LIMITS), limits=LIMITS)
        if plan.nbytes > 1 << 20:
            return True
        for entry in plan.entries:
            if entry.nbytes:
                fill(entry.tensor, 0, memoryview(bytearray(entry.nbytes)), scratch)
    except SdconvertError as error:
        assert str(error).isprintable()
        return False
    return True


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def distributed(tmp_path: Path) -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = {"a.weight": torch.arange(12.0).reshape(4, 3), "b.bias": torch.arange(5)}
        dcp.save({"model": weights, "epoch": 3}, checkpoint_id=tmp_path / "c", no_dist=True)
    return files(tmp_path / "c")


@pytest.fixture
def partitioned(tmp_path: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    group = {"a.weight": torch.randn(3, 5), "b.bias": torch.randn(7)}
    write(tmp_path / "c", Model([group], frozen={"f.weight": torch.randn(3)}), stage=3, ranks=2)
    return files(tmp_path / "c")


@pytest.mark.parametrize("victim", [".metadata", "__0_0.distcp"])
def test_any_damage_to_a_file_of_dcp(victim: str, distributed: dict[str, bytes]) -> None:
    assert through(distributed)
    draw = partial(mutated, [distributed[victim]], random.Random(7))
    assert fuzz(lambda data: through({**distributed, victim: data}), draw, seconds=2.5).inputs > 100


@pytest.mark.parametrize("victim", ["optim", "model"])
def test_any_damage_to_a_file_of_deepspeed(victim: str, partitioned: dict[str, bytes]) -> None:
    assert through(partitioned)
    name = min(name for name in partitioned if name.endswith(f"_{victim}_states.pt"))
    draw = partial(mutated, [partitioned[name]], random.Random(7))
    assert fuzz(lambda data: through({**partitioned, name: data}), draw, seconds=2.5).inputs > 50


def test_any_number_in_the_metadata_of_dcp(distributed: dict[str, bytes]) -> None:
    """Each number of it replaced by others that are wrong in many ways; most are refused."""
    chance = random.Random(1)
    read = 0
    for _ in range(300):
        metadata = pickle.loads(distributed[".metadata"])
        for _ in range(chance.randint(1, 2)):
            number = chance.choice([0, 1, 2, 3, 5, 12, 100, 1200, 2500, -1, 1 << 31, 1 << 62, 1 << 70, None, True])
            about = metadata.state_dict_metadata[chance.choice(["model.a.weight", "model.b.bias"])]
            match chance.randrange(4):
                case 0:
                    about.size = (number, *about.size[1:])
                case 1:
                    about.chunks[0] = type(about.chunks[0])(about.chunks[0].offsets, (number, *about.size[1:]))
                case 2:
                    about.chunks[0] = type(about.chunks[0])((number, *about.size[1:]), about.chunks[0].sizes)
                case 3:
                    info = chance.choice(list(metadata.storage_data.values()))
                    object.__setattr__(info, chance.choice(["offset", "length"]), number)
        read += through({**distributed, ".metadata": pickle.dumps(metadata)})
    assert read < 60
