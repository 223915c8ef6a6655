"""What a shell can complete, for shtab: ``shtab --shell bash --prog sdconvert sdconvert.cli.completion.parser``."""

from __future__ import annotations

import argparse

from . import command_line

_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # `shtab.FILE`, which need not be there.
_ARE_FILES = ("SOURCE", "OUTPUT", "FILE", "A", "B", "D", "DIR")


def parser() -> argparse.ArgumentParser:
    """The command line, with a note at every argument that is a file."""
    made = command_line()
    todo = [made]
    while todo:
        for action in todo.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                todo += action.choices.values()
            elif action.metavar in _ARE_FILES:
                action.complete = _FILES  # type: ignore[attr-defined]
    return made
