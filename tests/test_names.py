"""Names stay as they are unless somebody asks."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

import sdconvert
from sdconvert.names import Names, known_prefixes, unwrapped


def applied(names: Names, *given: str) -> list[str]:
    return list(names.apply(dict.fromkeys(given, object()))[0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"]),
        (["module._orig_mod.a"], ["a"]),
        (
            ["layers.0._orig_mod.w", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.w"],
            ["layers.0.w", "layers.1.w"],
        ),
        (["my_orig_mod.a"], ["my_orig_mod.a"]),
        (["_module.a"], ["a"]),
    ],
)
def test_auto_takes_off_what_wrappers_put_there(given: list[str], expected: list[str]) -> None:
    assert applied(Names(strip_prefix="auto"), *given) == expected


def test_a_given_prefix_is_taken_off_where_it_is() -> None:
    assert applied(Names(strip_prefix="model."), "model.a", "head") == ["a", "head"]
    with pytest.raises(sdconvert.ChoiceError, match="no name begins with 'x'"):
        applied(Names(strip_prefix="x"), "a")


def test_renaming_a_tensor_and_a_prefix() -> None:
    assert applied(Names(rename=(("a.b", "c"), ("x.", "y.z."))), "a.b", "x.w", "x.v") == ["c", "y.z.w", "y.z.v"]
    with pytest.raises(sdconvert.ChoiceError, match="no such name"):
        applied(Names(rename=(("q", "r"),)), "a")


def test_two_tensors_never_get_one_name() -> None:
    with pytest.raises(sdconvert.ChoiceError, match="two tensors the name 'a'"):
        applied(Names(strip_prefix="m."), "m.a", "a")
    with pytest.raises(sdconvert.ChoiceError, match="two tensors the name 'b'"):
        applied(Names(rename=(("a", "b"),)), "a", "b")


@pytest.mark.parametrize("names", [Names(strip_prefix="a."), Names(rename={"a.": ""})])
def test_no_tensor_loses_all_of_its_name(names: Names) -> None:
    assert applied(names, "a.w", "b") == ["w", "b"]
    with pytest.raises(sdconvert.ChoiceError, match=r"would leave 'a\.' without a name"):
        applied(names, "a.w", "a.")


def test_one_pattern_and_a_dict_do_as_well_as_tuples() -> None:
    assert Names(include="enc.*", exclude=["*.bias"], rename={"a.": "b."}) == Names(
        include=("enc.*",), exclude=("*.bias",), rename=(("a.", "b."),)
    )
    assert hash(Names(rename={"a": "b"})) == hash(Names(rename=[("a", "b")]))
    assert replace(Names("m.", include="x"), exclude=("y",)) == Names("m.", include="x", exclude="y")
    assert pickle.loads(pickle.dumps(Names(rename={"a": "b"}))) == Names(rename={"a": "b"})


def test_filters_are_shell_patterns_and_must_fit_something() -> None:
    assert applied(Names(include=("enc.*",), exclude=("*.bias",)), "enc.w", "enc.bias", "dec.w") == ["enc.w"]
    for wrong in (Names(include=("x*",)), Names(exclude=("x*",))):
        with pytest.raises(sdconvert.ChoiceError, match=r"fits no tensor\. The first is 'a'"):
            applied(wrong, "a")
    with pytest.raises(sdconvert.ChoiceError, match="leave no tensor"):
        applied(Names(exclude=("*",)), "a")


def test_prefixes_are_pointed_out() -> None:
    assert known_prefixes(["module.a", "module.b"]) == ("module.",)
    assert known_prefixes(["a._orig_mod.b", "c"]) == ("_orig_mod.",)
    assert known_prefixes(["a"]) == ()
    assert unwrapped("module._orig_mod.a") == "a"
