"""What torch 1.13 makes of our .pt: the oldest release that has ``weights_only``. ``mmap`` came with 2.1.

It runs on Python 3.10 at most, so it is asked in an interpreter of its own:

    python3.10 -m venv old && old/bin/pip install torch==1.13.1 'numpy<2'
    SDCONVERT_OLD_TORCH=old/bin/python python -m pytest tests/writers/test_old_torch.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

import sdconvert
from tests.corpus import samples
from tests.outputs import described

OLD = os.environ.get("SDCONVERT_OLD_TORCH", "")
pytestmark = pytest.mark.skipif(not OLD, reason="SDCONVERT_OLD_TORCH names no Python with torch 1.13")

# Reads a directory of .pt files, with and without `weights_only`, and prints what is in them.
SCRIPT = """
import hashlib, json, pathlib, sys, torch
def raw(t):
    t = t.detach().contiguous()
    return bytes(t.reshape(-1).view(torch.uint8).numpy()) if t.numel() else b""
found = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
    both = []
    for how in ({"weights_only": True}, {}):
        state = torch.load(path, map_location="cpu", **how)
        assert type(state).__name__ == "OrderedDict"
        first, tied = {}, {}
        for name, t in state.items():
            kept = first.setdefault((t.storage().data_ptr(), t.dtype, t.shape), name) if t.numel() else name
            if kept != name:
                tied[name] = kept
        facts = lambda t: [str(t.dtype)[6:], list(t.shape), hashlib.sha256(raw(t)).hexdigest()]
        both.append([{name: facts(t) for name, t in state.items()}, tied])
    assert both[0] == both[1]
    found[path.stem] = both[0]
json.dump([torch.__version__, found], sys.stdout)
"""

Described = dict[str, tuple[str, tuple[int, ...], str]]


def asked(directory: Path) -> dict[str, tuple[Described, dict[str, str]]]:
    done = subprocess.run([OLD, "-c", SCRIPT, str(directory)], capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr[-2000:]
    version, found = json.loads(done.stdout)
    assert version.startswith("1.13.")
    return {
        stem: ({name: (dtype, tuple(shape), digest) for name, (dtype, shape, digest) in state.items()}, tied)
        for stem, (state, tied) in found.items()
    }


def test_every_dtype_it_has_ties_and_all_shapes(tmp_path: Path) -> None:
    kinds = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128".split()
    state = {}
    for kind in kinds:
        dtype = getattr(torch, kind)
        for shape in ((), (0,), (3, 0), (7,), (2, 3, 4)):
            state[f"{kind}.{'x'.join(map(str, shape))}"] = (
                torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
            )
    state |= {"tied": state["float32.7"], "strided": state["float32.2x3x4"].transpose(0, 2), "é中😀 <&>": torch.ones(2)}
    torch.save(state, tmp_path / "m")
    report = sdconvert.convert(tmp_path / "m", tmp_path / "o.pt")
    found, tied = asked(tmp_path)["o"]
    assert list(found) == list(state)
    assert found == {name: described(tensor) for name, tensor in state.items()}
    assert tied == report.aliases == {"tied": "float32.7"}


def test_a_hundred_thousand_names(tmp_path: Path) -> None:
    torch.save({f"l.{i}": torch.tensor(i) for i in range(100_000)}, tmp_path / "m")
    sdconvert.convert(tmp_path / "m", tmp_path / "o.pt")
    found, _ = asked(tmp_path)["o"]
    assert list(found) == [f"l.{i}" for i in range(100_000)]


def test_every_real_file(tmp_path: Path) -> None:
    expected = {}
    for number, sample in enumerate(samples()):
        if sample.expect == "convert":
            sdconvert.convert(sample.path, tmp_path / f"{number}.pt")
            expected[str(number)] = sample.tensors
    if not expected:
        pytest.skip("there is no corpus of real checkpoints here")
    old = {stem: state for stem, (state, _) in asked(tmp_path).items()}
    assert old == expected
