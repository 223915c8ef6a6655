"""Dicts that are more than dicts, objects with more than attributes, keys that are more than strings."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sdconvert
from tests.conftest import Converted
from tests.outputs import same

SD = dict(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).state_dict())


class ItsOwnAttributes(dict[str, Any]):
    """As HiFi-GAN's AttrDict is; addict's Dict is `MadeOfItsItems` as well."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.__dict__ = self


class EveryItemTwice(dict[str, Any]):
    """As easydict's EasyDict is."""

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__(items)
        self.__dict__.update(items)


class MadeOfItsItems(ItsOwnAttributes):
    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self.items())


class AndAttributes(dict[str, Any]):
    """A dict with attributes of its own, one of them called like an item."""

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__(items)
        self.model = {"other.weight": torch.ones(2)}


@pytest.mark.parametrize("kind", [ItsOwnAttributes, EveryItemTwice, MadeOfItsItems])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_dict_whose_items_are_attributes(kind: Any, protocol: int, converted: Converted) -> None:
    report, found = converted(kind({"model": SD, "step": 300_000}), save={"pickle_protocol": protocol})
    assert (report.kind, report.key) == ("wrapped", "model")
    assert same(found, SD)
    assert [one.name for one in report.skipped] == ["step"]


@pytest.mark.parametrize("kind", [ItsOwnAttributes, EveryItemTwice, MadeOfItsItems])
def test_and_one_that_is_the_state_dict(kind: Any, converted: Converted) -> None:
    assert same(converted(kind(SD))[1], SD)


def test_an_attribute_is_not_the_item_of_its_name(converted: Converted) -> None:
    with pytest.raises(sdconvert.ChoiceError):
        converted(AndAttributes({"model": SD}))


@pytest.mark.parametrize("make", [list, tuple])
def test_pairs_of_names_and_tensors_are_named(make: Any, converted: Converted) -> None:
    assert same(converted(make(SD.items()))[1], SD)
    assert same(converted({"model": make(SD.items())})[1], SD)


def test_pairs_that_share_a_name_are_numbered(converted: Converted) -> None:
    _, found = converted([("w", torch.ones(1)), ("w", torch.zeros(2))])
    assert list(found) == ["0.1", "1.1"]


@dataclass(slots=True)
class Slots:
    model: dict[str, torch.Tensor]
    step: int


class SlotsAndAttributes(Slots):
    def __init__(self, model: dict[str, torch.Tensor]) -> None:
        super().__init__(model, 3)
        self.lr = 0.1


@pytest.mark.parametrize(("made", "beside"), [(Slots(SD, 3), ["step"]), (SlotsAndAttributes(SD), ["lr", "step"])])
def test_slots_are_attributes(made: Any, beside: list[str], converted: Converted) -> None:
    report, found = converted(made)
    assert report.key == "model"
    assert same(found, SD)
    assert [one.name for one in report.skipped] == beside


class Part(enum.Enum):
    ENCODER = 1
    DECODER = "dec"


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("a", b"b"), ["a", "b"]),
        ((0, 1), ["0", "1"]),
        ((("a", 1), ("a", 2)), ["a.1", "a.2"]),
        ((np.int64(3), np.float32(0.5)), ["3", "0.5"]),
        ((nn.Linear, nn.Conv2d), ["Linear", "Conv2d"]),
        ((torch.float16, torch.float32), ["float16", "float32"]),
        ((True, None), ["True", "None"]),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_keys_that_are_not_text_are_spelled(
    keys: tuple[Any, Any], names: list[str], protocol: int, converted: Converted
) -> None:
    made = {keys[0]: torch.ones(2), keys[1]: torch.zeros(2)}
    _, found = converted(made, save={"pickle_protocol": protocol})
    assert same(found, dict(zip(names, made.values(), strict=True)))


@pytest.mark.parametrize("protocol", [2, 4])
def test_members_of_an_enumeration_can_be_chosen_from(protocol: int, converted: Converted) -> None:
    models = {Part.ENCODER: SD, Part.DECODER: {name: tensor + 1 for name, tensor in SD.items()}}
    with pytest.raises(sdconvert.ChoiceError) as refused:
        converted(models, save={"pickle_protocol": protocol})
    keys = [one.key for one in refused.value.candidates]
    assert [re.fullmatch(pattern, key) is not None for pattern, key in zip(_SPELLINGS, keys, strict=True)] == [True] * 2
    for key, model in zip(keys, models.values(), strict=True):
        assert same(converted(models, save={"pickle_protocol": protocol}, key=key)[1], model)


# By the value or, in some versions of Python, as an attribute of the class.
_SPELLINGS = (r"Part\(1\)|Part\.ENCODER", r"Part\(dec\)|Part\.DECODER")


def test_a_key_of_any_size_is_spelled_in_a_few_characters() -> None:
    from sdconvert.tree import name_of

    assert name_of(("a" * 1000, 1)) == name_of(((("a", 1), 2), 3)) == name_of(tuple("abcdef")) == "<tuple>"
