"""``sdconvert batch``, as a person or a cluster's scheduler runs it, and what they do to it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

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
        command(*args), cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False, **options
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


def test_what_a_list_may_hold(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Odd names, the same twice, two for one output, and what went away since it was listed."""
    checkpoints(3)
    odd = ["\u00fc \u65e5.pt", "-dash.pt", "[x].pt", "\x1b[31mred.pt", "per%20cent.pt", "x" * 240 + ".pt"]
    for name in odd:
        shutil.copy(tmp_path / "in" / "1.pt", tmp_path / "in" / name)
    latin = os.fsencode(tmp_path / "in") + b"/caf\xe9.pt"
    shutil.copy(os.fsencode(tmp_path / "in" / "1.pt"), latin)
    (tmp_path / "in" / "deep").mkdir()
    shutil.copy(tmp_path / "in" / "2.pt", tmp_path / "in" / "deep" / "0.pt")
    names = [*odd, "0.pt", "0.pt", "1.pt", "gone.pt", "[gone].pt", "y" * 252 + ".pt", "*.nothing", "deep/0.pt"]
    listed = b"".join(b"in/%s\n" % name.encode() for name in names) + latin + b"\n\n"
    (tmp_path / "list").write_bytes(listed)
    done = batch("--list", "list", "--output-dir", "out", "--json", "--workers", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["there"]) == (len(odd) + 3, 1)
    failed = {failure["source"] for failure in summary["failures"]}
    assert failed == {f"in/{name}" for name in ("gone.pt", "[gone].pt", "y" * 252 + ".pt", "*.nothing", "deep/0.pt")}
    assert all("\x1b" not in failure["error"] and "\n" not in failure["error"] for failure in summary["failures"])
    made = {os.fsencode(path.name) for path in (tmp_path / "out").glob("*.safetensors")}
    assert {b"caf\xe9.safetensors", "\u00fc \u65e5.safetensors".encode(), b"-dash.safetensors"} < made
    again = batch("--list", "list", "--output-dir", "out", "--json", "--resume", "--overwrite", cwd=tmp_path)
    repeated = json.loads(again.stdout)
    assert (repeated["skipped"], repeated["repeated"], repeated["failed"], repeated["done"]) == (len(odd) + 3, 1, 5, 0)


def test_a_directory_that_cannot_be_made_fails_what_belongs_in_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints(2)
    (tmp_path / "in" / "deep").mkdir()
    shutil.copy(tmp_path / "in" / "1.pt", tmp_path / "in" / "deep" / "1.pt")
    (tmp_path / "out" / "deep").write_text("in the way")
    done = batch("in", "--output-dir", "out", "--json", cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["done"], summary["failed"]) == (1, 2, 1)
    assert summary["failures"][0]["source"] == "in/deep/1.pt"


