"""From a pickle to a published repository that the libraries read, in one command, by every way of sending."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.hub.readers import described
from tests.hub_server import HubServer

needs_xet = pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
MODES = ["basic", "multipart", pytest.param("xet", marks=needs_xet)]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, hub: HubServer) -> str:
    """How content is sent: in one piece, in parts of 200 kB, or by Xet."""
    if request.param == "multipart":
        hub.settings.transfer, hub.settings.part_bytes = "multipart", 200_000
    return str(request.param)


def run(hub: HubServer, mode: str, *argv: str, token: str | None = None) -> str:
    done = hub.run(argv, token=token, xet=mode == "xet")
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen(hub: HubServer, mode: str, repo: str, revision: str = "main") -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(run(hub, mode, "-m", "tests.hub.readers", repo, revision))
    return found


def checks_out(hub: HubServer, text: str, cwd: Path | None = None) -> None:
    """The command in a description, run as it stands, says that all is well."""
    command = shlex.split(re.findall(r"```\n(sdconvert .*?)\n```", text)[0])
    done = hub.run(["-m", *command], cwd=cwd)
    assert (done.returncode, "equal:" in done.stdout) == (0, True), done.stdout + done.stderr


def sent_as(hub: HubServer, mode: str) -> None:
    route = {"basic": "cdn.put", "multipart": "cdn.put-part", "xet": "hub.xet-write-token"}[mode]
    assert hub.log.count(route) >= (2 if mode == "multipart" else 1)
    assert hub.log.received("cdn.*") == 0 or mode != "xet"


def test_a_pickled_model(hub: HubServer, mode: str, model_file: Path) -> None:
    run(hub, mode, "-m", "sdconvert", "push", str(model_file), "me/model", token=hub.token)
    sent_as(hub, mode)
    assert hub.paths("me/model") == ["README.md", "model.safetensors"]
    state = torch.load(model_file, weights_only=False).state_dict()
    del state["1.weight"]
    assert seen(hub, mode, "me/model") == {"tensors": described(state), "ties": {"1.weight": "0.weight"}}
    checks_out(hub, hub.read("me/model", "README.md").decode(), cwd=model_file.parent)


def test_a_pickled_model_as_a_pull_request(hub: HubServer, mode: str, model_file: Path) -> None:
    hub.add_repo("you/model", {"config.json": b"{}"})
    argv = ["-m", "sdconvert", "push", str(model_file), "you/model", "--create-pr", "--json"]
    said = json.loads(run(hub, mode, *argv, token=hub.read_token))
    sent_as(hub, mode)
    assert (said["outcome"], said["pull_request"]) == ("proposed", 1)
    assert hub.paths("you/model") == ["config.json"]
    assert hub.paths("you/model", "refs/pr/1") == ["config.json", "model.safetensors"]
    assert seen(hub, mode, "you/model", "refs/pr/1")["ties"] == {"1.weight": "0.weight"}
    checks_out(hub, said["description"], cwd=model_file.parent)


def test_what_is_on_the_hub_as_a_pull_request_to_it(hub: HubServer, mode: str, state_file: Path) -> None:
    hub.add_repo("you/model", {"pytorch_model.bin": state_file.read_bytes(), "config.json": b"{}"}, xet=mode == "xet")
    head = hub.api().model_info("you/model").sha
    argv = ["-m", "sdconvert", "push", "hf://you/model", "you/model", "--create-pr", "--json"]
    said = json.loads(run(hub, mode, *argv, token=hub.read_token))
    sent_as(hub, mode)
    state = torch.load(state_file)
    assert seen(hub, mode, "you/model", "refs/pr/1") == {"tensors": described(state), "ties": {}}
    # What transformers looks for before it uses a pull request.
    details = hub.api().get_discussion_details("you/model", 1)
    commits = hub.api().list_repo_commits("you/model", revision="refs/pr/1")
    assert (details.title, details.status) == ("Adding `safetensors` variant of this model", "open")
    assert (commits[1].commit_id, commits[0].commit_id) == (head, said["commit"])
    assert details.events[0].content == said["description"]
    checks_out(hub, said["description"])


def test_what_is_on_the_hub_to_a_repository_of_ones_own(hub: HubServer, mode: str, state_file: Path) -> None:
    hub.add_repo("you/model", {"pytorch_model.bin": state_file.read_bytes()}, xet=mode == "xet")
    run(hub, mode, "-m", "sdconvert", "push", "hf://you/model", "me/copy", token=hub.token)
    assert seen(hub, mode, "me/copy") == {"tensors": described(torch.load(state_file)), "ties": {}}
    checks_out(hub, hub.read("me/copy", "README.md").decode())


def test_the_program_that_hf_extensions_start() -> None:
    """``hf sdconvert ...`` runs ``hf-sdconvert ...``."""
    scripts = (Path(__file__).parents[2] / "pyproject.toml").read_text().partition("[project.scripts]")[2]
    assert re.search(r'^hf-sdconvert = "sdconvert.__main__:main"', scripts, re.MULTILINE)
