"""Broken disks, full disks, kills and signals: the output is whole, or what was there before is.

The conversion runs in a forked child in which one call of the operating system, the
N-th, fails or kills the process; N goes up until nothing is hit any more, so every call
of a conversion is hit once, with every error.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .hostile.pickling import dict_of, tensor
from .hostile.zips import torch_zip

ROOT = Path(__file__).parents[1]
OLD = b"what was there before"
OUTPUT = "out.safetensors"
CALLS = ("open", "pwrite", "fsync", "rename", "link", "unlink", "close", "posix_fallocate", "preadv")
CHUNK = 1 << 12
BYTES = 5 * CHUNK + 1000

# Runs one conversion with one fault in it. It is given to a fresh interpreter that stays small.
_RUNNER = """
import errno, json, os, signal, sys
job = json.load(sys.stdin)
sys.path.insert(0, job["root"])
os.chdir(job["directory"])
from sdconvert import atomic, cli, stream
stream.CHUNK = job["chunk"]
if job["hidden"]:
    del os.O_TMPFILE
import threading
hits, lock = 0, threading.Lock()
def faulty(name, real):
    def call(*args, **kwargs):
        global hits
        with lock:
            hits += 1
            hit = hits == job["when"]
        if hit and job["how"] == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        if hit and job["how"] == "interrupt before":
            os.kill(os.getpid(), signal.SIGINT)
        if hit and job["how"] == "interrupt after":
            try:
                return real(*args, **kwargs)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
        if hit and job["how"] == "kill after":
            real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        if hit and job["how"] == "short" and name == "pwrite":
            return real(args[0], bytes(args[1])[:1], *args[2:])
        if hit and job["how"].startswith("E"):
            if name == "close":  # As Linux does it: the descriptor is gone all the same.
                real(*args, **kwargs)
            number = getattr(errno, job["how"])
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)
    return call
