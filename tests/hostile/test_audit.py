"""What a hostile file makes Python do, by its own account: nothing but to read the file and write the output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..test_faults import ROOT
from .cases import CLASSES

SMALL = ("code execution", "malformed pickles", "zip lies", "wrong containers", "names")


@pytest.mark.parametrize("kind", SMALL)
def test_nothing_is_imported_compiled_run_mapped_or_opened(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.auditor", kind],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["strange"] == []
    assert found["files"] > 0.8 * len(CLASSES[kind])
