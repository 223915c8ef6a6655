"""TorchScript archives give the names, the order and the bytes of ``torch.jit.load(f).state_dict()``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sdconvert

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Everything(nn.Module):
    """Parameters, buffers of both kinds, a shared child, a list of children, plain tensors, None."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(11)])
        self.shared = self.blocks[0]
        self.scale = nn.Parameter(torch.randn(3).double())
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("hidden", torch.arange(3.0), persistent=False)
        self.register_buffer("nothing", None)
        self.plain = torch.randn(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        for block in self.blocks:
            x = block(x)
        return x * self.plain.sum()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.rnn = nn.LSTM(4, 4, 2, batch_first=True)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(Everything()), path)


def traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(Everything().eval(), torch.randn(1, 1, 6, 6)), path)


def tied(path: Path) -> None:
    torch.jit.save(torch.jit.script(Tied()), path)


def with_extra_files(path: Path) -> None:
    torch.jit.save(torch.jit.script(Tied()), path, _extra_files={"config.json": "{}"})


def mobile(path: Path) -> None:
    torch.jit.script(Everything())._save_for_lite_interpreter(str(path))


@pytest.mark.parametrize("save", [scripted, traced, tied, with_extra_files, mobile])
def test_names_order_and_bytes_are_what_torch_gives(save: Callable[[Path], None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(path)
        expected = torch.jit.load(path).state_dict()

    report = sdconvert.convert(path, tmp_path / "out.safetensors")

    assert report.container == "torchscript"
    assert report.kind == "torchscript"
    with sdconvert.open(path) as opened:
        assert list(opened.state_dict) == list(expected)
    written = load_file(tmp_path / "out.safetensors")
    written |= {alias: written[kept] for alias, kept in report.aliases.items()}
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)


def test_a_tie_is_written_once(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tied(tmp_path / "model.pt")
    report = sdconvert.convert(tmp_path / "model.pt")
    assert dict(report.aliases) == {"head.weight": "embedding.weight"}


def test_a_frozen_archive_is_refused_with_the_reason(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.freeze(torch.jit.script(Everything()).eval()), tmp_path / "model.pt")
    with pytest.raises(sdconvert.UnsupportedError, match=re.escape("frozen TorchScript")):
        sdconvert.convert(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
