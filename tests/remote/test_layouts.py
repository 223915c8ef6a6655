"""Checkpoints of several files on the Hub: read as from a directory here."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

import sdconvert
from tests.formats.deepspeed_files import Model, write
from tests.formats.test_mutated_folders import files
from tests.hub_server import HubServer
from tests.outputs import contents, same


def test_a_torch_distributed_checkpoint(here: HubServer, tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(300, 200), "b.bias": torch.arange(5), "c.w": torch.randn(6, 4).t()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": weights, "epoch": 3}, checkpoint_id=tmp_path / "c", no_dist=True)
    here.add_repo("me/model", {f"step-1/{name}": data for name, data in files(tmp_path / "c").items()})
    report = sdconvert.convert("hf://me/model/step-1", tmp_path / "o.safetensors")
    assert report.container == "dcp"
    assert same(contents(tmp_path / "o.safetensors"), weights)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_deepspeed_checkpoint(stage: int, here: HubServer, tmp_path: Path) -> None:
    saved = Model([{"a.weight": torch.randn(300, 200), "a.bias": torch.randn(7)}])
    write(tmp_path / "c", saved, stage=stage, ranks=2)
    here.add_repo("me/model", files(tmp_path / "c"))
    report = sdconvert.convert("hf://me/model", tmp_path / "o.safetensors")
    assert report.container == "deepspeed"
    assert same(contents(tmp_path / "o.safetensors"), saved.expected())
