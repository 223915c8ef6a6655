"""The same faults, put into the system calls themselves by strace, and what a conversion asks of the system at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .hostile.execution import CASES
from .test_faults import OLD, OUTPUT, ROOT, source_bytes

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(
    STRACE is None or subprocess.run([STRACE, "-f", "true"], capture_output=True, check=False).returncode != 0,
    reason="strace is not installed, or may not trace here",
)
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}
# Never made by Python itself before the conversion begins, so a count of them starts with it.
CALLS = ("pwrite64", "fallocate", "fsync", "linkat", "renameat,rename,renameat2", "preadv,preadv2")


def traced(*options: str, cwd: Path, log: Path, args: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    assert STRACE is not None
    return subprocess.run(
        [
            STRACE,
            "-f",
            "-qq",
            "-o",
            str(log),
            *options,
            sys.executable,
            "-B",
            "-m",
            "sdconvert",
            "to-safetensors",
            "source.pt",
            OUTPUT,
            *args,
        ],
        cwd=cwd,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("what", ["error=ENOSPC", "error=EIO", "signal=KILL"])
@pytest.mark.parametrize("call", CALLS)
def test_injected(call: str, what: str, overwrite: bool, tmp_path: Path) -> None:
    """The first, second, ... call fails or is the process' last: nothing is lost and nothing left."""
    hit, sound = 0, None
    for when in (1, 2, 3, 5, 50):
        work = tmp_path / str(when)
        work.mkdir()
        (work / "source.pt").write_bytes(source_bytes())
        if overwrite:
            (work / OUTPUT).write_bytes(OLD)
        args = ("--overwrite",) if overwrite else ()
        log = tmp_path / "log"
        done = traced("-e", f"trace={call}", "-e", f"inject={call}:{what}:when={when}", cwd=work, log=log, args=args)
        was_hit = "INJECTED" in log.read_text() or "killed by SIGKILL" in log.read_text()
        hit += was_hit
        output = (work / OUTPUT).read_bytes() if (work / OUTPUT).exists() else None
        left = {path.name for path in work.iterdir()} - {"source.pt", OUTPUT}
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            sound = output
            assert output
        elif done.returncode == 1:
            assert len(done.stderr.splitlines()) == 1
            assert output == (OLD if overwrite else None) or "Nothing was left behind" not in done.stderr
        else:
            assert was_hit
            assert what == "signal=KILL"
            assert output in (OLD if overwrite else None, sound) or len(output or b"") > 20_000
        # Between link and rename there is a moment with a hidden name.
        assert not left or (what == "signal=KILL" and overwrite and call.startswith(("rename", "linkat")))
        if not was_hit:
            assert done.returncode == 0
            break
    else:
        pytest.fail(f"{call} is made more than 50 times")
    # What is replaced is renamed; what is new is linked.
    assert hit or (call.startswith("rename") and not overwrite)


@pytest.mark.parametrize(
    "name", ["exec-os.system", "exec-subprocess", "exec-socket", "exec-urlopen", "exec-refused-bare", "exec-in-wrapped"]
)
def test_nothing_is_run_connected_or_opened(name: str, tmp_path: Path) -> None:
    """After Python's own start a hostile file makes no exec, no socket, and opens only source and output."""
    case = next(case for case in CASES if case.name == name)
    work, log = tmp_path / "work", tmp_path / "log"
    work.mkdir()
    (work / "source.pt").write_bytes(case.build())
    traced(
        "-e",
        "trace=execve,execveat,fork,vfork,connect,socket,bind,sendto,open,openat,openat2,creat,unlink,unlinkat",
        cwd=work,
        log=log,
    )
    lines = log.read_text().splitlines()
    assert sum("execve" in line for line in lines) == 1
    assert not [line for line in lines if re.search(r"\b(socket|connect|bind|sendto|fork|vfork)\(", line)]
    start = next(index for index, line in enumerate(lines) if '"source.pt"' in line and "open" in line)
    opened = [
        match[1]
        for line in lines[start:]
        if (match := re.search(r'open(?:at2?)?\((?:AT_FDCWD|\d+), "([^"]*)"', line))
        or (match := re.search(r'\b(?:open|creat)\("([^"]*)"', line))
    ]
    own = (
        str(ROOT / "sdconvert"),
        sys.prefix,
        sys.base_prefix,
        str(Path(os.__file__).parent),
        "/proc/self/",
        "/sys/fs/cgroup",
        "/sys/devices/system/cpu",
        "/etc/ld.so",
        "/lib",
        "/usr/lib",
        "/etc/localtime",
        "/usr/share/zoneinfo",
    )
    strange = [
        path for path in opened if path not in ("source.pt", ".", OUTPUT, str(work)) and not path.startswith(own)
    ]
    assert strange == []
    assert {path.name for path in work.iterdir()} <= {"source.pt", OUTPUT}
