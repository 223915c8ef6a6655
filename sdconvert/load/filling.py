"""From offers and targets to tensors: everything is read here, before the model is touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch

from ..dtypes import BY_NAME
from ..errors import UnsupportedError, within
from ..tensor import TensorRef
from .offer import Encoded, Offer, Same
from .place import CPU, NAMES, Placer, Want
from .targets import Target


class Request(NamedTuple):
    """An offer, called `name`, and where it is to go."""

    name: str
    offer: Offer
    target: Target


def filled(requests: Iterable[Request], placer: Placer, progress: Callable[[int], None]) -> list[torch.Tensor]:
    """A tensor for each request; the same object for the same content and target."""
    asked = list(requests)
    wants: list[Want] = []
    for _, offer, target in asked:
        content = offer.content
        if type(content) is TensorRef:
            wants.append(_want(content, target, placer))
        elif type(content) is Encoded:
            wants += [Want(part, part.dtype, CPU) for _, part in content.parts]
    placed = iter(placer.place(wants, progress))
    made: dict[tuple[int, Target], torch.Tensor] = {}
    tensors = []
    for name, offer, target in asked:
        content = offer.content
        if type(content) is TensorRef:
            tensors.append(next(placed))
            continue
        key = (id(content), target)
        parts = {role: next(placed) for role, _ in content.parts} if type(content) is Encoded else {}
        if key not in made:
            if type(content) is Same:
                made[key] = content.tensor if target.in_place else _moved(content.tensor, target)
            else:
                assert type(content) is Encoded
                with within(name):
                    made[key] = decoded(json.loads(content.recipe), parts).to(target.device)
        tensors.append(made[key])
    return tensors


def _want(tensor: TensorRef, target: Target, placer: Placer) -> Want:
    if target.in_place:
        # It is copied from there, and cast on the way: from the map, if there is one, without other memory.
        return Want(tensor, tensor.dtype, CPU if placer.is_mappable(tensor) else target.device)
    name = NAMES[target.dtype]
    return Want(tensor, tensor.dtype if name == tensor.dtype.name else BY_NAME[name], target.device)


def _moved(tensor: torch.Tensor, target: Target) -> torch.Tensor:
    if tensor.dtype == target.dtype and tensor.device == target.device:
        return tensor
    return tensor.detach().to(target.device, target.dtype)


def decoded(recipe: Mapping[str, object], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor that `recipe` and its plain `parts` stand for. UnsupportedError where that is not known how."""
    if find_spec(f"{__package__}.decode") is None:
        raise UnsupportedError(f"it is stored as {recipe.get('encoding')}, which this version cannot rebuild")
    whole: torch.Tensor = import_module(".decode", __package__).decode(recipe, parts)
    return whole
