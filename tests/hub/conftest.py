"""The hub of the test as that of this process, by LFS; and the models that are published to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from tests.hub_server import HubServer
from tests.remote.conftest import _no_waiting, here  # noqa: F401 - fixtures

Push = Callable[..., sdconvert.Publication]


@pytest.fixture
def push(here: HubServer, monkeypatch: pytest.MonkeyPatch) -> Push:  # noqa: F811
    """`sdconvert.push` as the user ``me``."""
    monkeypatch.setenv("HF_TOKEN", here.token)
    return sdconvert.push


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was pickled whole, of 4 MB, with a tie."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Embedding(1000, 500), torch.nn.Linear(500, 1000), torch.nn.Linear(1000, 500))
    model[1].weight = model[0].weight
    path = tmp_path_factory.mktemp("models") / "model.pt"
    torch.save(model, path)
    return path


@pytest.fixture(scope="session")
def state_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of 600 kB, as transformers saved it."""
    return save(
        tmp_path_factory.mktemp("states") / "pytorch_model.bin",
        {"a.weight": torch.randn(300, 300), "b.weight": torch.randn(300, 200), "b.bias": torch.randn(200)},
    )


def save(path: Path, tensors: dict[str, Any]) -> Path:
    torch.save(tensors, path)
    return path
