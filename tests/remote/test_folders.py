"""Repositories as checkpoints: the layouts that are read from a directory are read from the Hub as well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import sdconvert
from tests.hub_server import HubServer
from tests.outputs import contents, same

ONE, TWO, INDEX = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"


@pytest.fixture
def state(here: HubServer) -> dict[str, torch.Tensor]:
    """Two tensors in two shards of ``hf://me/model``, beside files that are not to be read."""
    state = {"a": torch.randn(1000, 300), "b": torch.randn(200, 300)}
    index = json.dumps({"metadata": {"total_size": 1, "tied": "b"}, "weight_map": {"a": ONE, "b": TWO}})
    files = {ONE: save({"a": state["a"]}), TWO: save({"b": state["b"]}), INDEX: index.encode()}
    here.add_repo("me/model", files | {"pytorch_model.bin": b"never read", "optimizer.pt": b"never read"})
    return state | {"tied": state["b"]}


@pytest.mark.parametrize("url", ["hf://me/model", f"hf://me/model/{INDEX}"])
def test_shards_stay_shards(url: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    report = sdconvert.convert(url, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ONE, TWO, INDEX]
    assert report.files == (INDEX, ONE, TWO)
    assert dict(report.aliases) == {"tied": "b"}
    assert sdconvert.verify(url, tmp_path).equal
    sdconvert.convert(url, tmp_path / "one.safetensors", max_shard_size=0)
    assert same(contents(tmp_path / "one.safetensors"), state)


def test_a_directory_of_a_repository(here: HubServer, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    here.add_files("me/model", {"unet/diffusion_pytorch_model.fp16.safetensors": save({"u": torch.zeros(3)})})
    report = sdconvert.convert("hf://me/model/unet", tmp_path / "o.safetensors")
    assert report.files == ("diffusion_pytorch_model.fp16.safetensors",)


def test_a_missing_shard_is_named(here: HubServer, tmp_path: Path) -> None:
    here.add_repo(
        "me/part", {ONE: save({"a": torch.zeros(2)}), INDEX: json.dumps({"weight_map": {"a": ONE, "b": TWO}}).encode()}
    )
    with pytest.raises(sdconvert.UnreadableError, match=f"1 of 2 shards are missing: {TWO}"):
        sdconvert.convert("hf://me/part", tmp_path)
    assert list(tmp_path.iterdir()) == []
