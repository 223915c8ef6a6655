"""One command in a process of its own: how long it took, how much memory it held, how much it read.

A process inherits its parent's peak memory when it starts, so nothing that measures imports torch:
checkpoints are made, and results drawn, in processes of their own (`models`, `peers.plot`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
Command = list[str] | str
_PAINT = re.compile(r"\x1b\[[0-9;]*m")


class FailedError(Exception):
    """A command did not do it: what it said last, or how it ended."""


@dataclass(frozen=True)
class Measured:
    """Of one process and all it waited for.

    seconds: from before it was started until it had ended, by the wall clock.
    peak: bytes of resident memory, mapped files included (``ru_maxrss``).
    read: bytes by calls that read or copy (``rchar`` of ``/proc/PID/io``), from the page cache as
        from a disk; pages of a mapped file are not among them.
    """

    seconds: float
    peak: int
    read: int


def measured(command: Command, timeout: float = 600) -> Measured:
    """Run `command` with nothing dirty in the page cache. FailedError if it fails, or takes longer than `timeout`."""
    os.sync()
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, shell=isinstance(command, str), stdout=subprocess.DEVNULL, stderr=said, env=environment()
        )
        with contextlib.suppress(OSError):  # If memory runs out, this is what has to go; it may have ended already.
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            seconds = time.perf_counter() - began
        except BaseException:  # Whoever interrupts this wants nothing to go on, and what it writes to be removed.
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        counts = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    if late.is_set():
        raise FailedError(f"more than {timeout:.0f} s")
    if process.returncode < 0:
        raise FailedError(f"killed by signal {-process.returncode}")
    if process.returncode:
        errors = [at for at, line in enumerate(lines) if re.match(r"(\w|\.)*(Error|Exception)\b", line)]
        words = _PAINT.sub("", " ".join(lines[(errors or [-1])[-1] :])).split()
        raise FailedError(" ".join(words)[:300] or f"exit code {process.returncode}")
    return Measured(seconds, usage.ru_maxrss * 1024, int(counts["rchar"]))


def environment() -> dict[str, str]:
    """The one of this process, with this tree on the path: any interpreter finds `sdconvert` and `benchmarks`.

    Compiled modules are kept, as those of an installation are.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT)}


def made(what: str, path: Path, *numbers: float, python: str = sys.executable) -> None:
    """A checkpoint by ``benchmarks.models``, with an interpreter that has torch."""
    command = [python, "-m", "benchmarks.models", what, str(path), *map(str, numbers)]
    subprocess.run(command, check=True, env=environment())


def sdconvert(command: str, *arguments: str | Path) -> list[str]:
    """The command line of this tree's sdconvert."""
    return [sys.executable, "-m", "sdconvert", command, "-q", *map(str, arguments)]


def files(path: Path) -> list[Path]:
    """`path`, or the files in it."""
    return sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return sum(found.stat().st_size for found in files(path))


def warm(paths: Iterable[Path]) -> None:
    """Read files, so that the page cache has them."""
    buffer = bytearray(1 << 20)  # Small: it counts in the peak of every process that is started from here.
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def synced(path: Path) -> float:
    """Seconds until a file, or every file in a directory and the directory, is on the disk."""
    began = time.perf_counter()
    for found in [*files(path), path] if path.is_dir() else [path]:
        descriptor = os.open(found, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return time.perf_counter() - began


def remove(path: Path) -> None:
    """A file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def need(path: Path, nbytes: float) -> None:
    """Refuse to begin, with SystemExit, when the disk of `path` has no room for `nbytes` and a tenth."""
    free = shutil.disk_usage(path).free
    if free < nbytes * 1.1:
        raise SystemExit(f"{path} has {free / 1e9:.1f} GB free; {nbytes * 1.1 / 1e9:.1f} GB are needed")
