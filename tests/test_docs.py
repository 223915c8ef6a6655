"""Every command and snippet of README and docs runs, page by page, in the order of the page.

What a page may say before a block, in a comment that a reader does not see:

    <!-- test: model.pt runs/ -->   these files of `docs_files.FILES` are there from here on
    <!-- fails: 1 -->               the block ends with this exit code
    <!-- not run: REASON -->        it is not run here, for one of the reasons of `REASONS`

A block that is not run is a test that is skipped with its reason, so that it is counted and named.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import sdconvert
from docs import commands
from tests.docs_files import FILES, ROOT, Encoder, Net, named

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
REASONS = {
    "network": "it reads from, or writes to, a machine somewhere else",
    "cluster": "it needs a cluster of machines",
    "install": "it installs packages; .ci/run runs what the README says",
    "trainer": "it starts a training; tests/plugs runs one with this plug",
}
# The pages without a block are few: a page of commands must not lose them by a change of its fences.
WITHOUT = {"api", "extraction", "formats", "how", "performance", "remote", "scale", "security"}
_BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (test|fails|not run|command): (.*?) -->")


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, its text, the line it starts at, and what the page says of it."""

    page: Path
    line: int
    language: str
    text: str
    files: tuple[str, ...]
    code: int
    reason: str

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        comments = dict(_COMMENT.findall(found[1]))
        yield Block(
            page,
            text.count("\n", 0, found.start(3)) + 1,
            found[2],
            found[3],
            tuple(comments.get("test", "").split()),
            int(comments.get("fails", "0")),
            "install" if "command" in comments else comments.get("not run", ""),
        )


ALL = [block for page in PAGES for block in blocks(page)]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # As it is: one process is enough.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not b.reason for b in blocks(page))], ids=lambda page: page.stem
)
def test_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / ".tools"
    tools.mkdir()
    (tools / "sdconvert").write_text(f'#!/bin/sh\nexec "{sys.executable}" -W error -m sdconvert "$@"\n')
    (tools / "sdconvert").chmod(0o755)
    (tools / "shtab").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m shtab "$@"\n')
    (tools / "shtab").chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    names: dict[str, object] = {"Net": Net, "Encoder": Encoder}
    for block in blocks(page):
        if block.reason:
            continue
        named(list(block.files), tmp_path)
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
            continue
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", block.text],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == block.code, f"{block.where}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{block.where}\n{done.stderr}"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("block", [b for b in ALL if b.reason], ids=lambda b: b.where)
def test_a_block_that_is_not_run(block: Block) -> None:
    pytest.skip(f"{block.where}: not run here: {REASONS[block.reason]}")


def test_every_page_has_blocks_that_run_or_is_known_to_have_none() -> None:
    assert {page.stem for page in PAGES if not any(b.page == page for b in ALL)} <= WITHOUT
    assert {name for block in ALL for name in block.files} <= FILES.keys()
    fences = sum(len(re.findall(r"^\s*```(?:bash|python)$", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == len(ALL)


@pytest.mark.skipif(
    sys.version_info[:2] not in ((3, 11), (3, 12)), reason="other versions of argparse fill lines otherwise"
)
def test_the_page_of_commands_is_what_they_say() -> None:
    assert commands.PAGE.read_text() == commands.page(), "python -m docs.commands writes it anew"


def test_the_reference_has_every_public_name() -> None:
    listed = set(re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    # A function that has the name of its module is listed with both.
    public = {name for name in sdconvert.__all__ if not name.startswith("_")}
    assert {name for name in public if not {f"sdconvert.{name}", f"sdconvert.{name}.{name}"} & listed} == set()


def test_the_page_on_security_has_every_limit() -> None:
    page = (ROOT / "docs/security.md").read_text()
    assert [field.name for field in fields(sdconvert.Limits) if f"`{field.name}`" not in page] == []


def test_links_lead_somewhere() -> None:
    """Between pages mkdocs checks them; from the README, and to files of the repository, nobody else does."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
