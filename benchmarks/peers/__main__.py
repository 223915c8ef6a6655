"""sdconvert beside what people use today, in one run.

    python -m benchmarks.peers --write        # all of it: 25 minutes, 40 GB of disk, 16 GB of memory
    python -m benchmarks.peers --quick        # without 12 GB and with fewer rounds: 5 minutes

Every way runs in a process of its own, in turn with the others, several times, who goes first alternating; each starts
with its source in the page cache and nothing dirty. sdconvert checks the source's checksums, writes, syncs, reads its
output back and compares; the others read and write. Prints Markdown, and writes the results as JSON; ``--write`` puts
them into docs/performance.md and README.md, with the plot.

The peers have an environment of their own, which is made first (minutes, 1.5 GB) unless ``--peers-python`` names an
interpreter that has them; those that it lacks are left out, and the tables say so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.measure import ROOT, environment, made, need, remove, size
from benchmarks.peers import environment as peers
from benchmarks.peers import render
from benchmarks.peers.contest import Contest
from benchmarks.peers.correctness import checked
from benchmarks.peers.ways import DCPS, FILES, ZEROS

GROUPS = {"rows": ("torch.distributed, 4 ranks", DCPS), "zero": ("DeepSpeed ZeRO-3, 4 ranks", ZEROS)}


@dataclass(frozen=True)
class Plan:
    """What is measured: checkpoints and how many rounds each."""

    files: tuple[tuple[float, int], ...]
    counts: tuple[int, ...]
    count_rounds: int
    directories: tuple[float, int]
    loader: tuple[int, int]  # Layers, rounds.


FULL = Plan(((1e6, 5), (1e8, 5), (3e9, 3), (12e9, 3)), (1_000, 10_000, 100_000), 3, (3e9, 3), (24, 3))
QUICK = Plan(((1e6, 2), (1e8, 2), (3e9, 1)), (1_000, 10_000), 1, (3e8, 1), (6, 1))
TINY = Plan(((1e6, 1),), (1_000,), 1, (2e7, 1), (1, 1))  # For the tests of this command itself.


def label(nbytes: float) -> str:
    return f"{nbytes / 1e9:g} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:g} MB"


def files(contest: Contest, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Language models of several sizes; the smallest is of 25 tensors."""
    found = []
    for nbytes, rounds in plan.files:
        need(folder, nbytes * 3)
        source = folder / "model.pt"
        made(*(("small", source) if nbytes < 1e7 else ("language", source, nbytes)), python=contest.python)
        found.append(contest.held(label(nbytes), source, FILES, rounds))
        source.unlink()
    return found


def counts(contest: Contest, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """So many tensors of 64 bytes."""
    found = []
    for count in plan.counts:
        source = folder / "many.pt"
        made("many", source, count, python=contest.python)
        row = contest.held(f"{count:,} tensors", source, FILES, plan.count_rounds)
        found.append({**row, "count": count})
        source.unlink()
    return found


def directories(contest: Contest, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Checkpoints of four ranks."""
    found = []
    nbytes, rounds = plan.directories
    for what, (name, ways) in GROUPS.items():
        need(folder, nbytes * 4)
        source = folder / what
        made(what, source, nbytes, python=contest.python)
        found.append(contest.held(name, source, ways, rounds))
        remove(source)
    return found


def loader(contest: Contest, plan: Plan, folder: Path) -> dict[str, Any]:
    """From a file to a model."""
    layers, rounds = plan.loader
    path = folder / "loaded.safetensors"
    ways = tuple(way for way in load.PEERS if way not in contest.missing)
    print(f"  loader: {', '.join(ways)}", file=sys.stderr, flush=True)
    taken = load.in_turn(str(path), ways, layers, rounds, contest.python)
    nbytes = size(path)
    for beside in (path, path.with_suffix(".pt")):
        beside.unlink()
    return {"bytes": nbytes, "ways": {way: taken.get(way, []) for way in load.PEERS}}


def correctness(contest: Contest, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """What comes out of checkpoints of the kinds that go wrong."""
    place = folder / "cases"
    place.mkdir()
    return checked(contest, place)


PARTS: dict[str, Callable[[Contest, Plan, Path], Any]] = {
    "files": files,
    "counts": counts,
    "directories": directories,
    "loader": loader,
    "correctness": correctness,
}


def drawn(python: str) -> None:
    """The plot, by the peers' matplotlib."""
    command = [python, "-m", "benchmarks.peers.plot", str(render.RESULTS), str(render.PLOT)]
    subprocess.run(command, check=True, env=environment())


def available() -> int:
    """Bytes of memory that processes can have now."""
    with open("/proc/meminfo") as facts:
        return next(int(line.split()[1]) * 1024 for line in facts if line.startswith("MemAvailable"))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plans = parser.add_mutually_exclusive_group()
    plans.add_argument("--quick", action="store_const", dest="plan", const=QUICK, default=FULL)
    plans.add_argument("--tiny", action="store_const", dest="plan", const=TINY, help="only whether it works")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="parts of it")
    parser.add_argument("--peers-python", help="an interpreter that has the peers")
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-peers", help="where to make the peers' one")
    parser.add_argument("--results", type=Path, help="where the JSON goes (with --write: benchmarks/results.json)")
    parser.add_argument("--write", action="store_true", help="docs/performance.md, README.md and the plot too")
    parser.add_argument("--render", action="store_true", help="those alone, from benchmarks/results.json")
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what was made is removed.
    if args.write and (args.plan is TINY or set(args.only) != set(PARTS)):
        parser.error("only a whole run can be written into the docs")
    if args.render and not render.RESULTS.exists():
        parser.error(f"there is no {render.RESULTS}")
    python = args.peers_python or peers.made(args.environment)
    if not args.render:
        results = measured(args.plan, args.only, python, args.dir)
        for out in filter(None, (args.results, render.RESULTS if args.write else None)):
            out.write_text(json.dumps(results, indent=1) + "\n")
        print(render.page(results))
    if args.write or args.render:
        drawn(python)
        render.write()


def measured(plan: Plan, only: list[str], python: str, directory: str | None) -> dict[str, Any]:
    """The results: what they were measured on and with, and each part."""
    began = time.monotonic()
    largest = max(nbytes for nbytes, _ in plan.files) * 1.1 if "files" in only else 0
    if largest > available():  # It is made in memory, and most peers load all of it.
        raise SystemExit(f"{largest / 1e9:.0f} GB of memory are needed; {available() / 1e9:.0f} GB are free")
    versions = peers.versions(python)
    contest = Contest(python, peers.missing(versions), available())
    with tempfile.TemporaryDirectory(dir=directory) as name:
        folder = Path(name)
        results: dict[str, Any] = {
            "when": datetime.date.today().isoformat(),
            "command": "python -m benchmarks.peers" + " --quick" * (plan is QUICK) + " --tiny" * (plan is TINY),
            "quick": plan is not FULL,
            "machine": peers.machine(folder),
            "ours": peers.ours(),
            "peers": versions,
        }
        for part, run in PARTS.items():
            print(part, file=sys.stderr, flush=True)
            results[part] = run(contest, plan, folder) if part in only else []
    results["took"] = time.monotonic() - began
    return results


if __name__ == "__main__":
    main()
