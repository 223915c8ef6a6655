"""Every block of Python in docs/loading.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

_PAGE = Path(__file__).parents[2] / "docs" / "loading.md"


class Encoder(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.norm = nn.LayerNorm(width)


class Decoder(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.head = nn.Linear(width, 20, bias=False)


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width)
        self.decoder.head.weight = self.encoder.embedding.weight


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Net().state_dict(), "model.pt")
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, object] = {"Net": Net, "Encoder": Encoder}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/loading.md block {number}", "exec"), names)
    assert capsys.readouterr().out == "<All keys matched successfully>\n"
    renamed = names["renamed"]
    assert isinstance(renamed, dict)
    assert "backbone.norm.weight" in renamed


def test_what_the_page_says_about_map_location(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "m.pt")
    calls: list[tuple[str, str]] = []

    def function(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        calls.append((type(storage).__name__, location))
        return storage

    torch.load(tmp_path / "m.pt", map_location=function, weights_only=True)
    assert calls == [("UntypedStorage", "cpu")] * 2
