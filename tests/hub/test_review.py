"""Is somebody's pull request the same weights? Streams both sides; anything else than yes is no."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd
from safetensors.torch import save as to_bytes

import sdconvert
from sdconvert.errors import ChoiceError, SdconvertError, UnreadableError
from tests.hub_server import HubServer, Status, WrongBytes

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def weights(state_file: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(state_file)
    return loaded


@pytest.fixture
def theirs(here: HubServer, state_file: Path) -> HubServer:
    here.add_repo("you/model", {"pytorch_model.bin": state_file.read_bytes(), "config.json": b"{}"})
    return here


def propose(hub: HubServer, files: Mapping[str, bytes]) -> None:
    """A pull request of the stranger."""
    hub.api(hub.stranger_token).create_commit(
        "you/model", [CommitOperationAdd(path, data) for path, data in files.items()],
        commit_message="Trust me", create_pr=True,
    )  # fmt: skip


def test_the_same_weights(theirs: HubServer, weights: dict[str, torch.Tensor]) -> None:
    propose(theirs, {"model.safetensors": to_bytes(weights)})
    found = sdconvert.review(1, "you/model")
    assert found.equal
    assert (found.repo_id, found.number, found.title, found.author) == ("you/model", 1, "Trust me", "stranger")
    (one,) = found.verifications
    assert one.first == f"hf://you/model@{found.base}/pytorch_model.bin"
    assert one.second == f"hf://you/model@{found.head}/model.safetensors"
    assert (found.unmatched, found.others) == ((), ())


@pytest.mark.parametrize("what", ["a value", "a dtype", "a name", "one less", "one more"])
def test_other_weights(theirs: HubServer, weights: dict[str, torch.Tensor], what: str) -> None:
    if what == "a value":
        weights["a.weight"][299, 299] += 1
    elif what == "a dtype":
        weights["b.bias"] = weights["b.bias"].half()
    elif what == "a name":
        weights["c.bias"] = weights.pop("b.bias")
    elif what == "one less":
        del weights["b.bias"]
    else:
        weights["more"] = torch.zeros(1)
    propose(theirs, {"model.safetensors": to_bytes(weights)})
    assert not sdconvert.review(1, "you/model").equal


def test_what_else_it_changes_is_said(theirs: HubServer, weights: dict[str, torch.Tensor]) -> None:
    propose(theirs, {"model.safetensors": to_bytes(weights), "modeling.py": b"import os", "config.json": b"[]"})
    found = sdconvert.review(1, "you/model")
    assert (found.equal, found.others) == (True, ("config.json", "modeling.py"))
    assert "not looked at, but changed too: config.json, modeling.py" in str(found)


def test_shards(theirs: HubServer, weights: dict[str, torch.Tensor]) -> None:
    first, second = {"a.weight": weights.pop("a.weight")}, weights
    files = {f"model-0000{n}-of-00002.safetensors": part for n, part in ((1, first), (2, second))}
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    sharded = {name: to_bytes(part) for name, part in files.items()}
    propose(theirs, {**sharded, "model.safetensors.index.json": json.dumps(index).encode()})
    assert sdconvert.review(1, "you/model").equal
    second["b.bias"][0] += 1
    sharded["model-00002-of-00002.safetensors"] = to_bytes(second)
    propose(theirs, {**sharded, "model.safetensors.index.json": json.dumps(index).encode()})
    assert not sdconvert.review(2, "you/model").equal


def test_in_a_directory_and_of_another_name(
    theirs: HubServer, state_file: Path, weights: dict[str, torch.Tensor]
) -> None:
    theirs.add_files("you/model", {"deep/v1.ckpt": state_file.read_bytes()})
    propose(theirs, {"deep/v1.safetensors": to_bytes(weights)})
    assert sdconvert.review(1, "you/model").equal


def test_what_there_is_nothing_to_compare_with(theirs: HubServer, weights: dict[str, torch.Tensor]) -> None:
    propose(theirs, {"model.safetensors": to_bytes(weights), "extra/model.safetensors": to_bytes(weights)})
    found = sdconvert.review(1, "you/model")
    assert (found.equal, found.unmatched) == (False, ("extra/model.safetensors",))


def test_a_shard_that_no_index_names_is_not_passed_over(theirs: HubServer, weights: dict[str, torch.Tensor]) -> None:
    zero = torch.zeros(1)
    propose(
        theirs, {"model.safetensors": to_bytes(weights), "model-00001-of-00001.safetensors": to_bytes({"evil": zero})}
    )
    assert not sdconvert.review(1, "you/model").equal


def test_no_safetensors_at_all(theirs: HubServer) -> None:
    propose(theirs, {"notes.txt": b"hello"})
    found = sdconvert.review(1, "you/model")
    assert not found.equal
    assert "it adds no safetensors" in str(found)


def test_new_weights_on_the_branch_since_then(
    theirs: HubServer, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """It was the same; merged now, it would not be."""
    propose(theirs, {"model.safetensors": to_bytes(weights)})
    weights["b.bias"][0] += 1
    torch.save(weights, tmp_path / "new.bin")
    theirs.add_files("you/model", {"pytorch_model.bin": (tmp_path / "new.bin").read_bytes()})
    found = sdconvert.review(1, "you/model")
    assert (found.equal, found.others) == (False, ())


def test_it_is_read_at_one_commit_and_from_a_training_checkpoint(
    here: HubServer, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"raw": {f"module.{name}": t for name, t in weights.items()}, "other": dict(weights)}, tmp_path / "m.pt")
    here.add_repo("you/model", {"pytorch_model.bin": (tmp_path / "m.pt").read_bytes()})
    propose(here, {"model.safetensors": to_bytes(weights)})
    with pytest.raises(ChoiceError, match="--key raw"):
        sdconvert.review(1, "you/model")
    assert sdconvert.review(1, "you/model", key="raw", names=sdconvert.Names(strip_prefix="module.")).equal


@pytest.mark.parametrize(
    ("pull_request", "repo", "says"),
    [
        ("7", "you/model", "not found|refused"),
        ("1", None, "of which repository"),
        ("https://huggingface.co/you/model/discussions/1", "me/model", "is not of me/model"),
        ("https://huggingface.co/you/model", None, "neither the number nor the address"),
        ("\u00b2", "you/model", "neither the number nor the address"),
        ("9" * 5000, "you/model", "neither the number nor the address"),
        ("2", "you/model", "is a discussion, not a pull request"),
    ],
)
def test_what_is_none(theirs: HubServer, pull_request: str, repo: str | None, says: str) -> None:
    propose(theirs, {"notes.txt": b"hello"})
    theirs.api(theirs.stranger_token).create_discussion("you/model", "Hello", description="?")
    with pytest.raises((ChoiceError, UnreadableError), match=says):
        sdconvert.review(pull_request, repo)


def test_wrong_bytes_from_the_cdn_are_never_taken_for_the_weights(
    theirs: HubServer, weights: dict[str, torch.Tensor]
) -> None:
    propose(theirs, {"model.safetensors": to_bytes(weights)})
    assert sdconvert.review(1, "you/model").equal
    for nth in range(1, theirs.log.count("cdn.get") + 1):
        theirs.rules.clear()
        theirs.fail("cdn.get", WrongBytes(), nth=nth)
        try:
            assert not sdconvert.review(1, "you/model").equal
        except SdconvertError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_trouble_that_passes_on_every_call_in_turn(
    theirs: HubServer, weights: dict[str, torch.Tensor], status: int
) -> None:
    propose(theirs, {"model.safetensors": to_bytes(weights)})
    theirs.log.clear()
    assert sdconvert.review(1, "you/model").equal
    for nth in range(1, theirs.log.count() + 1):
        theirs.rules.clear()
        theirs.fail("*", Status(status), nth=nth)
        assert sdconvert.review(1, "you/model").equal


def test_the_command_line(theirs: HubServer, weights: dict[str, torch.Tensor]) -> None:
    propose(theirs, {"model.safetensors": to_bytes(weights)})
    weights["b.bias"][0] += 1
    propose(theirs, {"model.safetensors": to_bytes(weights)})
    same = theirs.run(["-m", "sdconvert", "verify", "--pr", "1", "you/model"])
    assert (same.returncode, "equal: hf://you/model@" in same.stdout) == (0, True), same.stderr
    url = f"{theirs.endpoint}/you/model/discussions/2"
    other = theirs.run(["-m", "sdconvert", "verify", "--pr", url, "--json"])
    assert (other.returncode, json.loads(other.stdout)["equal"]) == (1, False)
    usage = theirs.run(["-m", "sdconvert", "verify", "--pr", "1", "you/model", "b", "--digest"])
    assert usage.returncode == 2
