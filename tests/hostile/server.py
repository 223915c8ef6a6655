"""Runs conversions in forked children of one small process that has imported only sdconvert.

Read from standard input, a JSON line for each job; answered by a JSON line each. A fork
costs milliseconds where a fresh interpreter costs a second, and ``wait4`` tells what the
child alone used; a case's seconds are the processor's. The address space is capped so that
a bomb cannot take the machine.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_ADDRESS_SPACE = 2 << 30
_PATIENCE = 60.0  # Seconds by the clock: who waits and does not compute is caught too.


def _child(job: dict[str, Any]) -> int:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    os.chdir(job["directory"])
    for number, name in ((1, job["stdout"]), (2, job["stderr"])):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, number)
        os.close(fd)
    from sdconvert.cli import main

    try:
        return main(job["argv"])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _run(job: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 71
        try:
            code = _child(job)
        finally:
            os._exit(code)
    pause, killed = 0.001, False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        waited = time.monotonic() - began
        if not killed and waited > job["seconds"] and (waited > _PATIENCE or _computed(pid) > job["seconds"]):
            os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "killed": killed,
        "seconds": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
    }


def _computed(pid: int) -> float:
    """The processor's seconds that a child has had so far; on a busy machine that is far less than the clock says."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve() -> None:
    """Answer jobs until standard input ends."""
    import sdconvert.cli  # noqa: F401 - imported once, before the forks

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()
