"""Weights of one model in a model that is built differently: other names, another head, a part only.

    python examples/load_differently.py

Trains nothing; makes its own checkpoint in a temporary directory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import sdconvert


class Pretrained(nn.Module):
    """What the checkpoint was saved from."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 1000)


class Finetuned(nn.Module):
    """What it is to be loaded into: the encoder is called backbone, the head has three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)


def load(checkpoint: Path) -> Finetuned:
    """The encoder's weights under new names; the head keeps its own."""
    model = Finetuned()
    rename = {"encoder.": "backbone."}
    result = sdconvert.load_into(model, checkpoint, rename=rename, include="encoder.*", strict=False)
    print("new, to be trained:", *result.missing_keys)
    assert not result.unexpected_keys
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pretrained.pt"
        torch.save(Pretrained(), path)
        model = load(path)
        print(model.head(model.backbone(torch.randn(2, 8))).shape)
