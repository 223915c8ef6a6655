"""The package that people install: built twice it is the same, and it holds what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.docs_files import ROOT

pytest.importorskip("build", reason="build is not installed: pip install 'sdconvert[dev]'")
pytest.importorskip("hatchling", reason="hatchling is not installed, and this test fetches nothing")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two directories with a wheel and an sdist each, of this tree, made one after the other."""
    made = []
    for number in range(2):
        out = tmp_path_factory.mktemp(f"dist{number}")
        env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
        made.append(out)
    return made


def test_it_is_the_same_byte_for_byte(built: list[Path]) -> None:
    first, second = ({path.name: path.read_bytes() for path in out.iterdir()} for out in built)
    assert len(first) == 2
    assert first == second


def test_the_wheel_has_the_package_and_nothing_else(built: list[Path]) -> None:
    (wheel,) = built[0].glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sdconvert/py.typed", "sdconvert/html/page.js", "sdconvert/html/LICENSE.d3-hierarchy"} <= names
    assert {f"{path.relative_to(ROOT)}" for path in (ROOT / "sdconvert").rglob("*.py")} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sdconvert"}


def test_the_sdist_has_what_its_tests_need(built: list[Path]) -> None:
    (sdist,) = built[0].glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")}
    needed = "CITATION.cff LICENSE pyproject.toml constraints.txt mkdocs.yml action.yml"
    assert {*pages, *needed.split(), ".pre-commit-hooks.yaml", "examples/charlm.pt", "docs/index.md"} <= names
