"""What is built is what is extracted: random trees of dicts, lists and tensors, shared parts among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sdconvert
from tests.outputs import contents

keys = st.text("abcdwxyz", min_size=1, max_size=3)
tensors = st.integers(0, 4).map(lambda size: torch.arange(float(size)))
others = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.floats(allow_nan=False))
trees = st.recursive(
    st.one_of(tensors, others),
    lambda inner: st.one_of(
        st.dictionaries(keys, inner, max_size=4), st.lists(inner, max_size=3), st.tuples(inner, inner)
    ),
    max_leaves=20,
)


def flat(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a tree by their dotted paths."""
    if isinstance(tree, torch.Tensor):
        return {prefix[:-1]: tree}
    if isinstance(tree, list | tuple):
        named = all(isinstance(pair, list | tuple) and len(pair) == 2 and is_named(*pair) for pair in tree)
        tree = dict(tree) if named and len(dict(tree)) == len(tree) else dict(enumerate(tree))
    items = tree.items() if isinstance(tree, dict) else ()
    return {name: leaf for key, value in items for name, leaf in flat(value, f"{prefix}{key}.").items()}


def is_named(name: Any, value: Any) -> bool:
    """Whether a pair is one of those that ``list(model.named_parameters())`` holds."""
    return isinstance(name, str) and name != "" and isinstance(value, torch.Tensor)


@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=120)
@given(tree=trees, shared=tensors, protocol=st.integers(2, 5))
def test_everything_is_extracted_under_its_path(
    zipped: bool, tree: Any, shared: torch.Tensor, protocol: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = {"tree": tree, "again": tree, "shared": [shared, shared]}
    expected = flat(root)
    directory = tmp_path_factory.mktemp("graph")
    torch.save(root, directory / "m.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)

    sdconvert.convert(directory / "m.pt", directory / "o.safetensors", key=".")

    found = contents(directory / "o.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@settings(max_examples=60)
@given(tree=st.dictionaries(keys, trees, min_size=1, max_size=4))
def test_a_key_reaches_every_part(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("graph")
    torch.save(tree, directory / "m.pt")
    key, part = next(iter(tree.items()))
    expected = flat(part)
    assume(expected and not isinstance(part, torch.Tensor))
    sdconvert.convert(directory / "m.pt", directory / "o.safetensors", key=key)
    assert contents(directory / "o.safetensors").keys() == expected.keys()
