"""A task that goes wrong on purpose, in whatever process it runs: a file beside the source says how.

``model.pt.fault`` holds a kind and how often it strikes, such as ``kill 1``. What happened is counted in files
beside it, since processes that die remember nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from sdconvert import stream
from sdconvert.batch import Job, Outcome
from sdconvert.batch import task as real
from sdconvert.sharding import DIVIDE

_run, _write = real.run, stream.write


def plan(source: Path, kind: str, times: int = 1_000_000) -> None:
    """Let the first `times` conversions of `source` go wrong: ``kill``, ``EIO`` or ``wait``, for `go`."""
    Path(f"{source}.fault").write_text(f"{kind} {times}")


def go(source: Path) -> None:
    """Let those that wait, in the directory of `source`, go on."""
    _gate(source).touch()


def _gate(source: Path) -> Path:
    return source.with_name("go")


def tries(source: Path) -> int:
    """How often a conversion of `source` was begun."""
    return len(list(source.parent.glob(f"{source.name}.try-*")))


def workers(source: Path) -> set[int]:
    """The processes that began a conversion of `source`."""
    return {int(mark.name.rpartition("-")[2]) for mark in source.parent.glob(f"{source.name}.try-*")}


def run(job: Job, part: int = DIVIDE) -> Outcome:
    """`sdconvert.batch.run`, gone wrong if the source is marked."""
    source = Path(job.source)
    mark = source.with_name(source.name + f".try-{time.time_ns()}-{os.getpid()}")
    mark.touch()
    fault = Path(f"{source}.fault")
    if fault.exists():
        kind, times = fault.read_text().split()
        if tries(source) <= int(times):
            return _gone_wrong(kind, job, part)
    return _run(job, part)


def _gone_wrong(kind: str, job: Job, part: int) -> Outcome:
    if kind == "wait":
        while not _gate(Path(job.source)).exists():
            time.sleep(0.05)
        return _run(job, part)

    def write(fd: int, data: Any, at: int) -> None:
        """Half of what is to be written, then the end."""
        view = memoryview(data)
        _write(fd, view[: len(view) // 2], at)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))

    stream.write = write
    try:
        return _run(job, part)
    finally:
        stream.write = _write