results = []
for when in job["whens"]:
    pid = os.fork()
    if pid == 0:
        job["when"] = when
        fd = os.open(job["stderr"] + str(when), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 2); os.dup2(fd, 1)
        for name in job["calls"]:
            setattr(os, name, faulty(name, getattr(os, name)))
        code = 70
        try:
            code = cli.main(job["argv"])
            sys.stdout.flush()
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(100 if hits < when and code == 0 else code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = {n: open(n, "rb").read().hex() if n.startswith(("out", "extras")) else "" for n in os.listdir(".")}
    results.append({"when": when, "code": status, "stderr": open(job["stderr"] + str(when)).read(), "left": left})
    for name in left:
        if name != "source.pt":
            os.unlink(name)
    if job["old"]:
        open("out.safetensors", "wb").write(bytes.fromhex(job["old"]))
    if status == 100:
        break
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Run:
    """One conversion with a fault in its call number `when`; `code` 100 means that there was none so late."""

    when: int
    code: int
    stderr: str
    left: dict[str, str]

    @property
    def output(self) -> bytes | None:
        return bytes.fromhex(self.left[OUTPUT]) if OUTPUT in self.left else None

    @property
    def leftovers(self) -> list[str]:
        return sorted(name for name in self.left if name not in ("source.pt", OUTPUT))


def source_bytes() -> bytes:
    """A checkpoint of several chunks, with a transposed tensor in it."""
    data = struct.pack(f"<{BYTES // 4}I", *range(BYTES // 4))
    numel = BYTES // 4
    whole = tensor((numel,), numel=numel, kind="torch.IntStorage")
    turned = tensor((100, 50), (1, 100), numel=numel, kind="torch.IntStorage")
    return torch_zip(dict_of(("whole", whole), ("turned", turned)), storages={"0": data})


def inject(
    directory: Path,
    how: str,
    *,
    calls: tuple[str, ...] = CALLS,
    overwrite: bool = False,
    hidden: bool = False,
    extra: tuple[str, ...] = (),
) -> list[Run]:
    """One run for each call that a conversion makes, with the fault in that call."""
    work = directory / "work"
    work.mkdir()
    (work / "source.pt").write_bytes(source_bytes())
    if overwrite:
        (work / OUTPUT).write_bytes(OLD)
    job = {
        "root": str(ROOT),
        "directory": str(work),
        "chunk": CHUNK,
        "how": how,
        "calls": calls,
        "hidden": hidden,
        "argv": ["to-safetensors", "source.pt", OUTPUT, *(["--overwrite"] if overwrite else []), *extra],
        "stderr": str(directory / "stderr"),
        "old": OLD.hex() if overwrite else "",
        "whens": list(range(1, 400)),
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER], input=json.dumps(job), capture_output=True, text=True, timeout=120, check=True
    )
    runs = [Run(**result) for result in json.loads(done.stdout)]
    assert runs[-1].code == 100, "the last run must have met no fault"
    assert len(runs) > 1
    return runs


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the conversion gives when nothing fails."""
    directory = tmp_path_factory.mktemp("sound")
    (directory / "source.pt").write_bytes(source_bytes())
    subprocess.run(
        [sys.executable, "-m", "sdconvert", "to-safetensors", str(directory / "source.pt"), str(directory / OUTPUT)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return (directory / OUTPUT).read_bytes()


def holds(run: Run, sound: bytes, *, overwrite: bool) -> list[str]:
    """What is wrong with a run that was refused or got through."""
    wrong = []
    before = OLD if overwrite else None
    if run.code in (0, 100):
        if run.output != sound:
            wrong.append("said that all is well, and the output is not")
    else:
        # After the name is given only the sync of its directory can fail: then it is there, and the message says so.
        if run.code == 1 and run.output != before and "Nothing was left behind" in run.stderr:
            wrong.append("says that nothing was left behind, and something was")
        if run.output not in (before, sound):
            wrong.append("the output is neither whole nor what it was")
        lines = run.stderr.splitlines()
        if run.code == 1 and (len(lines) != 1 or not lines[0].startswith("sdconvert: error: ")):
            wrong.append(f"not one line: {run.stderr!r}")
        if run.code == 130 and lines != ["sdconvert: interrupted; no part of an output was left behind"]:
            wrong.append(f"not the line about an interrupt: {run.stderr!r}")
        if run.code not in (1, 130, -signal.SIGKILL):
            wrong.append(f"exit code {run.code}: {run.stderr[-300:]}")
    if run.leftovers:
        wrong.append(f"left {run.leftovers}")
    return [f"call {run.when}: {what}" for what in wrong]


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("hidden", [False, True], ids=["nameless", "hidden"])
@pytest.mark.parametrize("how", ["ENOSPC", "EIO", "EDQUOT", "short"])
def test_every_call_fails_in_turn(how: str, hidden: bool, overwrite: bool, tmp_path: Path, sound: bytes) -> None:
    """A failing call is an error of one line, or was not needed; the directory is as it was."""
    runs = inject(tmp_path, how, overwrite=overwrite, hidden=hidden)
    assert [what for run in runs for what in holds(run, sound, overwrite=overwrite)] == []


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("how", ["kill before", "kill after"])
def test_killed_at_every_call(how: str, overwrite: bool, tmp_path: Path, sound: bytes) -> None:
    """A kill leaves nothing, or the whole output. With --overwrite, one hidden whole file at one single place."""
    runs = inject(tmp_path, how, overwrite=overwrite)
    assert [what for run in runs for what in holds(run, sound, overwrite=overwrite) if "left" not in what] == []
    left = [run for run in runs if run.leftovers]
    assert len(left) <= (1 if overwrite else 0), [(run.when, run.leftovers) for run in left]
    for run in left:
        assert all(name.startswith(".") and name.endswith(".sdconvert-tmp") for name in run.leftovers)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("hidden", [False, True], ids=["nameless", "hidden"])
@pytest.mark.parametrize("how", ["interrupt before", "interrupt after"])
def test_interrupted_at_every_call(how: str, hidden: bool, overwrite: bool, tmp_path: Path, sound: bytes) -> None:
    """Wherever Ctrl-C comes: what was there before, or the whole output, and nothing beside it."""
    runs = inject(tmp_path, how, overwrite=overwrite, hidden=hidden)
    assert [what for run in runs for what in holds(run, sound, overwrite=overwrite)] == []
    assert sum(run.code == 130 for run in runs) > len(runs) // 2


@pytest.mark.parametrize("how", ["ENOSPC", "EIO", "interrupt after"])
def test_extras_and_weights_appear_together(how: str, tmp_path: Path, sound: bytes) -> None:
    """With --extras there are two outputs, and a failure leaves neither."""
    runs = inject(tmp_path, how, extra=("--extras", "extras.json"))
    wrong = [
        f"call {run.when}: {what}"
        for run in runs
        for what in holds(
            Run(run.when, run.code, run.stderr, {n: v for n, v in run.left.items() if n != "extras.json"}),
            sound,
            overwrite=False,
        )
    ]
    halves = [run.when for run in runs if ("extras.json" in run.left) != (OUTPUT in run.left)]
    assert wrong == []
    assert halves == []


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def converting(*args: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdconvert", "to-safetensors", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_a_disk_that_is_really_full(overwrite: bool, tmpfs: Path, tmp_path: Path) -> None:
    numel = 1 << 19
    (tmp_path / "source.pt").write_bytes(
        torch_zip(dict_of(("w", tensor((numel,), numel=numel))), storages={"0": bytes(4 * numel)})
    )
    if overwrite:
        (tmpfs / OUTPUT).write_bytes(OLD)
    flags = ["--overwrite"] if overwrite else []
    done = converting(str(tmp_path / "source.pt"), str(tmpfs / OUTPUT), *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("sdconvert: error: ")
    assert "No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmpfs.iterdir()] == ([OUTPUT] if overwrite else [])
    assert not overwrite or (tmpfs / OUTPUT).read_bytes() == OLD


def test_a_file_size_limit(tmp_path: Path) -> None:
    import resource

    (tmp_path / "source.pt").write_bytes(source_bytes())
    done = converting(
        "source.pt", OUTPUT, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "posix_fallocate"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_interrupted(number: signal.Signals, call: str, overwrite: bool, tmp_path: Path) -> None:
    """Exit 130 and nothing left; the conversion is held in one call until the signal is there."""
    holding = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from sdconvert import cli\n"
        f"real = os.{call}\n"
        "def slow(*args, **kwargs):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(1.5)\n"
        "    return real(*args, **kwargs)\n"
        f"os.{call} = slow\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    (tmp_path / "source.pt").write_bytes(source_bytes())
    if overwrite:
        (tmp_path / OUTPUT).write_bytes(OLD)
    argv = ["to-safetensors", "source.pt", OUTPUT, *(["--overwrite"] if overwrite else [])]
    with subprocess.Popen(
        [sys.executable, "-c", holding, *argv], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert len(stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ([OUTPUT] if overwrite else []) + ["source.pt"]
    assert not overwrite or (tmp_path / OUTPUT).read_bytes() == OLD


def test_errors_are_told_by_their_names() -> None:
    """The injected errors are those that the messages are looked for by."""
    assert {os.strerror(number) for number in (errno.ENOSPC, errno.EIO)} == {
        "No space left on device",
        "Input/output error",
    }
