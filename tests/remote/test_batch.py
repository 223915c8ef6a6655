"""Sources of a batch that are on the Hub: shown the token, noticed when they are replaced, and the token in no text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sdconvert import UnreadableError
from sdconvert.batch import Options, convert_many, jobs, state_of
from tests.hub_server import HubServer


def weights(value: float) -> bytes:
    return save({"w": torch.full((3,), value)})


def test_a_repository_and_a_file_with_a_token(here: HubServer, tmp_path: Path) -> None:
    here.add_repo("me/model-3.1", {"model.safetensors": weights(1)}, private=True)
    here.add_repo("me/other", {"deep/x.safetensors": weights(2)}, private=True)
    sources = ["hf://me/model-3.1", "hf://me/other/deep/x.safetensors"]
    manifest = tmp_path / "manifest"
    with ThreadPoolExecutor(1) as executor:
        without = convert_many(jobs(sources, str(tmp_path), ".pt", Options()), executor=executor)
        options = Options(token=here.token)
        done = convert_many(jobs(sources, str(tmp_path), ".pt", options), executor=executor, manifest=manifest)
        again = convert_many(
            jobs(sources, str(tmp_path), ".pt", options), executor=executor, manifest=manifest, resume=True
        )
    assert (without.failed, done.done, again.skipped) == (2, 2, 2), (done.failures, without.failures)
    values = [float(torch.load(tmp_path / name)["w"][0]) for name in ("model-3.1.pt", "x.pt")]
    assert values == [1.0, 2.0]
    assert here.token.encode() not in manifest.read_bytes()


@pytest.mark.parametrize("source", ["hf://you/model", "hf://you/model/model.safetensors"])
def test_another_commit_is_another_state(source: str, here: HubServer) -> None:
    here.add_repo("you/model", {"model.safetensors": weights(1)})
    before = state_of(source)
    assert state_of(source) == before
    here.add_repo("you/model", {"model.safetensors": weights(2)})
    assert state_of(source) != before
    with pytest.raises(UnreadableError):
        state_of("hf://you/nothing")
