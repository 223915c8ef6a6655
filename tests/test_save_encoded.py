"""Saving live tensors that are not plain, and saving in shards: byte for byte what a conversion of torch.save's file
gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from tests.load.models import Transformer, same_model, trained
from tests.test_encodings import KINDS, identical
from tests.test_subclasses import BUILDS, Named, Wrapper

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MAKERS: dict[str, Callable[[], torch.Tensor]] = {**KINDS, **{build.__name__: build for build in BUILDS}}


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("kind", MAKERS)
def test_it_is_what_a_conversion_gives(kind: str, ending: str, tmp_path: Path) -> None:
    tensor = MAKERS[kind]()
    state = {"x.w": tensor, "x.v": torch.ones(3), "x.again": tensor}
    torch.save(state, tmp_path / "m.pt")
    report = sdconvert.save(state, tmp_path / f"s.{ending}")
    converted = sdconvert.convert(tmp_path / "m.pt", tmp_path / f"c.{ending}")
    assert sdconvert.verify(tmp_path / "m.pt", tmp_path / f"s.{ending}").equal
    assert (tmp_path / f"s.{ending}").read_bytes() == (tmp_path / f"c.{ending}").read_bytes()
    assert report.encoded == converted.encoded


@pytest.mark.parametrize("kind", ["qint8_per_channel", "four_bits", "csr", "coo_complex128", "nested", "jagged"])
def test_it_loads_again(kind: str, tmp_path: Path) -> None:
    state = {"x.w": KINDS[kind](), "x.v": torch.ones(3)}
    sdconvert.save(state, tmp_path / "m.safetensors")
    identical(sdconvert.load(tmp_path / "m.safetensors")["x.w"], state["x.w"])


def test_subclasses_with_values_of_their_own_are_their_values(tmp_path: Path) -> None:
    state = {"w": torch.randn(3).as_subclass(Named), "p": nn.Parameter(torch.ones(2).as_subclass(Named))}
    sdconvert.save(state, tmp_path / "m.safetensors")
    found = sdconvert.load(tmp_path / "m.safetensors")
    assert torch.equal(found["w"], state["w"].as_subclass(torch.Tensor))
    assert torch.equal(found["p"], torch.ones(2))


@pytest.mark.parametrize(
    ("attribute", "why"),
    [(lambda: 0, "cannot be pickled"), (b"x" * (17 << 20), "more than 16777216 bytes"), ([0] * 3000, "a recipe holds")],
    ids=["a function", "megabytes", "a long list"],
)
def test_what_no_recipe_holds_is_refused_and_nothing_is_left(attribute: Any, why: str, tmp_path: Path) -> None:
    state = {"w": Wrapper(torch.ones(2), torch.ones(2), torch.float32, extra=attribute)}
    with pytest.raises(sdconvert.UnsupportedError, match=rf"w is a .*Wrapper.*{why}"):
        sdconvert.save(state, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_shards_are_those_of_a_conversion(ending: str, tmp_path: Path) -> None:
    state = trained(Transformer()).state_dict()
    state["q"], state["s"] = KINDS["qint8_per_channel"](), KINDS["coo"]()
    torch.save(state, tmp_path / "m.pt")
    for name in ("saved", "converted"):
        (tmp_path / name).mkdir()
    report = sdconvert.save(state, tmp_path / "saved" / f"model.{ending}", max_shard_size="2KB")
    converted = sdconvert.convert(tmp_path / "m.pt", tmp_path / "converted" / f"model.{ending}", max_shard_size="2KB")
    assert files(tmp_path / "saved") == files(tmp_path / "converted")
    assert len(report.shards) == len(converted.shards) > 2
    assert [Path(one.path).name for one in report.outputs] == [Path(one.path).name for one in converted.outputs]


def test_into_a_directory_and_back_into_a_model_with_ties_over_shards(tmp_path: Path) -> None:
    model = trained(Transformer())
    report = sdconvert.save(model, tmp_path, max_shard_size=2000)
    assert {path.name for path in tmp_path.iterdir()} == {Path(one.path).name for one in report.outputs}
    assert (tmp_path / "model.safetensors.index.json").exists()
    again = Transformer()
    result = sdconvert.load_into(again, tmp_path)
    assert same_model(again, model)
    assert result.ties
    one = tmp_path / "one"
    one.mkdir()
    sdconvert.save(model, one, max_shard_size=0, format="pt")
    assert [path.name for path in one.iterdir()] == ["model.pt"]


def test_shards_are_all_or_nothing(tmp_path: Path) -> None:
    state = {f"w{i}": torch.ones(100) for i in range(9)}
    sdconvert.save(state, tmp_path, max_shard_size=1000)
    before = files(tmp_path)
    with pytest.raises(sdconvert.OutputError, match="exists already"):
        sdconvert.save(state, tmp_path, max_shard_size=1000)
    with pytest.raises(sdconvert.OutputError, match="would be taken for a part of the output"):
        sdconvert.save(state, tmp_path, max_shard_size=500, overwrite=True)
    with pytest.raises(sdconvert.ChoiceError, match="give a size such as 5GB"):
        sdconvert.save(state, tmp_path, max_shard_size="many", overwrite=True)
    assert files(tmp_path) == before
