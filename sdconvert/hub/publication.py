"""What was published, or would be, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import printable
from ..report import Report, human

_SHOWN = 8


@dataclass(frozen=True)
class Sent:
    """One file of the commit: its path in the repository, its bytes, their SHA-256."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Publication:
    """The outcome of a push. `outcome` is one of

    ``committed``, ``proposed`` (a pull request was opened), ``exists`` (the pull request was there already),
    ``unchanged`` (the repository has these very files), ``dry-run``.

    `url` is the page of the repository or of the pull request, `number` the pull request's, `commit` what has the
    files ("" after a dry run). `deleted` are files that the commit removes. `digest` is `sdconvert.digest` of the
    weights, and `report` the conversion's; "" and None when a pull request was found before anything was converted.
    """

    repo_id: str
    revision: str
    outcome: str
    url: str
    commit: str
    number: int | None
    created: bool
    private: bool | None
    files: tuple[Sent, ...]
    deleted: tuple[str, ...]
    title: str
    description: str
    digest: str
    report: Report | None
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON-ready data."""
        return {
            "repo_id": self.repo_id,
            "revision": self.revision,
            "outcome": self.outcome,
            "url": self.url,
            "commit": self.commit,
            "pull_request": self.number,
            "created": self.created,
            "private": self.private,
            "files": [{"path": one.path, "bytes": one.nbytes, "sha256": one.sha256} for one in self.files],
            "deleted": list(self.deleted),
            "title": self.title,
            "description": self.description,
            "digest": self.digest,
            "report": self.report.to_json() if self.report else None,
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        source = f"{self.report.source} -> " if self.report else ""
        what = {
            "committed": "committed",
            "proposed": f"pull request {self.number}",
            "exists": f"pull request {self.number} is there already, nothing was sent",
            "unchanged": "has these very files already, nothing was sent",
            "dry-run": "dry run, nothing was sent",
        }[self.outcome]
        yield f"{source}{self.url} ({what})"
        if self.created:
            yield f"  new       a {'private' if self.private else 'public'} repository"
        for one in self.files[:_SHOWN]:
            yield f"  file      {one.path}, {human(one.nbytes)}, sha256 {one.sha256}"
        if len(self.files) > _SHOWN:
            yield f"  file      and {len(self.files) - _SHOWN:,} more"
        for path in self.deleted:
            yield f"  deleted   {path}"
        if self.commit:
            yield f"  commit    {self.commit}"
        if self.outcome in ("proposed", "dry-run"):
            yield f"  title     {self.title}"
        if self.digest:
            yield f"  weights   {self.digest}"
        if self.report:
            lines = str(self.report).splitlines()
            yield from lines[next(n for n, line in enumerate(lines) if line.startswith("  source")) :]
        for warning in self.warnings:
            yield f"  warning   {warning}"
