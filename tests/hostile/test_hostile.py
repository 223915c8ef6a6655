"""Every hostile case, through the command line, in a process of its own."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from .case import Case
from .cases import CASES, CLASSES
from .running import Server, complaints


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, server: Server, tmp_path: Path) -> None:
    outcome = server.run(case, tmp_path)
    try:
        assert not complaints(case, outcome, tmp_path)
    finally:
        shutil.rmtree(tmp_path / "work")


def test_there_are_enough_cases() -> None:
    names = Counter(case.name for case in CASES)
    assert [name for name, count in names.items() if count > 1] == []
    assert len(CASES) >= 150
    assert all(CLASSES.values())


def test_building_is_deterministic() -> None:
    for case in CASES[::7]:
        assert case.build() == case.build()
