"""A short run of each fuzz target, so that it is known to work; ``python -m tests.fuzz`` is the long one."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from .corpus import seeds
from .mutate import fuzz, mutated
from .structure import Mutator
from .targets import TARGETS

ROOT = Path(__file__).parents[2]
# A process that is started by a large one counts that one's memory as its own peak; a shell in between does not.
FRESH = ("sh", "-c", '"$@"; exit $?', "sh", sys.executable)


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed(target: str) -> None:
    found = seeds(target)
    assert len(found) > 5
    for data in found:
        TARGETS[target](data)


def test_a_hang_is_found() -> None:
    def hangs(data: bytes) -> bool:
        while True:
            pass

    with pytest.raises(AssertionError, match="too slow"):
        fuzz(hangs, lambda: b"seed", runs=1, slow=0.2)


def test_a_bomb_is_found() -> None:
    """In a process of its own: the largest size that this one ever had would count for all that it starts."""
    code = "from tests.fuzz.mutate import fuzz; fuzz(lambda data: b'x' * (1 << 30) != data, lambda: b'', runs=1)"
    done = subprocess.run([*FRESH, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "AssertionError: ('too much memory'" in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_changed_bytes(target: str) -> None:
    draw = partial(mutated, seeds(target), random.Random(7))
    assert fuzz(TARGETS[target], draw, seconds=1.5).inputs > 100


@pytest.mark.parametrize("target", TARGETS)
def test_changed_values(target: str) -> None:
    """Of what is changed with an eye to what it is, enough goes all the way."""
    found, run = seeds(target), TARGETS[target]
    done = fuzz(run, Mutator(found, [*filter(run, found)], random.Random(7)).next, seconds=2.5)
    assert done.inputs > 100
    assert done.converted > done.inputs / 50


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("target", TARGETS)
def test_guided_by_coverage(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*FRESH, "-m", "tests.fuzz", target, "--runs", "3000", "--seconds", "10"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