def test_what_each_conversion_can_be_told(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints(1)
    options = ["--metadata", "from=here", "--threads", "3", "--exclude", "b", "--token", "hf_secretsecret"]
    done = batch("in", "--output-dir", "out", "--dtype", "float16", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with safe_open(tmp_path / "out" / "0.safetensors", "pt") as file:
        assert file.metadata()["from"] == "here"
        assert (list(file.keys()), file.get_tensor("w").dtype) == (["w"], torch.float16)
    assert "secret" not in (tmp_path / "out" / "sdconvert-manifest.jsonl").read_text()


def big_checkpoints(tmp_path: Path, count: int) -> None:
    (tmp_path / "in").mkdir()
    for number in range(count):
        torch.save({"w": torch.full((1 << 20,), float(number))}, tmp_path / "in" / f"{number}.pt")


def started(*args: str, cwd: Path, count: int) -> subprocess.Popen[str]:
    """A batch of the first `count` of `big_checkpoints`, in a process group of its own. It waits for more sources from
    its standard input, so it is never done before a test has done to it what it wants to."""
    process = subprocess.Popen(
        command("--list", "-", *args),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write("".join(f"in/{number}.pt\n" for number in range(count)))
    process.stdin.flush()
    return process


def until(manifest: Path, process: subprocess.Popen[str], lines: int) -> None:
    """Wait for a batch to have noted so much."""
    while not manifest.exists() or manifest.read_bytes().count(b"\n") < lines:
        assert process.poll() is None
        time.sleep(0.005)


def all_ended(group: int) -> bool:
    """Whether no process of a group runs any more; those that nobody has asked for are dead, too."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            return False
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc to see workers end")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["KILL", "INT", "TERM"])
def test_a_driver_that_is_stopped_goes_on_where_it_was(number: signal.Signals, tmp_path: Path) -> None:
    big_checkpoints(tmp_path, 24)
    manifest = tmp_path / "out" / "sdconvert-manifest.jsonl"
    args = ("--output-dir", "out", "--workers", "2")
    with started(*args, cwd=tmp_path, count=24) as process:
        until(manifest, process, 3)
        process.send_signal(number)
        _, said = process.communicate(timeout=600)
    if number is not signal.SIGKILL:
        assert (process.returncode, said.splitlines()[-1]) == (
            130,
            "sdconvert: interrupted; no part of an output was left behind",
        )
    while not all_ended(process.pid):  # Workers that lost their driver end by themselves.
        time.sleep(0.01)
    before = {record["output"] for record in read(manifest)}
    assert all(path.suffix in (".safetensors", ".jsonl") for path in (tmp_path / "out").iterdir())
    listed = "".join(f"in/{name}.pt\n" for name in range(24))
    done = batch("--list", "-", *args, "--resume", "--json", cwd=tmp_path, input=listed)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["skipped"] == len(before)
    assert summary["skipped"] + summary["there"] + summary["done"] == 24
    # Nothing that was done was done again, and all of it is right.
    converted = Counter(record["output"] for record in read(manifest) if record["status"] == "done")
    assert set(converted.values()) == {1}
    for name in range(24):
        assert sdconvert.verify(tmp_path / f"in/{name}.pt", tmp_path / f"out/{name}.safetensors").equal


def test_a_ctrl_c_that_reaches_all_processes_says_one_line(tmp_path: Path) -> None:
    """As a terminal sends it: to the driver, to workers that are only just starting and to workers at work."""
    big_checkpoints(tmp_path, 24)
    manifest = tmp_path / "out" / "sdconvert-manifest.jsonl"
    for lines in (0, 3):
        with started("--output-dir", "out", "--workers", "2", cwd=tmp_path, count=24) as process:
            until(manifest, process, lines)
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=600)
        assert (process.returncode, said) == (130, "sdconvert: interrupted; no part of an output was left behind\n")
        assert all(path.suffix in (".safetensors", ".jsonl") for path in (tmp_path / "out").iterdir())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc to find workers")
def test_workers_that_are_killed_at_random_lose_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Five times, by kill -9, whichever worker it is; every output is there, once, and right."""
    jobs = checkpoints(60)
    expected = one_at_a_time(jobs, tmp_path / "single")
    manifest = tmp_path / "out" / "sdconvert-manifest.jsonl"
    with started("--output-dir", "out", "--workers", "2", "--json", cwd=tmp_path, count=60) as process:
        for lines in range(5, 30, 5):
            until(manifest, process, lines)
            workers: list[int] = []
            while not workers:
                workers = children(process.pid)
            with suppress(ProcessLookupError):
                os.kill(random.choice(workers), signal.SIGKILL)
        said, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    summary = json.loads(said)
    assert summary["done"] + summary["there"] == 60
    noted = [record["source"] for record in read(manifest)]
    assert len(noted) == len(set(noted)) == 60
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")} == expected


def children(parent: int) -> list[int]:
    """The workers of a driver."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return [number for number in found if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()]


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
