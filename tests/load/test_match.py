"""Names against names, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdconvert
from sdconvert.load.match import fit, hint, incompatible


def shapes(*names: str) -> dict[str, tuple[int, ...] | None]:
    return dict.fromkeys(names, (1,))


def test_it_needs_no_torch() -> None:
    code = "import sys, sdconvert.load.match, sdconvert.load.result; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("source", "model", "prefix"),
    [
        (["a.w", "b.w"], ["a.w", "b.w"], ""),
        (["module.a.w"], ["a.w"], "module."),
        (["module.module.a.w"], ["a.w"], "module.module."),
        (["a._orig_mod.w", "b.w"], ["a.w", "b.w"], "_orig_mod."),
        (["a.w"], ["module.a.w"], "+module."),
        (["a._fsdp_wrapped_module.w"], ["_orig_mod.a.w"], "_fsdp_wrapped_module."),
        (["model.a.w", "loss.w"], ["a.w"], "model."),
        (["a.w", "head.w"], ["base.a.w", "head.w"], "+base."),
        (["x.w"], ["y.w"], ""),
        (["s.w", "t.w"], ["w"], ""),
        (["a.w", "w"], ["w", "b.w"], ""),
    ],
)
def test_prefixes(source: list[str], model: list[str], prefix: str) -> None:
    found = fit(shapes(*source), shapes(*model))
    if prefix.startswith("module.module"):
        assert set(found.names) == set(model)
    else:
        assert found.prefix == prefix
    if prefix and "loss.w" not in source:
        assert set(found.names) == set(model)


def test_a_change_counts_shapes() -> None:
    assert fit({"old.weight": (2, 2)}, {"weight": (3,), "old2.weight": (2, 2)}).prefix == ""
    assert fit({"old.weight": (3,)}, {"weight": (3,), "old2.weight": (2, 2)}).prefix == "old."


def test_a_prefix_of_ones_own() -> None:
    assert dict(fit(shapes("p.a", "b"), shapes("a"), "p.").names) == {"a": "p.a", "b": "b"}
    with pytest.raises(sdconvert.ChoiceError, match="no name begins with 'q"):
        fit(shapes("p.a"), shapes("a"), "q.")
    with pytest.raises(sdconvert.ChoiceError, match="two tensors would have one name"):
        fit(shapes("p.a", "a"), shapes("a"), "p.")


_names = st.lists(st.sampled_from(["a", "b", "module", "_orig_mod", "model"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(_names, unique=True, max_size=6), st.lists(_names, unique=True, max_size=6))
def test_no_two_names_become_one_and_none_that_fits_is_lost(source: list[str], model: list[str]) -> None:
    found = fit(shapes(*source), shapes(*model))
    assert sorted(found.names.values()) == sorted(source)
    assert len(set(found.names) & set(model)) >= len(set(source) & set(model))


def test_an_error_survives_a_process_boundary_and_keeps_a_terminal_safe() -> None:
    import pickle

    error = incompatible("Net", ["a\x1b[31m"], ["b"] * 400, ["size mismatch for c"], "Hint: none")
    error.places.append("m.pt")
    text = str(pickle.loads(pickle.dumps(error)))
    assert text == str(error)
    assert "\x1b" not in text
    assert text.count('"b"') == 400
    assert text.splitlines()[0] == "Error(s) in loading state_dict for Net:"
    assert text.splitlines()[-2:] == ["Hint: none", "Source: m.pt"]
    assert isinstance(error, RuntimeError)


def test_hints() -> None:
    source, model = shapes("enc.layer1.weight"), shapes("encoder.layer1.weight")
    assert "'enc.layer1.weight' for 'encoder.layer1.weight'" in hint(list(model), list(source), source, model)
    assert hint(["a"], [], shapes(), shapes("a")) == ""
