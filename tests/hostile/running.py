"""Runs a case and says what is wrong with what happened."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors

from .case import CONVERT, EITHER, REJECT, Case

OUTPUT = "out.safetensors"


@dataclass(frozen=True)
class Outcome:
    """What one run of the command line did."""

    code: int
    killed: bool
    seconds: float
    memory: int
    stdout: str
    stderr: str
    left: tuple[str, ...]
    """What is in the directory afterwards beside the source and the output."""


class Server:
    """The forking process of `server`, one for a whole test session."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"},
        )

    def run(self, case: Case, directory: Path, argv: Sequence[str] | None = None) -> Outcome:
        """Run one command over the case's file (default: its conversion), in the directory `work` there."""
        work, logs = directory / "work", directory / "logs"
        if not work.exists():
            work.mkdir()
            logs.mkdir()
            (work / case.file).write_bytes(case.build())
        job = {
            "directory": str(work),
            "stdout": str(logs / "stdout"),
            "stderr": str(logs / "stderr"),
            "argv": ["to-safetensors", case.file, OUTPUT, *case.args] if argv is None else list(argv),
            "seconds": case.seconds,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        said = {name: _beginning(logs / name) for name in ("stdout", "stderr")}
        named = case.args if answer["code"] == 0 else ()  # Such as the file for --extras.
        left = {path.name for path in work.iterdir()} - {case.file, OUTPUT, *named}
        return Outcome(**answer, **said, left=tuple(sorted(left)))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def _beginning(path: Path) -> str:
    """What a bomb printed, no further than is needed to see that it is one."""
    with path.open("rb") as file:
        return file.read(1 << 20).decode("utf-8", "replace")


def complaints(case: Case, outcome: Outcome, directory: Path) -> list[str]:
    """Everything that is not as it must be after a conversion; empty when the case holds."""
    output = directory / "work" / OUTPUT
    wrong = crimes(case, outcome)

    def check(fine: bool, what: str) -> None:
        if not fine:
            wrong.append(what)

    check(not outcome.left, f"left {outcome.left}")
    if outcome.killed:
        return wrong
    check(outcome.code in ({REJECT: (1,), CONVERT: (0,), EITHER: (0, 1)}[case.expect]), f"exit code {outcome.code}")
    if outcome.code == 1:
        check(not output.exists(), "left an output")
    check(
        case.says in outcome.stdout + outcome.stderr, f"does not say {case.says!r}: {outcome.stdout + outcome.stderr}"
    )
    if outcome.code == 0 and "--dry-run" not in case.args:
        if output.stat().st_size > 64 << 20:
            with safetensors.safe_open(output, "np"):
                return wrong
        found = {
            name: (info["dtype"], tuple(info["shape"]), bytes(info["data"]))
            for name, info in safetensors.deserialize(output.read_bytes())
        }
        check(case.tensors is None or found == dict(case.tensors), f"wrong tensors: {str(found)[:300]}")
    return wrong


def crimes(case: Case, outcome: Outcome) -> list[str]:
    """What no command may do, whatever the file: hang, swell, crash, or say more than a line when it refuses."""
    wrong: list[str] = []

    def check(fine: bool, what: str) -> None:
        if not fine:
            wrong.append(what)

    check(not outcome.killed, f"took more than {case.seconds} s")
    check(outcome.memory <= case.memory, f"took {outcome.memory >> 20} MB")
    check("Traceback" not in outcome.stderr + outcome.stdout, f"crashed: {outcome.stderr[-300:]}")
    for stream in (outcome.stdout, outcome.stderr):
        check(all(c.isprintable() or c == "\n" for c in stream), "printed control characters")
        check(len(stream) < 100_000, "printed more than 100 kB")
    if outcome.code == 1 and not outcome.killed:
        lines = outcome.stderr.splitlines()
        check(len(lines) == 1 and lines[0].startswith("sdconvert: error: "), f"not one line: {outcome.stderr[:300]!r}")
        check("not enough memory" not in outcome.stderr, "ran out of memory")
    return wrong
