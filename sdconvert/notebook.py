"""What a notebook shows of a result: a small table, in plain markup.

Notebooks are stored, mailed and shown where scripts and style sheets are taken out, so there are
none; colours are the notebook's own. Every text is escaped: names come from files of strangers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .errors import printable

_LOUD = frozenset({"danger", "problem", "warning"})


def card(title: str, facts: Iterable[tuple[str, str]], more: tuple[str, Sequence[str]] | None = None) -> str:
    """`title` above a table of (label, text); `more` is a heading and lines of text that open on a click."""
    rows = "".join(_row(label, text) for label, text in facts)
    table = f'<table style="margin: 0.3em 0">{rows}</table>' if rows else ""
    rest = ""
    if more and more[1]:
        lines = "\n".join(map(_text, more[1]))
        rest = f'<details><summary>{_text(more[0])}</summary><pre style="line-height: 1.3">{lines}</pre></details>'
    return f"<div><strong>{_text(title)}</strong>{table}{rest}</div>"


def _row(label: str, text: str) -> str:
    weight = "; font-weight: bold" if label in _LOUD else ""
    return (
        f'<tr><th style="text-align: left; vertical-align: top; opacity: 0.7">{_text(label)}</th>'
        f'<td style="text-align: left{weight}">{_text(text)}</td></tr>'
    )


def _text(text: str) -> str:
    return escape(printable(text))
