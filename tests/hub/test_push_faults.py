"""Whatever call of a push fails: the right files, in one commit and at most one pull request, or a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load

import sdconvert
from sdconvert.errors import OutputError, SdconvertError
from tests.hub.conftest import Push
from tests.hub_server import Drop, Fault, HubServer, IgnoreRange, LoseReply, Status, WrongBytes

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FAULTS: list[Fault] = [Status(500), Status(503), LoseReply(), Drop(10), Status(403)]


def fresh(here: HubServer, state_file: Path, *, safetensors: bytes | None = None) -> None:
    """Somebody's pickled model, and none of mine."""
    here.store.repos.clear()
    here.store.blobs.clear()
    here.rules.clear()
    here.log.clear()
    weights = {"pytorch_model.bin": state_file.read_bytes()} if safetensors is None else {"w.safetensors": safetensors}
    here.add_repo("you/model", weights)


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("how", ["pull request", "new repository", "shards"])
def test_every_call_in_turn(here: HubServer, push: Push, state_file: Path, how: str, fault: Fault) -> None:
    target = "you/model" if how == "pull request" else "me/model"
    options = {"create_pr": how == "pull request", "max_shard_size": 300_000 if how == "shards" else None}
    fresh(here, state_file)
    first = push("hf://you/model", target, **options)
    calls = [entry.name for entry in here.log.entries()]
    assert len(calls) > 15
    outcomes = []
    for nth, call in enumerate(calls, 1):
        fresh(here, state_file)
        here.fail("*", fault, nth=nth)
        before = set(here.paths("you/model"))
        try:
            done = push("hf://you/model", target, **options)
            outcomes.append("done")
            assert done.files == first.files, call
            assert done.outcome in (first.outcome, "unchanged"), call
            revision = "refs/pr/1" if how == "pull request" else "main"
            for one in done.files:
                assert len(here.read(target, one.path, revision)) == one.nbytes
        except SdconvertError as error:
            outcomes.append(f"{call}: {error}")
            assert len(str(error).splitlines()) == 1
            if how != "pull request" and target in here.store.repos:
                # The one thing that may be left: an empty repository. Or the commit was made, and then it is whole.
                assert here.paths(target) in ([], sorted(one.path for one in first.files)), call
        # Never a second one, and nothing of theirs is touched.
        assert len(here.store.repos["you/model"].discussions) <= 1
        assert set(here.paths("you/model")) == before
        if target in here.store.repos:
            assert len(here.api().list_repo_commits(target)) <= 3
    if fault != Status(403):
        assert set(outcomes) == {"done"}
    else:
        assert sum(outcome != "done" for outcome in outcomes) > len(calls) // 2


@pytest.mark.parametrize("fault", [LoseReply(), Status(500), Status(503)], ids=repr)
def test_a_commit_without_an_answer_is_looked_for_first(
    here: HubServer, push: Push, state_file: Path, fault: Fault
) -> None:
    fresh(here, state_file)
    here.fail("hub.commit", fault)
    done = push("hf://you/model", "you/model", create_pr=True)
    assert (done.outcome, done.number) == ("proposed", 1)
    assert here.log.count("hub.commit") == (1 if fault == LoseReply() else 2)
    assert [one.num for one in here.api().get_repo_discussions("you/model")] == [1]
    assert "sdconvert verify --pr 1 you/model" in done.description


def test_a_commit_that_never_works(here: HubServer, push: Push, state_file: Path) -> None:
    fresh(here, state_file)
    here.fail("hub.commit", Status(503), times=None)
    with pytest.raises(OutputError, match=r"does not take the commit: it answered 503\. Tried 6 times"):
        push("hf://you/model", "you/model", create_pr=True)
    assert here.store.repos["you/model"].discussions == []


def test_what_is_left_of_a_new_repository_is_said(here: HubServer, push: Push, state_file: Path) -> None:
    fresh(here, state_file)
    here.fail("hub.commit", Status(403), times=None)
    with pytest.raises(OutputError, match="The new repository me/model is there, without the weights"):
        push(state_file, "me/model")
    assert here.paths("me/model") == []
    here.rules.clear()
    done = push(state_file, "me/model")
    assert (done.outcome, done.created) == ("committed", False)
    assert here.paths("me/model") == ["README.md", "model.safetensors"]


def test_a_description_that_cannot_be_completed_is_said(here: HubServer, push: Push, state_file: Path) -> None:
    fresh(here, state_file)
    here.fail("hub.edit", Status(403), times=None)
    done = push("hf://you/model", "you/model", create_pr=True)
    assert done.outcome == "proposed"
    assert "does not have its number in the command that checks it" in done.warnings[0]
    assert "NUMBER-OF-THIS-PULL-REQUEST" in done.description


@pytest.mark.parametrize("fault", [WrongBytes(), IgnoreRange(), Drop(1000)], ids=repr)
def test_the_cdn_never_gets_a_wrong_file_published(here: HubServer, push: Push, state_file: Path, fault: Fault) -> None:
    fresh(here, state_file)
    push("hf://you/model", "me/first")
    near = here.read("me/first", "model.safetensors")
    fresh(here, state_file, safetensors=near)
    push("hf://you/model/w.safetensors", "me/model")
    reads = here.log.count("cdn.get")
    assert reads >= 2
    for nth in range(1, reads + 1):
        fresh(here, state_file, safetensors=near)
        here.fail("cdn.get", fault, nth=nth)
        try:
            push("hf://you/model/w.safetensors", "me/model")
            assert here.read("me/model", "model.safetensors") == near
            assert load(near).keys() == sdconvert.open(state_file).state_dict.tensors.keys()
        except SdconvertError:
            assert "me/model" not in here.store.repos
