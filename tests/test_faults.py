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
from collections.abc import Callable, Iterator
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
    directory: Path, how: str, *, calls: tuple[str, ...] = CALLS, overwrite: bool = False, hidden: bool = False,
    extra: tuple[str, ...] = (),
) -> list[Run]:  # fmt: skip
    """One run for each call that a conversion makes, with the fault in that call."""
    work = directory / "work"
    work.mkdir()
    (work / "source.pt").write_bytes(source_bytes())
    if overwrite:
        (work / OUTPUT).write_bytes(OLD)
    job = {
        "root": str(ROOT), "directory": str(work), "chunk": CHUNK, "how": how, "calls": calls, "hidden": hidden,
        "argv": ["to-safetensors", "source.pt", OUTPUT, *(["--overwrite"] if overwrite else []), *extra],
        "stderr": str(directory / "stderr"), "old": OLD.hex() if overwrite else "", "whens": list(range(1, 400)),
    }  # fmt: skip
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
        check=True, cwd=ROOT, capture_output=True,
    )  # fmt: skip
    return (directory / OUTPUT).read_bytes()


def holds(run: Run, sound: bytes, *, overwrite: bool) -> list[str]:
    """What is wrong with a run that was refused or got through."""
    wrong = []
    before = OLD if overwrite else None
    if run.code in (0, 100):
        if run.output != sound:
            wrong.append("said that all is well, and the output is not")
    else:
        if run.code == 1 and run.output != before:
            whole = "whole" if run.output == sound else "wrong"
            wrong.append(f"failed, and the output is there ({whole})" if run.output else "failed, and the old output is gone")
        if run.output not in (before, sound):
            wrong.append("the output is neither whole nor what it was")
        lines = run.stderr.splitlines()
        if run.code == 1 and (len(lines) != 1 or not lines[0].startswith("sdconvert: error: ")):
            wrong.append(f"not one line: {run.stderr!r}")
        if run.code not in (1, -signal.SIGKILL):
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


@pytest.mark.parametrize("how", ["ENOSPC", "EIO"])
def test_extras_and_weights_appear_together(how: str, tmp_path: Path, sound: bytes) -> None:
    """With --extras there are two outputs, and a failure leaves neither."""
    runs = inject(tmp_path, how, extra=("--extras", "extras.json"))
    wrong = [
        f"call {run.when}: {what}"
        for run in runs
        for what in holds(Run(run.when, run.code, run.stderr, {n: v for n, v in run.left.items() if n != "extras.json"}),
                          sound, overwrite=False)
    ]  # fmt: skip
    halves = [run.when for run in runs if ("extras.json" in run.left) != (OUTPUT in run.left)]
    assert wrong == []
    assert halves == []


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def converting(*args: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdconvert", "to-safetensors", *args], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False, **options,
    )  # fmt: skip


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


