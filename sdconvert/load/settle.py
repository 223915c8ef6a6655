"""Putting the weights into the model, once nothing can be wrong any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import Module, Parameter

from .slots import Slot
from .targets import Target


@dataclass
class Group:
    """Slots that hold one object, `tensor`, and what they are all to hold: `new`, as `target` says.

    `merged` are other groups that the source ties to this one.
    """

    tensor: torch.Tensor
    slots: list[Slot]
    target: Target
    new: torch.Tensor
    merged: list[Group] = field(default_factory=list)


def settle(groups: Iterable[Group], assign: bool | None) -> None:
    """Give every group its values. A tensor that two groups would share is copied for the second."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    used: set[int] = set()
    with torch.no_grad():
        for group in groups:
            old, new = group.tensor, group.new
            if group.target.in_place:
                _fill(old, new)
                final = old
            else:
                if id(new) in used:
                    new = new.clone()
                used.add(id(new))
                final = _renewed(old, new, group.target, assign, swaps)
            for one in (group, *group.merged):
                for slot in one.slots:
                    put(slot.module, slot.name, final)


def _fill(old: torch.Tensor, new: torch.Tensor) -> None:
    new = _shaped(old, new)
    if new.shape == old.shape:
        old.copy_(new)
    else:  # The module asked for it: a queue that grows with what is loaded.
        old.data = new.detach().to(old.dtype, copy=True)


def _shaped(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` with the shape that `old` has where that is only another way to write it."""
    if type(old) not in (Parameter, torch.Tensor) and torch.nn.parameter.is_lazy(old):
        old.materialize(new.shape)
    if new.shape == old.shape:
        return new
    return new.reshape(old.shape) if new.numel() == old.numel() == 1 else new


def _renewed(old: torch.Tensor, new: torch.Tensor, target: Target, assign: bool | None, swaps: bool) -> torch.Tensor:
    """What takes the place of `old`: itself with other data, where others may hold it, else a new object."""
    new = _shaped(old, new)
    if new.dtype != target.dtype or new.device != target.device:
        new = new.to(target.device, target.dtype)
    if not old.is_meta and not assign:
        old.data = new.detach()
        return old
    if type(old) is not Parameter and not isinstance(old, Parameter):  # Asking a class of torch for instances is slow.
        return new
    if type(new) is not torch.Tensor and isinstance(new, Parameter):
        made = new.requires_grad_(old.requires_grad)
    else:
        made = Parameter(new.detach() if new.requires_grad else new, requires_grad=old.requires_grad)
        if old.__dict__:
            made.__dict__.update(old.__dict__)
    if swaps:  # torch's own switch for keeping the objects that an optimizer may hold.
        torch.utils.swap_tensors(old, made)  # type: ignore[no-untyped-call]
        return old
    return made


def put(module: Module, name: str, tensor: torch.Tensor) -> None:
    """Make `tensor` the module's parameter or buffer of that name."""
    own: dict[str, torch.Tensor | None] = module._parameters if name in module._parameters else module._buffers  # type: ignore[assignment]
    if own[name] is tensor:
        return
    if type(module).__setattr__ is Module.__setattr__:
        own[name] = tensor  # Names with dots, and names that a property hides, are fine this way too.
    else:
        setattr(module, name, tensor)


def move(slots: Iterable[Slot], devices: Mapping[int, torch.device]) -> None:
    """Take along what no source holds: `devices` gives, by the identity of a tensor, where it belongs."""
    moved: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for module, name, _, tensor in slots:
            device = devices[id(tensor)]
            if tensor.device == device or tensor.is_meta or device.type == "meta":
                continue
            if isinstance(tensor, Parameter):
                tensor.data = tensor.data.to(device)
                continue
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
            put(module, name, moved[id(tensor)])
