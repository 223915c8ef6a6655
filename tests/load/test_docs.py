"""What docs/loading.md says of torch. (Its blocks run in tests/test_docs.py.)"""

from __future__ import annotations

from pathlib import Path

import torch


def test_what_the_page_says_about_map_location(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "m.pt")
    calls: list[tuple[str, str]] = []

    def function(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        calls.append((type(storage).__name__, location))
        return storage

    torch.load(tmp_path / "m.pt", map_location=function, weights_only=True)
    assert calls == [("UntypedStorage", "cpu")] * 2
