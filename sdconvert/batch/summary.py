"""What became of a batch, in numbers: for a person, and for a machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import printable
from ..report import human


@dataclass(frozen=True)
class Failure:
    """A job that failed or was set aside, and the line that says why."""

    source: str
    error: str


@dataclass(frozen=True)
class Summary:
    """What became of a batch, in numbers of jobs. `there` had been done before by somebody, `skipped` by this manifest,
    `repeated` were named before in this batch.

    `nbytes` are bytes of tensors, `failures` the first hundred jobs that failed or were `set_aside`.
    `stopped` says that jobs were left because one had failed.
    """

    done: int = 0
    there: int = 0
    skipped: int = 0
    repeated: int = 0
    failed: int = 0
    set_aside: int = 0
    retried: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()
    stopped: bool = False

    @property
    def ok(self) -> bool:
        """Whether every job is done, by now or before."""
        return not (self.failed or self.set_aside or self.stopped)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON-ready data."""
        facts = asdict(self)
        return {**facts, "bytes": facts.pop("nbytes"), "ok": self.ok, "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        counts = [
            (self.done, "converted"),
            (self.there, "already there with the same weights"),
            (self.skipped, "skipped, done before and unchanged"),
            (self.repeated, "named more than once"),
            (self.failed, "failed"),
            (self.set_aside, "set aside, as they kill workers"),
        ]
        shown = ", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing to do"
        yield f"{shown}; {human(self.nbytes)} of tensors, {self.seconds:.1f} s"
        yield from (f"  failed    {one.error}" for one in self.failures)
        rest = self.failed + self.set_aside - len(self.failures)
        if rest:
            yield f"  and {rest:,} more; the manifest names all"
        if self.stopped:
            yield "  stopped at a failure; jobs were left"
