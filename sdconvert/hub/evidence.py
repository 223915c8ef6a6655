"""What a reviewer wants to know of published weights, as Markdown: where they are from, what they are, how to check."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import printable
from ..names import Names
from ..report import Report, human
from .provenance import Origin, SourceFile
from .publication import Sent

_SHOWN = 20
_LONGEST = 200
_PROJECT = "sdconvert"


@dataclass(frozen=True)
class Evidence:
    """A conversion that is done, and everything that is known of both its ends. `digest` is that of the weights.

    `changed` says what was done to values on purpose, "" when nothing was. `request` is the id of what was asked for
    (`request_id`), "" where nobody will look for it. With `beside`, the weights are where `review` looks for those of
    the source: beside it, under its name.
    """

    origin: Origin
    read: tuple[SourceFile, ...]
    sent: tuple[Sent, ...]
    digest: str
    report: Report
    key: str | None
    names: Names
    changed: str
    repo_id: str
    request: str
    beside: bool

    def table(self) -> str:
        """All of it as a table."""
        from .. import __version__

        rows = [("source", code(self.origin.name))]
        rows += [(f"read: {code(one.path)}", one.digest or "no digest is known") for one in self.read[:_SHOWN]]
        rows += _more("read", len(self.read))
        rows += [
            (code(one.path), f"{one.nbytes:,} bytes, sha256 {one.sha256}")
            for one in self.sent
            if not one.path.endswith(".md")
        ]
        rows.append(("tensors", f"{self.report.tensors:,}, {human(self.report.nbytes)}"))
        rows.append(("weights digest", code(self.digest)))
        aliases = list(self.report.aliases.items())
        rows += [("tied", f"{code(alias)} = {code(kept)}") for alias, kept in aliases[:_SHOWN]]
        rows += _more("tied", len(aliases))
        rows += [("chosen", code(" ".join(self._choice())))] if self._choice() else []
        rows += [("left out", f"{code(one.name)} ({plain(one.why)})") for one in self.report.skipped[:_SHOWN]]
        rows += _more("left out", len(self.report.skipped))
        rows += [("warning", plain(text)) for text in self.report.warnings[:_SHOWN]]
        rows += [("request", code(self.request))] if self.request else []
        rows.append(("written by", f"{_PROJECT} {__version__}, read back and compared"))
        return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])

    def check(self, number: int | None, *, proposed: bool) -> str:
        """How to check it, with the one command that does."""
        if self.changed:
            return (
                f"The tensors were {plain(self.changed)}, so they are not the source's to the bit. "
                f"This prints the digest above:\n\n{_fenced(['--digest', f'hf://{self.repo_id}'])}"
            )
        choice = self._choice()
        # Until the pull request is there nobody knows its number.
        shown = str(number) if number is not None else "NUMBER-OF-THIS-PULL-REQUEST"
        compare = "To compare every tensor, bit by bit, without running anything:\n\n"
        if proposed and self.beside:
            return compare + _fenced(["--pr", shown, self.repo_id, *choice])
        weights = [one.path for one in self.sent if one.path.endswith((".index.json", ".safetensors"))]
        weights.sort(key=lambda path: not path.endswith(".index.json"))
        revision = f"@refs/pr/{shown}" if proposed else ""
        there = f"hf://{self.repo_id}{revision}/{weights[0]}"
        if self.origin.place is not None:
            return compare + _fenced([self.origin.pinned, there, *choice])
        return (
            "Whoever has the source compares every tensor, bit by bit, with\n\n"
            f"{_fenced([self.origin.name, there, *choice])}\n\n"
            f"and anybody gets the digest above from\n\n{_fenced(['--digest', there])}"
        )

    def _choice(self) -> list[str]:
        """The flags of `verify` that read the source as it was read here."""
        flags = ["--key", self.key] if self.key is not None else []
        flags += ["--strip-prefix", self.names.strip_prefix] if self.names.strip_prefix else []
        for old, new in self.names.rename:
            flags += ["--rename", f"{old}={new}"]
        for flag, globs in (("--include", self.names.include), ("--exclude", self.names.exclude)):
            for glob in globs:
                flags += [flag, glob]
        return flags


def request_id(origin: Origin, **options: Any) -> str:
    """16 hexadecimal digits that two runs share when they were asked for the same: by it a proposal is found again."""
    said = json.dumps([origin.name, options], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def code(text: str) -> str:
    """`text` as a span of code in a cell of a table, whatever is in it: names come from files of strangers."""
    shown = printable(text).replace("`", "'").replace("|", "\\|")
    return f"`{shown if len(shown) <= _LONGEST else shown[:_LONGEST] + '...'}`"


def plain(text: str) -> str:
    """`text` as text, with nothing in it that Markdown, HTML or a mention could act on."""
    shown = printable(text)[: 2 * _LONGEST]
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#@!&" else c for c in shown)


def _more(what: str, count: int) -> list[tuple[str, str]]:
    return [(what, f"and {count - _SHOWN:,} more")] if count > _SHOWN else []


def _fenced(arguments: Sequence[str]) -> str:
    return f"```\n{printable(shlex.join(['sdconvert', 'verify', *arguments]))}\n```"
