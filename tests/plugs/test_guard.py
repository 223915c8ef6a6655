"""The pre-commit hook and the GitHub Action, as their hosts would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from tests.docs_files import ROOT, Net, named

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with safetensors, a harmless pickle, and one that names a class of its own."""
    place = tmp_path / "a repository"
    (place / "deep").mkdir(parents=True)
    sdconvert.save(Net(), place / "clean.safetensors")
    torch.save(Net().state_dict(), place / "deep" / "plain one.pt")
    torch.save(Net(), place / "whole.pth")
    (place / "notes.txt").write_text("no checkpoint")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    return place


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment in which the command is this tree's."""
    tool = tmp_path / "sdconvert" / "bin" / "sdconvert"
    tool.parent.mkdir(parents=True)
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sdconvert "$@"\n')
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "RUNNER_TEMP": str(tmp_path), "PATH": path}


def step(number: int) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][number]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("fail_on", "code", "named_files"),
    [("pickle", 123, ["deep/plain one.pt", "whole.pth"]), ("unknown", 123, ["whole.pth"]), ("dangerous", 0, [])],
)
def test_the_action(fail_on: str, code: int, named_files: list[str], repository: Path, env: dict[str, str]) -> None:
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    assert inputs["fail-on"]["default"] == "pickle"
    env |= {"FILES": inputs["files"]["default"], "FAIL_ON": fail_on}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step(1)["run"]], cwd=repository, env=env, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert [re.sub("^sdconvert: (.*?): .*", r"\1", line) for line in done.stderr.splitlines()] == named_files


def test_a_file_that_is_called_like_an_option_is_a_file(repository: Path, env: dict[str, str]) -> None:
    name = "--html=page.pt"
    (repository / "whole.pth").rename(repository / name)
    subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
    env |= {"FILES": "*page.pt", "FAIL_ON": "pickle"}
    done = subprocess.run(["bash", "-c", step(1)["run"]], cwd=repository, env=env, capture_output=True, text=True)
    assert f"sdconvert: {name}: is a pickle" in done.stderr
    hook = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]
    command = [*hook["entry"].split(), *hook["args"], name]
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True)
    assert f"sdconvert: {name}: is a pickle" in done.stderr


def test_the_action_has_nothing_to_say_of_a_repository_without_checkpoints(tmp_path: Path, env: dict[str, str]) -> None:
    subprocess.run(["git", "init", "-q", "empty"], cwd=tmp_path, check=True)
    env |= {"FILES": "*.pt", "FAIL_ON": "pickle"}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", step(1)["run"]], cwd=tmp_path / "empty", env=env, check=True)


@pytest.mark.parametrize(("hook", "code"), [("no-pickles", 1), ("no-unknown-globals", 1)])
def test_a_hook_looks_at_the_files_that_it_is_given(
    hook: str, code: int, repository: Path, env: dict[str, str]
) -> None:
    hooks = {one["id"]: one for one in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    files = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    fits = [name for name in files.splitlines() if re.search(hooks[hook]["files"], name)]
    assert fits == ["clean.safetensors", "deep/plain one.pt", "whole.pth"]
    start = [*hooks[hook]["entry"].split(), *hooks[hook]["args"]]
    command = [*start, *fits]
    assert subprocess.run(command, cwd=repository, env=env, capture_output=True).returncode == code
    named(["hidden.pt"], repository)
    clean = [*start, "clean.safetensors"]
    assert subprocess.run(clean, cwd=repository, env=env, capture_output=True).returncode == 0


@pytest.mark.slow
def test_pre_commit_itself_runs_the_hook(repository: Path, env: dict[str, str]) -> None:
    """Whole: pre-commit installs this repository into an environment of its own. Needs pre-commit and an index."""
    if "SDCONVERT_TEST_PRE_COMMIT" not in os.environ:
        pytest.skip("set SDCONVERT_TEST_PRE_COMMIT to a pre-commit command; it installs packages")
    tool = os.environ["SDCONVERT_TEST_PRE_COMMIT"]
    env |= {"PRE_COMMIT_HOME": env["RUNNER_TEMP"] + "/cache"}
    env.pop("PYTHONPATH")
    command = [tool, "try-repo", str(ROOT), "no-pickles", "--all-files"]
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "whole.pth: is a pickle" in done.stdout
