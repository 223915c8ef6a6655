"""Every example runs as its first lines say, does what they say, and is short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from tests.docs_files import ROOT, named
from tests.hub_server import HubServer

EXAMPLES = ROOT / "examples"


def run(name: str, *args: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / name), *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < (70 if path.stem == "train_charlm" else 60)
    assert f"python examples/{path.name}" in text.split('"""')[1]


def test_rescue_model(tmp_path: Path) -> None:
    said = run("rescue_model.py", str(EXAMPLES / "charlm.pt"), "charlm.safetensors", cwd=tmp_path)
    assert "classes that were not needed: __main__.CharLM" in said
    assert "embedding.weight" in load_file(tmp_path / "charlm.safetensors")
    run("rescue_model.py", "nowhere.pt", "x.safetensors", cwd=tmp_path, code=1)


def test_clean_checkpoint(tmp_path: Path) -> None:
    named(["last.ckpt", "gan.pt"], tmp_path)
    said = run("clean_checkpoint.py", "last.ckpt", "released", cwd=tmp_path)
    assert "left out: optimizer" in said
    assert json.loads((tmp_path / "released/last.json").read_text())["epoch"] == 3
    state = torch.load(tmp_path / "released/last.pt", weights_only=True)
    assert state["decoder.head.weight"].data_ptr() == state["encoder.embedding.weight"].data_ptr()
    assert len(list((tmp_path / "released").iterdir())) == 3
    torch.save({name: torch.load(tmp_path / "gan.pt")[name] for name in ("generator", "discriminator")}, tmp_path / "g")
    assert "generator (" in run("clean_checkpoint.py", "g", "more", cwd=tmp_path, code=1)


def test_load_differently(tmp_path: Path) -> None:
    assert run("load_differently.py", cwd=tmp_path) == "new, to be trained: head.weight head.bias\ntorch.Size([2, 3])\n"


def test_share_weights(tmp_path: Path) -> None:
    assert run("share_weights.py", str(EXAMPLES / "charlm.pt"), cwd=tmp_path) == "two models, one memory\n"


def test_publish_a_file_of_ones_own(hub: HubServer) -> None:
    done = hub.run([str(EXAMPLES / "publish.py"), str(EXAMPLES / "charlm.pt"), "me/charlm"], token=hub.token)
    assert done.returncode == 0, done.stderr
    assert "to send: model.safetensors" in done.stdout
    assert "committed: " in done.stdout
    assert "to the bit" in done.stdout
    assert hub.paths("me/charlm") == ["README.md", "model.safetensors"]
    assert "embedding.weight" in load(hub.read("me/charlm", "model.safetensors"))


def test_publish_safetensors_for_somebodys_pickle(hub: HubServer, tmp_path: Path) -> None:
    named(["model.pt"], tmp_path)
    hub.add_repo("you/model", {"pytorch_model.bin": (tmp_path / "model.pt").read_bytes()})
    done = hub.run([str(EXAMPLES / "publish.py"), "hf://you/model", "you/model"], token=hub.read_token)
    assert done.returncode == 0, done.stderr
    assert "proposed: " in done.stdout
    assert "to the bit" in done.stdout
    assert hub.paths("you/model") == ["pytorch_model.bin"]
    assert hub.paths("you/model", "refs/pr/1") == ["model.safetensors", "pytorch_model.bin"]
    refused = hub.run([str(EXAMPLES / "publish.py"), "nowhere.pt", "me/model"], token=hub.token)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: nowhere.pt")


@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_batch_anywhere(executor: str, tmp_path: Path) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="ray is not installed (it is for Python up to 3.13)")
    named(["runs/"], tmp_path)
    said = run("batch_anywhere.py", "runs", "converted", executor, cwd=tmp_path)
    assert said.startswith("2 converted; ")
    assert said.endswith("name more than weights: runs/a/last.pt runs/b/last.pt\n") or "runs/b/last.pt runs/a" in said
    assert (tmp_path / "converted/a/last.safetensors").is_file()
    assert run("batch_anywhere.py", "runs", "converted", executor, cwd=tmp_path).startswith("2 skipped")


def slurm(number: int, *args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Task `number` of an array of two, as SLURM would run it."""
    tool = cwd / "sdconvert"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sdconvert "$@"\n')
    tool.chmod(0o755)
    set_by_it = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
    path = {"PATH": f"{cwd}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", str(EXAMPLES / "batch.slurm"), *args],
        cwd=cwd,
        env={**os.environ, **set_by_it, **path, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("url", [False, True], ids=["directory", "url"])
def test_the_slurm_script_takes_its_share(url: bool, tmp_path: Path) -> None:
    named(["runs/"], tmp_path)
    if url:
        pytest.importorskip("fsspec")
    output = f"file://{tmp_path}/out" if url else "out"
    for number in (0, 1):
        done = slurm(number, "runs", output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.safetensors")} == {"a", "b"}
    manifests = tmp_path / "sdconvert-manifests" if url else tmp_path / "out"
    notes = "share-{}-of-2.jsonl" if url else "sdconvert-manifest-{}-of-2.jsonl"
    assert all((manifests / notes.format(number)).is_file() for number in (0, 1))
    again = [slurm(number, "runs", output, cwd=tmp_path, SLURM_ARRAY_TASK_COUNT="1", SHARES="2") for number in (0, 1)]
    assert all(done.returncode == 0 and " converted" not in done.stdout for done in again)


def test_the_slurm_script_says_what_it_lacks(tmp_path: Path) -> None:
    for args in ((), ("runs",)):
        done = slurm(0, *args, cwd=tmp_path)
        assert done.returncode != 0
        assert ("which checkpoints" in done.stderr) if not args else ("where to" in done.stderr)
