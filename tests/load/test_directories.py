"""Loading from directories: distributed checkpoints, DeepSpeed's, the Hub's layout; ties hold over files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

import sdconvert
from tests.formats.deepspeed_files import Model, write
from tests.load.models import Transformer, same_model, trained


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_distributed_checkpoint(tmp_path: Path) -> None:
    model = trained(Transformer())
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "ckpt", no_dist=True)
    with sdconvert.skeleton():
        again = Transformer()
    result = sdconvert.load_into(again, tmp_path / "ckpt")
    assert same_model(again, model)
    assert result.ties
    found = sdconvert.load(tmp_path / "ckpt", copy="read")
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_deepspeed_checkpoint_whose_parts_are_in_files_of_ranks(stage: int, tmp_path: Path) -> None:
    weights = {"embedding.weight": torch.randn(7, 3), "body.weight": torch.randn(5, 3), "body.bias": torch.randn(5)}
    model = Model([weights], tied={"head.weight": "embedding.weight"})
    write(tmp_path, model, stage=stage, ranks=2)
    found = sdconvert.load(tmp_path)
    assert found["head.weight"] is found["embedding.weight"]
    expected = model.expected()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("copy", ["auto", "read"])
def test_shards_with_ties_over_files(copy: str, ending: str, tmp_path: Path) -> None:
    base = torch.randn(50)
    state = {"a": base, "b": torch.ones(60), "c": base, "d": torch.zeros(60), "e": base}
    sdconvert.save(state, tmp_path / f"model.{ending}", max_shard_size=250)
    assert len(list(tmp_path.glob("*-of-*"))) == 3
    for source in (tmp_path, tmp_path / f"model.{ending}.index.json"):
        found = sdconvert.load(source, copy=copy)
        assert found.keys() == state.keys()
        assert found["a"] is found["c"]
        assert found["a"] is found["e"]
        assert all(torch.equal(found[name], value) for name, value in state.items())
