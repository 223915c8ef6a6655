"""From offers and targets to tensors: everything is read here, before the model is touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from ..dtypes import BY_NAME
from ..errors import within
from ..tensor import TensorRef
from .decode import decode
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
            wants += [Want(part, part.dtype, CPU) for _, part in content.parts if target.device.type != "meta"]
    placed = iter(placer.place(wants, progress))
    made: dict[tuple[int, Target], torch.Tensor] = {}
    tensors = []
    for name, offer, target in asked:
        content = offer.content
        if type(content) is TensorRef:
            tensors.append(next(placed))
            continue
        key = (id(content), target)
        if target.device.type == "meta" and type(content) is Encoded:
            tensors.append(torch.empty(offer.shape, dtype=target.dtype, device=target.device))
            continue
        parts = {role: next(placed) for role, _ in content.parts} if type(content) is Encoded else {}
        if key not in made:
            if type(content) is Same:
                made[key] = content.tensor if target.in_place else _moved(content.tensor, target)
            else:
                assert type(content) is Encoded
                with within(name):
                    whole = decode(json.loads(content.recipe), parts)
                    made[key] = whole if whole.device == target.device else whole.to(target.device)
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