# The source changes while it is converted: `meddle(path)` runs just before its N-th read.
_MEDDLER = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[2])
what, when = sys.argv[3], int(sys.argv[4])
from sdconvert import cli, source, stream
stream.CHUNK = 4096
reads, real = 0, source.FileSource.readinto
def readinto(self, offset, buffer):
    global reads
    reads += 1
    if reads == when:
        size = os.path.getsize("source.pt")
        if what == "truncate":
            os.truncate("source.pt", size // 2)
        elif what == "empty":
            os.truncate("source.pt", 0)
        elif what == "extend":
            open("source.pt", "ab").write(b"more")
        elif what == "rewrite":
            with open("source.pt", "r+b") as file:
                file.write(os.urandom(size))
            os.utime("source.pt", (1, 1))
        elif what == "replace":
            open("other", "wb").write(os.urandom(size))
            os.rename("other", "source.pt")
        elif what == "delete":
            os.unlink("source.pt")
    return real(self, offset, buffer)
source.FileSource.readinto = readinto
code = cli.main(["to-safetensors", "source.pt", "out.safetensors"])
sys.exit(100 if reads < when and code == 0 else code)
"""


@pytest.mark.parametrize("what", ["truncate", "empty", "extend", "rewrite", "replace", "delete"])
def test_the_source_changes_under_way(what: str, tmp_path: Path, sound: bytes) -> None:
    """Refused, or, where the open file is still the old one, the right output: never a wrong one, never a signal."""
    codes = []
    for when in (1, 2, 3, 4, 6, 8, 12, 40):
        work = tmp_path / str(when)
        work.mkdir()
        (work / "source.pt").write_bytes(source_bytes())
        done = subprocess.run(
            [sys.executable, "-c", _MEDDLER, str(ROOT), str(work), what, str(when)], capture_output=True, text=True, check=False
        )
        codes.append(done.returncode)
        names = {path.name for path in work.iterdir()} - {"source.pt"}
        if done.returncode in (0, 100):
            assert (work / OUTPUT).read_bytes() == sound
            assert names == {OUTPUT}
        else:
            assert done.returncode == 1
            assert len(done.stderr.splitlines()) == 1
            assert "Traceback" not in done.stderr
            assert names == set()
    assert codes[-1] == 100
    assert set(codes[:-1]) <= ({0, 100} if what in ("replace", "delete") else {0, 1, 100})
    assert what in ("replace", "delete") or 1 in codes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
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


def _link(target: str) -> Callable[[Path], None]:
    return lambda at: (at / OUTPUT).symlink_to(target)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize(
    ("make", "fine"),
    [
        (_link("victim"), True),
        (_link("nowhere"), True),
        (_link(OUTPUT), True),
        (_link("source.pt"), False),
        (lambda at: os.link(at / "source.pt", at / OUTPUT), False),
        (lambda at: (at / OUTPUT).mkdir(), False),
        (lambda at: os.mkfifo(at / OUTPUT), False),
        (_link("/dev/full"), True),
        (_link("/dev/null"), True),
    ],
    ids=["link", "dangling", "self-loop", "link-to-source", "hard-link-to-source", "directory", "fifo", "dev-full", "dev-null"],
)
def test_what_stands_in_the_place_of_the_output(
    make: Callable[[Path], None], fine: bool, overwrite: bool, tmp_path: Path, sound: bytes
) -> None:
    """Without --overwrite nothing is touched; with it a link is replaced, never followed."""
    source = source_bytes()
    (tmp_path / "source.pt").write_bytes(source)
    (tmp_path / "victim").write_bytes(OLD)
    make(tmp_path)
    link = (tmp_path / OUTPUT).is_symlink() or (tmp_path / OUTPUT).is_file()
    before = sorted(path.name for path in tmp_path.iterdir())
    done = converting("source.pt", OUTPUT, *(["--overwrite"] if overwrite else []), cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode in ((0,) if overwrite and fine else (0, 1) if overwrite and link else (1,)), done.stderr
    assert (tmp_path / "source.pt").read_bytes() == source
    assert (tmp_path / "victim").read_bytes() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if done.returncode == 0:
        assert (tmp_path / OUTPUT).read_bytes() == sound
        assert not (tmp_path / OUTPUT).is_symlink()


@pytest.mark.parametrize(
    "source", ["/dev/zero", "/dev/null", "fifo", "directory", "link-loop", "missing", "", ".", "\0", "a" * 5000, "/proc/self/mem", "-"]
)
def test_sources_that_are_no_files(source: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link-loop").symlink_to("link-loop")
    before = sorted(path.name for path in tmp_path.iterdir())
    if "\0" in source:
        from sdconvert import SdconvertError, convert

        with pytest.raises(SdconvertError):
            convert(source, tmp_path / OUTPUT)
    else:
        done = converting("--", source, OUTPUT, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["权" * 75, "n" * 243, "e\u0301" * 80], ids=["cjk", "ascii", "combining"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_the_longest_names_that_a_file_may_have(name: str, overwrite: bool, tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "source.pt").write_bytes(source_bytes())
    target = tmp_path / f"{name}.safetensors"
    if overwrite:
        target.write_bytes(OLD)
    done = converting("source.pt", str(target), *(["--overwrite"] if overwrite else []), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert target.read_bytes() == sound


def test_one_name_for_weights_and_extras(tmp_path: Path) -> None:
    (tmp_path / "source.pt").write_bytes(source_bytes())
    done = converting("source.pt", OUTPUT, "--extras", OUTPUT, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pt"]


def test_a_terminal_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "source.pt").write_bytes(torch_zip(dict_of(("重み.é", tensor()))))
    done = subprocess.run(
        [sys.executable, "-m", "sdconvert", "to-safetensors", "source.pt", "重み.safetensors"], cwd=tmp_path, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0


def test_errors_are_told_by_their_names() -> None:
    """The injected errors are those that the messages are looked for by."""
    assert {os.strerror(number) for number in (errno.ENOSPC, errno.EIO)} == {"No space left on device", "Input/output error"}
