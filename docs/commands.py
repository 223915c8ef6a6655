"""Writes commands.md: what every command says with --help.

python -m docs.commands
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100

_TOP = """# Commands

What `sdconvert COMMAND --help` says. Shell completion: [below](#completion).
"""
_END = """## Completion

[shtab](https://docs.iterative.ai/shtab/) writes the script for bash, zsh or tcsh
(`pip install 'sdconvert[completion]'`):

```bash
mkdir -p completions
shtab --shell bash --prog sdconvert sdconvert.cli.completion.parser > completions/sdconvert
shtab --shell zsh --prog sdconvert sdconvert.cli.completion.parser > completions/_sdconvert
```

For bash they belong into `~/.local/share/bash-completion/completions/`, for zsh into a directory of `$fpath`.
"""


def page() -> str:
    """The text of the page, from the commands themselves."""
    parts = [_TOP, f"```text\n{_help()}```\n"]
    for line in _help().splitlines():
        name = line.strip().partition(" ")[0]
        if line.startswith("    ") and not line.startswith("     ") and name != "COMMAND":
            parts.append(f"## {name}\n\n```text\n{_help(name)}```\n")
    return "\n".join([*parts, _END])


def _help(*command: str) -> str:
    env = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    args = [sys.executable, "-m", "sdconvert", *command, "--help"]
    return subprocess.run(args, env=env, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    PAGE.write_text(page())
