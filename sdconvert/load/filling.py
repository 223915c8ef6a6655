"""From offers and targets to tensors: everything is read here, before the model is touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch

from ..dtypes import BY_NAME, DType
from ..errors import UnsupportedError, within
from ..tensor import TensorRef
from .offer import Encoded, Offer, Same
from .place import CPU, Placer, Want
from .targets import Target


class Request(NamedTuple):
    """An offer, called `name`, and where it is to go."""

    name: str
    offer: Offer
    target: Target


def filled(requests: Iterable[Request], placer: Placer, progress: Callable[[int], None]) -> list[torch.Tensor]:
    """A tensor for each request; the same object for the same content and target."""
    asked = list(requests)
    wants = [_wants(request, placer) for request in asked]
    placed = placer.place((want for group in wants for want in group.values()), progress)
    made: dict[tuple[object, Target], torch.Tensor] = {}
    tensors = []
    for (name, offer, target), group in zip(asked, wants, strict=True):
        content = offer.content
        if type(content) is TensorRef:
            tensors.append(placed[group[""]])
            continue
        key = (content, target)
        if key not in made:
            if type(content) is Same:
                made[key] = content.tensor if target.in_place else _moved(content.tensor, target)
            else:
                assert type(content) is Encoded
                with within(name):
                    whole = decoded(json.loads(content.recipe), {role: placed[want] for role, want in group.items()})
                made[key] = whole.to(target.device)
        tensors.append(made[key])
    return tensors


def _wants(request: Request, placer: Placer) -> dict[str, Want]:
    """What to read for a request, by role; one whole tensor has the role ""."""
    _, offer, target = request
    content = offer.content
    if type(content) is TensorRef:
        if target.in_place:
            # It is copied from there, and cast on the way: from the map, if there is one, without other memory.
            device = CPU if placer.is_mappable(content) else target.device
            return {"": Want(content, content.dtype, device)}
        return {"": Want(content, row_of(target.dtype, content), target.device)}
    if type(content) is Encoded:
        return {role: Want(part, part.dtype, CPU) for role, part in content.parts}
    return {}


def row_of(dtype: torch.dtype, tensor: TensorRef) -> DType:
    """The row of the dtype table for `dtype`; the tensor's own object where it is the same."""
    name = str(dtype).removeprefix("torch.")
    return tensor.dtype if name == tensor.dtype.name else BY_NAME[name]


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
