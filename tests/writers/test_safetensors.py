"""The safetensors file that is written: what its metadata may say beside ties and recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdconvert
from tests.outputs import header


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"b.w": "x"}, r"'b\.w' is the name of a tensor that is tied to a\.w"),
        ({"format": "pt"}, "'format' is set by the format itself"),
        ({"sdconvert.encoded": "{}"}, "is set by the format itself"),
        ({"note": "\ud800"}, "is not Unicode text"),
    ],
)
def test_metadata_that_would_be_read_as_something_else_is_refused(
    metadata: dict[str, str], words: str, tmp_path: Path
) -> None:
    weight = torch.ones(3)
    with pytest.raises(sdconvert.ChoiceError, match=words):
        sdconvert.save({"a.w": weight, "b.w": weight}, tmp_path / "m.safetensors", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_says_of_a_tie_what_is_so_is_taken(tmp_path: Path) -> None:
    weight = torch.ones(3)
    sdconvert.save({"a.w": weight, "b.w": weight}, tmp_path / "m.safetensors", metadata={"b.w": "a.w", "n": "1"})
    assert header(tmp_path / "m.safetensors")["__metadata__"] == {"format": "pt", "b.w": "a.w", "n": "1"}


def test_a_tensor_that_is_called_like_the_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sdconvert.SdconvertError, match="named __metadata__, which safetensors keeps for itself"):
        sdconvert.save({"__metadata__": torch.ones(3)}, tmp_path / "m.safetensors")
