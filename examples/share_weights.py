"""One copy of the weights for several models: teacher and student, or one model for each thread.

    python examples/share_weights.py examples/charlm.pt

Processes that load the same file share its pages as well, until they write to them: a map is private, and
the file never changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import sdconvert


def several(build: Callable[[], nn.Module], source: str | Path, count: int) -> list[nn.Module]:
    """`count` models whose parameters have the same memory: it is taken once, and only as it is used."""
    state = sdconvert.load(source)
    models = []
    for _ in range(count):
        with sdconvert.skeleton():  # No values of an initialisation that would be thrown away.
            model = build()
        sdconvert.load_into(model, state, assign=True)
        models.append(model.eval())
    return models


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.path.insert(0, str(Path(__file__).parent))
    from train_charlm import CharLM

    letters = sdconvert.load(sys.argv[1])["embedding.weight"].shape[0]
    first, second = several(lambda: CharLM("?" * letters), sys.argv[1], 2)
    assert first.embedding.weight.data_ptr() == second.embedding.weight.data_ptr()
    text = torch.zeros(1, 8, dtype=torch.long)
    assert torch.equal(first(text), second(text))
    print("two models, one memory")
