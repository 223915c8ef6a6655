"""Every hostile case through the other commands: what the conversion refuses, they do not fall for either."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.outputs import raw

from .case import CONVERT, REJECT, Case
from .cases import CASES
from .running import Outcome, Server, crimes

PT = "out.pt"
NO_HARM_IN_A_PT = frozenset({"name-bad-metadata"})
"""What only the safetensors format cannot hold, and torch can: these are written, and torch opens them."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, server: Server, tmp_path: Path) -> None:
    """That no command commits a crime, or leaves anything but what it should, is checked of each."""

    def ran(*argv: str) -> Outcome:
        outcome = server.run(case, tmp_path, argv)
        assert not crimes(case, outcome), argv[0]
        assert outcome.left == (
            (PT,) if argv[0] == "to-pt" and outcome.code == 0 and "--dry-run" not in case.args else ()
        ), argv[0]
        return outcome

    try:
        looked, compared = ran("inspect", case.file), ran("verify", case.file, case.file)
        written = ran("to-pt", case.file, PT, *case.args)
        if case.expect == CONVERT:
            assert (looked.code, compared.code, written.code) == (0, 0, 0)
        if case.expect == REJECT and case.name not in NO_HARM_IN_A_PT:
            assert written.code == 1
        output = tmp_path / "work" / PT
        if output.exists() and output.stat().st_size < 64 << 20:
            found = torch.load(output, weights_only=True, mmap=True)
            if case.tensors is not None:
                expected = {name: (shape, data) for name, (_, shape, data) in case.tensors.items()}
                assert {name: (tuple(one.shape), raw(one)) for name, one in found.items()} == expected
    finally:
        shutil.rmtree(tmp_path / "work")
