"""What each parameter and buffer is to become: its dtype, its device, and whether it stays the object it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..dtypes import BY_NAME, DType
from ..errors import ChoiceError
from .offer import Encoded, Offer, Same, dtype_of
from .place import CPU, NAMES, TORCH, DeviceMap, Devices, castable, dtype_named
from .slots import Slot

FILE, MODEL = "file", "model"


class Target(NamedTuple):
    """Where a tensor goes. `in_place` means into the memory that the model's tensor has now."""

    dtype: torch.dtype
    device: torch.device
    in_place: bool


class Targets:
    """The rules for one load: `dtype`, `device` and `assign` as the caller gave them.

    Without a dtype, a parameter that has values keeps its own, one on meta gets the source's.
    Without a device, a parameter stays where it is, one on meta goes to the host. `assign` None decides by that:
    what is on meta is assigned, all else is filled in place, so that whoever holds it, such as an
    optimizer, holds the loaded weights.
    """

    def __init__(self, dtype: str | torch.dtype | None, device: Devices | None, assign: bool | None) -> None:
        self.devices = DeviceMap(device)
        self.assign = assign
        self._known: dict[tuple[torch.dtype, torch.device, str, type], Target | None] = {}
        self.rule = dtype if dtype in (None, FILE, MODEL) else None
        self.dtype: DType | None = None if dtype in (None, FILE, MODEL) else dtype_named(dtype)

    def device(self, key: str, tensor: torch.Tensor) -> torch.device:
        """The device for the model's `tensor`, called `key`."""
        wanted = self.devices.of(key) if self.devices else None
        if wanted is not None:
            return wanted
        return CPU if tensor.is_meta else tensor.device

    def of(self, slot: Slot, offer: Offer | None) -> Target:
        """The target for what goes into a slot."""
        old = slot.tensor
        device = self.device(slot.key, old)
        if offer is not None and type(offer.content) is Same and self.assign and self.devices.of(slot.key) is None:
            device = offer.content.tensor.device
        dtype = self._dtype(old, offer)
        in_place = not old.is_meta and not self.assign and device == old.device and dtype == old.dtype
        return Target(dtype, device, in_place)

    def _dtype(self, old: torch.Tensor, offer: Offer | None) -> torch.dtype:
        if offer is None:
            return old.dtype
        row = dtype_of(offer)
        source = TORCH[offer.dtype]
        if self.dtype is not None and row is not None and castable(row) and type(offer.content) is not Encoded:
            return TORCH[self.dtype.name]
        keeps_source = self.rule == FILE or (self.rule is None and (old.is_meta or bool(self.assign)))
        return source if keeps_source else old.dtype

    def judged(self, slot: Slot, offer: Offer) -> Target | None:
        """The target for the offer; None when the slot cannot take it."""
        old, content = slot.tensor, type(offer.content)
        if self.devices or (content is Same and self.assign):
            return self.of(slot, offer) if self.can_take(old, offer) else None
        alike = (old.dtype, old.device, offer.dtype, content)
        if alike not in self._known:  # The rules look at nothing else, and models have thousands of these.
            self._known[alike] = self.of(slot, offer) if self.can_take(old, offer) else None
        return self._known[alike]

    def can_take(self, old: torch.Tensor, offer: Offer) -> bool:
        """Whether the offer's numbers mean the same as the model's `old` ones, after a cast that only rounds.

        Floats do not become integers, nor integers floats, complex numbers never real; 8-bit floats belong to
        a scale, so they become others only where a dtype is asked for by name.
        """
        name = NAMES.get(old.dtype, str(old.dtype))
        if offer.dtype == name:
            return True
        source, model = _meaning(offer.dtype), _meaning(name)
        if source == model:
            return True
        if {source, model} <= {"float", "float8"}:
            return self.dtype is not None or self._dtype(old, offer) == TORCH[offer.dtype]
        return False


def _meaning(name: str) -> str:
    row = BY_NAME.get(name)
    if row is None or row.kind in "qx" or row.packed > 1:
        return name
    if row.kind == "f":
        return "float8" if row.itemsize == 1 else "float"
    return "complex" if row.kind == "c" else "integer"


def assigning(assign: Any) -> bool | None:
    """``auto`` is None. ChoiceError for anything else than that and a bool."""
    if assign == "auto":
        return None
    if type(assign) is not bool:
        raise ChoiceError(f"assign={assign!r} is not 'auto', True or False")
    return assign
