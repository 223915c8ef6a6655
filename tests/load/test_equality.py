"""After a load, a model is what ``load_state_dict`` would have made of it: to the bit, in ties, in what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdconvert
from tests.load.models import MODELS, SOURCES, same_bits, same_model, saved, trained


@pytest.mark.parametrize("copy", ["auto", "mmap", "read"])
@pytest.mark.parametrize("how", SOURCES)
@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_and_a_skeleton_become_the_saved_one(name: str, how: str, copy: str, tmp_path: Path) -> None:
    original = trained(MODELS[name]())
    path = saved(original, how, tmp_path)
    expected = MODELS[name]()
    assert str(expected.load_state_dict(original.state_dict())) == "<All keys matched successfully>"

    fresh = MODELS[name]()
    with sdconvert.skeleton():
        bare = MODELS[name]()
    for model in (fresh, bare):
        result = sdconvert.load_into(model, path, copy=copy)
        assert str(result) == "<All keys matched successfully>"
        assert set(result.loaded) == set(original.state_dict())
        assert same_model(model, expected)
        model.eval()
        expected.eval()
        example = original.example()
        assert torch.equal(model(example), expected(example))


@pytest.mark.parametrize("copy", ["auto", "read"])
@pytest.mark.parametrize("how", SOURCES)
@pytest.mark.parametrize("name", MODELS)
def test_load_gives_the_state_dict(name: str, how: str, copy: str, tmp_path: Path) -> None:
    original = trained(MODELS[name]())
    state = sdconvert.load(saved(original, how, tmp_path), copy=copy)
    expected = original.state_dict()
    assert state.keys() == expected.keys()
    assert all(same_bits(state[key], expected[key]) for key in expected)
    if name == "transformer":
        assert state["head.weight"] is state["embedding.weight"]
    again = MODELS[name]()
    again.load_state_dict(state)
    assert same_model(again, original)


@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_alike(name: str, tmp_path: Path) -> None:
    original = trained(MODELS[name]())
    path = saved(original, "safetensors", tmp_path)
    before = path.read_bytes()
    with sdconvert.skeleton():
        model = MODELS[name]()
    sdconvert.load_into(model, path)
    example = original.example()
    for one in (original, model):
        one.train()
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            one(example).square().mean().backward()
            optimizer.step()
    assert same_model(model, original)
    assert path.read_bytes() == before, "training wrote to the file"


@pytest.mark.parametrize("name", MODELS)
def test_twice_is_as_good_as_once(name: str, tmp_path: Path) -> None:
    original = trained(MODELS[name]())
    path = saved(original, "state_dict.pt", tmp_path)
    with sdconvert.skeleton():
        model = MODELS[name]()
    sdconvert.load_into(model, path)
    held = dict(model.named_parameters())
    sdconvert.load_into(model, path)
    assert same_model(model, original)
    assert all(param is held[key] for key, param in model.named_parameters())
