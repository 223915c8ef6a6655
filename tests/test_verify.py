"""Are the weights in A the weights in B? To the bit, whatever the containers; and one line that says which they are."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sdconvert
from tests.test_same_bytes import names, tensors

SD = {
    "a.weight": torch.randn(300, 40),
    "b.bias": torch.randn(7),
    "c.steps": torch.arange(5),
    "d.empty": torch.empty(0, 3),
}


def saved(obj: object, path: Path, **how: object) -> Path:
    torch.save(obj, path, **how)  # type: ignore[arg-type]
    return path


def test_every_container_holds_the_same_weights(tmp_path: Path) -> None:
    tied = SD | {"e.tied": SD["a.weight"]}
    files = [
        saved(tied, tmp_path / "zip.pt"),
        saved(tied, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False),
        saved({"epoch": 1, "model": dict(reversed(tied.items()))}, tmp_path / "wrapped.pt"),
        saved({n: t.clone() for n, t in tied.items()}, tmp_path / "untied.pt"),
        saved(tied | {"a.weight": SD["a.weight"].t().contiguous().t()}, tmp_path / "strided.pt"),
        tmp_path / "o.safetensors",
        tmp_path / "o.pt",
    ]
    for file in files[5:]:
        sdconvert.convert(files[0], file)
    for file in files:
        outcome = sdconvert.verify(files[0], file)
        assert outcome.equal, outcome
        assert outcome.tensors == 5
    assert len({sdconvert.digest(file) for file in files}) == 1


@pytest.mark.parametrize(
    ("changed", "what", "detail"),
    [
        ({"b.bias": torch.zeros(7)}, "values", "first at element [0]"),
        ({"b.bias": SD["b.bias"].double()}, "dtype", "is float32 and float64"),
        ({"b.bias": SD["b.bias"].view(torch.int32)}, "dtype", "is float32 and int32"),
        ({"b.bias": SD["b.bias"][:6].clone()}, "shape", "has shape [7] and [6]"),
        ({"x.more": torch.ones(1)}, "extra", "only in the second"),
    ],
)
def test_each_way_to_differ(changed: dict[str, torch.Tensor], what: str, detail: str, tmp_path: Path) -> None:
    first, second = saved(SD, tmp_path / "a.pt"), saved(SD | changed, tmp_path / "b.pt")
    (difference,) = sdconvert.verify(first, second).differences
    assert difference.what == what
    assert detail in difference.detail
    assert sdconvert.digest(first) != sdconvert.digest(second)


def test_a_missing_tensor_and_swapped_names(tmp_path: Path) -> None:
    swapped = {"a.weight": SD["a.weight"], "x.one": torch.ones(3), "x.two": torch.zeros(3)}
    first = saved(swapped, tmp_path / "a.pt")
    second = saved({"x.one": torch.zeros(3), "x.two": torch.ones(3)}, tmp_path / "b.pt")
    found = [(d.name, d.what) for d in sdconvert.verify(first, second).differences]
    assert found == [("a.weight", "missing"), ("x.one", "values"), ("x.two", "values")]


@pytest.mark.parametrize("at", [(0, 0), (1234, 567), (2999, 999)])
def test_one_flipped_bit_is_found_and_placed(at: tuple[int, int], tmp_path: Path) -> None:
    weight = torch.randn(3000, 1000)
    first = saved({"m.w": weight}, tmp_path / "a.pt")
    other = weight.clone()
    other.view(torch.int32)[at] ^= 1
    (difference,) = sdconvert.verify(first, saved({"m.w": other}, tmp_path / "b.pt")).differences
    assert str(list(at)) in difference.detail


@settings(max_examples=60)
@given(data=st.data(), state=st.dictionaries(names, tensors(), min_size=1, max_size=5))
def test_any_flipped_bit_of_any_dict_is_found(
    data: st.DataObject, state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("flip")
    full = sorted(name for name, tensor in state.items() if tensor.numel() and tensor.dtype is not torch.bool)
    assume(full)
    name = data.draw(st.sampled_from(full))
    changed = state[name].clone()
    flat = changed.reshape(-1).view(torch.uint8)
    at = data.draw(st.integers(0, len(flat) - 1))
    flat[at] ^= 1 << data.draw(st.integers(0, 7))
    first, second = saved(state, directory / "a.pt"), saved(state | {name: changed}, directory / "b.pt")
    (difference,) = sdconvert.verify(first, second).differences
    assert (difference.name, difference.what) == (name, "values")
    index = list(numpy.unravel_index(at // changed.itemsize, tuple(changed.shape))) if changed.dim() else []
    assert difference.detail.endswith(f"at element {[int(i) for i in index]}")
    assert sdconvert.digest(first) != sdconvert.digest(second)


def test_the_sign_of_zero_and_the_bits_of_nan_count(tmp_path: Path) -> None:
    nan = torch.tensor([float("nan")])
    other = nan.clone()
    other.view(torch.int32)[0] += 1
    assert sdconvert.verify(saved({"a.w": nan}, tmp_path / "a.pt"), saved({"a.w": nan}, tmp_path / "b.pt")).equal
    for one, two in ((nan, other), (torch.tensor([0.0]), torch.tensor([-0.0]))):
        assert not sdconvert.verify(
            saved({"a.w": one}, tmp_path / "a.pt"), saved({"a.w": two}, tmp_path / "b.pt")
        ).equal


def test_views_that_repeat_a_small_storage_without_end_are_refused(tmp_path: Path) -> None:
    bomb = saved({"a.w": torch.ones(1).expand(10**12), "b.w": torch.ones(2)}, tmp_path / "a.pt")
    fine = saved({"a.w": torch.ones(1).expand(10**6)}, tmp_path / "b.pt")
    twin = saved({"a.w": torch.ones(1).expand(10**12)}, tmp_path / "c.pt")
    for look in (
        lambda: sdconvert.verify(bomb, twin),
        lambda: sdconvert.verify(twin, bomb),
        lambda: sdconvert.digest(bomb),
    ):
        with pytest.raises(sdconvert.UnreadableError, match=r"[ac]\.pt: .*--max-expansion"):
            look()
    assert not sdconvert.verify(bomb, fine).equal  # Told by the shapes; nothing is read.
    assert sdconvert.verify(fine, fine).equal
    little = sdconvert.Limits(expansion=16, expansion_slack=0)
    with pytest.raises(sdconvert.UnreadableError, match=r"b\.pt"):
        sdconvert.verify(fine, fine, limits=little)


def test_the_first_file_is_read_as_a_conversion_would(tmp_path: Path) -> None:
    both = {"g": {f"module.{n}": t for n, t in SD.items()}, "d": SD}
    first = saved(both, tmp_path / "a.pt")
    names = sdconvert.Names(strip_prefix="auto")
    sdconvert.convert(first, tmp_path / "o.safetensors", key="g", names=names)
    assert sdconvert.verify(first, tmp_path / "o.safetensors", key="g", names=names).equal
    assert not sdconvert.verify(first, tmp_path / "o.safetensors", key="g").equal


def test_the_digest_is_what_its_definition_says(tmp_path: Path) -> None:
    import hashlib

    saved({"b.w": torch.tensor([1, 2], dtype=torch.int16), "a.w": torch.tensor(1.5)}, tmp_path / "a.pt")
    inner = [hashlib.sha256(data).hexdigest() for data in (b"\0\0\xc0\x3f", b"\1\0\2\0")]
    text = f'["a.w","float32",[],"{inner[0]}"]\n["b.w","int16",[2],"{inner[1]}"]\n'
    assert sdconvert.digest(tmp_path / "a.pt") == "sdconvert-1:" + hashlib.sha256(text.encode()).hexdigest()
