"""Every way over every case, by really going it: what comes out, and whether a hidden command was run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import Command, FailedError, environment, measured, remove
from benchmarks.peers import outcome
from benchmarks.peers.contest import Contest
from benchmarks.peers.ways import COPY, DCPS, FILES, OURS, ZEROS, Way

RUNS_IT = "RUNS THE COMMAND"
_WAYS = {"file": FILES, "dcp": DCPS, "zero": ZEROS}


def checked(contest: Contest, folder: Path) -> list[dict[str, Any]]:
    """For each case: its label, and for each way a verdict, what it said, and how it was with something by hand."""
    command = [contest.python, "-m", "benchmarks.peers.cases", str(folder)]
    cases = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout.splitlines()[-1]
    )
    rows = []
    for case in cases:
        row: dict[str, Any] = {"label": case["label"], "ways": {}}
        for way in _WAYS[case["kind"]]:
            if way is not COPY and way.package not in contest.missing:
                row["ways"][way.name] = _by_one(contest, way, case, folder)
                print(f"  {case['label']}: {way.name}: {row['ways'][way.name]}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def _by_one(contest: Contest, way: Way, case: dict[str, Any], folder: Path) -> dict[str, str]:
    source, out = Path(case["path"]), folder / f"out{way.ending}".rstrip("/")
    command = way.command(contest.python, source, out)
    found = dict(zip(("verdict", "said"), _gone(contest, command, out, case, folder), strict=True))
    given = case["by_hand"] if way.unpickles else case["by_hand"].removeprefix("!")
    if found["verdict"] != outcome.RIGHT and given and way is not OURS:
        again, said = _gone(contest, [*command, given], out, case, folder)
        if again != found["verdict"]:
            called = ["`weights_only=False`"] * given.startswith("!") + ["the key"] * bool(given.removeprefix("!"))
            found |= {"by_hand": again, "called": " and ".join(called), "said_by_hand": said}
    return found


def _gone(contest: Contest, command: Command, out: Path, case: dict[str, Any], folder: Path) -> tuple[str, str]:
    """The verdict, and the last line that it said, if it failed."""
    said, mark = "", folder / "ran"
    try:
        measured(command, contest.timeout)
        judge = [contest.python, "-m", "benchmarks.peers.outcome", str(out)]
        truth = json.dumps(case["truth"])
        done = subprocess.run(judge, input=truth, check=True, capture_output=True, text=True, env=environment())
        verdict = done.stdout.strip()
    except FailedError as error:
        said = str(error).replace(str(folder), ".")
        verdict = outcome.refused(said)
    finally:
        for beside in folder.glob("out*"):
            remove(beside)
    if mark.exists():
        mark.unlink()
        verdict = RUNS_IT
    return verdict, said
