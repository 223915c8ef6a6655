"""Ways in turn over one checkpoint, several times, and what came of it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import FailedError, files, measured, need, remove, size, synced, warm
from benchmarks.peers.ways import Way

PATIENCE = 60  # Seconds of one run after which a way has no further rounds with this checkpoint.
GROWS = 5e7  # Bytes of a source from which on a way's memory says how it grows.


@dataclass
class Runs:
    """What one way took, each time.

    seconds: until the command had ended. durable: until what it wrote was on the disk too.
    peak, read: the most of any run. output: bytes written. not_run: why there are no further times, or "".
    """

    seconds: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    peak: int = 0
    read: int = 0
    output: int = 0
    not_run: str = ""


@dataclass
class Contest:
    """Where contests are held, and what they have learnt of the ways' memory.

    python: the peers' interpreter. missing: packages that it lacks. memory: bytes of the machine.
    grows: bytes of peak memory for each byte of a large source, by the name of the way.
    """

    python: str
    missing: frozenset[str]
    memory: int
    timeout: float = 180
    grows: dict[str, float] = field(default_factory=dict)

    def held(self, label: str, source: Path, ways: Sequence[Way], rounds: int) -> dict[str, Any]:
        """One row of a table: every way `rounds` times, who goes first alternating, each start with the source
        in the page cache and nothing dirty. What a way wrote is removed before the next one runs.
        """
        nbytes = size(source)
        need(source.parent, nbytes * 3)
        taken = {way.name: Runs(not_run=self._cannot(way, nbytes)) for way in ways}
        for number in range(rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                runs = taken[way.name]
                if not runs.not_run and max(runs.seconds, default=0) < PATIENCE:
                    self._once(way, source, runs)
                    print(f"  {label}: {way.name}: {said(runs)}", file=sys.stderr, flush=True)
        for name, runs in taken.items():
            if nbytes >= GROWS and runs.peak:
                self.grows[name] = max(self.grows.get(name, 0), runs.peak / nbytes)
        return {"label": label, "bytes": nbytes, "ways": {name: asdict(runs) for name, runs in taken.items()}}

    def _cannot(self, way: Way, nbytes: int) -> str:
        if way.package in self.missing:
            return "not installed"
        needed = self.grows.get(way.name, 0) * nbytes
        if needed > self.memory:
            return f"needs {needed / 1e9:.0f} GB of memory"
        return ""

    def _once(self, way: Way, source: Path, runs: Runs) -> None:
        out = source.with_name(f"out{way.ending}".rstrip("/"))
        warm(files(source))
        try:
            result = measured(way.command(self.python, source, out), self.timeout)
            runs.seconds.append(result.seconds)
            runs.durable.append(result.seconds + synced(out))
            runs.peak, runs.read = max(runs.peak, result.peak), max(runs.read, result.read)
            runs.output = size(out)
        except FailedError as error:
            runs.not_run = str(error)
        finally:
            remove(out)
            for beside in source.parent.glob("out*"):  # pt-safe-loader writes what is not a tensor beside the rest.
                remove(beside)


def said(runs: Runs) -> str:
    """The last run in a few words."""
    return (
        runs.not_run or f"{runs.seconds[-1]:.2f} s, {runs.durable[-1]:.2f} s on the disk, {runs.peak / 2**20:.0f} MiB"
    )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times ours theirs took: the median over the pairs of a round."""
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=False))
