"""``sdconvert batch``, as a person or a cluster's scheduler runs it, and what they do to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from sdconvert.batch import read
from tests.batch.conftest import Checkpoints, one_at_a_time, outputs
from tests.test_faults import tmpfs  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "sdconvert", "batch", *args]


def batch(*args: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*args), cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_a_directory_and_then_nothing_to_do(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints(5)
    done = batch("in", "--output-dir", "new/out", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["done"] == 5
    assert sorted(path.name for path in (tmp_path / "new/out").iterdir()) == [
        *(f"{number}.safetensors" for number in range(5)),
        "sdconvert-manifest.jsonl",
    ]
    again = batch("in", "--output-dir", "new/out", "--resume", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("5 skipped, done before and unchanged; ")


def test_failures_are_named_and_the_rest_is_done(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints(3)
    (tmp_path / "in" / "1.pt").write_bytes(b"\x80\x02 no")
    done = batch("in", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "2 converted, 1 failed" in done.stdout
    assert "in/1.pt: " in done.stdout
    assert "Traceback" not in done.stderr


def test_quiet_names_failures_and_nothing_else(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints(2)
    (tmp_path / "in" / "1.pt").write_bytes(b"\x80\x02 no")
    done = batch("in", "--output-dir", "out", "-q", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sdconvert: error: in/1.pt: ")
    assert len(done.stderr.splitlines()) == 1


def test_sources_from_a_list_in_shares(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints(12)
    listed = "".join(f"in/{number}.pt\n" for number in range(12))
    counts = []
    for number in range(3):
        done = batch(
            "--list", "-", "--output-dir", "out", "--shard", f"{number}/3", "--json", cwd=tmp_path, input=listed
        )
        counts.append(json.loads(done.stdout)["done"])
    assert sum(counts) == 12
    made = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert made == sorted(f"{number}.safetensors" for number in range(12))


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["--output-dir", "out"], 2, "nothing to convert"),
        (["in", "--output-dir", "out", "--shard", "3/3"], 2, "I/N"),
        (["in", "--output-dir", "s3://bucket/out"], 2, "--manifest"),
        (["in/*.nothing", "--output-dir", "out"], 1, "fits no file"),
        (["in", "--output-dir", "out", "--executor", "abacus"], 1, "no executor"),
        (["in", "--output-dir", "in/0.pt/x"], 1, "cannot be made"),
    ],
)
def test_wrong_use(args: list[str], code: int, word: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints(1)
    done = batch(*args, cwd=tmp_path)
    assert done.returncode == code
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def big_checkpoints(tmp_path: Path, count: int) -> None:
    (tmp_path / "in").mkdir()
    for number in range(count):
        torch.save({"w": torch.full((1 << 20,), float(number))}, tmp_path / "in" / f"{number}.pt")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["KILL", "INT", "TERM"])
def test_a_driver_that_is_stopped_goes_on_where_it_was(number: signal.Signals, tmp_path: Path) -> None:
    big_checkpoints(tmp_path, 24)
    manifest = tmp_path / "out" / "sdconvert-manifest.jsonl"
    args = ("in", "--output-dir", "out", "--workers", "2")
    with subprocess.Popen(
        command(*args),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not manifest.exists() or manifest.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    if number is not signal.SIGKILL:
        assert (process.returncode, said.splitlines()[-1]) == (
            130,
            "sdconvert: interrupted; no part of an output was left behind",
        )
    time.sleep(0.3)  # Workers that lost their driver end by themselves.
    before = {record["output"] for record in read(manifest)}
    assert all(path.suffix in (".safetensors", ".jsonl") for path in (tmp_path / "out").iterdir())
    done = batch(*args, "--resume", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["skipped"] == len(before)
    assert summary["skipped"] + summary["there"] + summary["done"] == 24
    # Nothing that was done was done again, and all of it is right.
    converted = Counter(record["output"] for record in read(manifest) if record["status"] == "done")
    assert set(converted.values()) == {1}
    for name in range(24):
        assert sdconvert.verify(tmp_path / f"in/{name}.pt", tmp_path / f"out/{name}.safetensors").equal


def test_a_full_disk_fails_what_does_not_fit_and_keeps_the_rest(
    tmpfs: Path,  # noqa: F811
    checkpoints: Checkpoints,
    tmp_path: Path,
) -> None:
    jobs = checkpoints(3)
    torch.save({"w": torch.randn(1 << 19)}, tmp_path / "in" / "1.pt")
    done = batch("in", "--output-dir", str(tmpfs), "--retries", "1", "--workers", "1", "--json", cwd=tmp_path)
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failed"]) == (2, 1)
    assert "No space left" in summary["failures"][0]["error"]
    expected = one_at_a_time([jobs[0], jobs[2]], tmp_path / "single")
    assert {path.name: path.read_bytes() for path in tmpfs.glob("*.safetensors")} == expected
    assert outputs(jobs) == {}
