"""Putting the weights into the model, once nothing can be wrong any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import Module, Parameter

from ..encodings import COMPRESSED
from ..errors import UnsupportedError
from .slots import Slot, is_plain, shape_of
from .targets import Target


@dataclass(eq=False, slots=True)
class Group:
    """Slots that hold one object, `tensor`, or that the source ties to it, and what they are all to hold: `new`, as
    `target` says."""

    tensor: torch.Tensor
    slots: list[Slot]
    target: Target
    new: torch.Tensor
    is_read: bool = False
    """Whether `new` is a plain tensor of the source, with the dtype and on the device of the target."""


def settle(groups: Iterable[Group], assign: bool | None) -> None:
    """Give every group its values. A tensor that two groups would share is copied for the second.

    What is quantized, sparse, nested or of a subclass comes first, as torch may refuse it, and is put back then:
    UnsupportedError names it.
    """
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    used: set[int] = set()
    plain: list[Group] = []
    undo: list[Callable[[], object]] = []
    with torch.no_grad():
        for group in groups:
            old = group.tensor
            if (group.is_read or is_plain(group.new)) and (old.is_meta or is_plain(old)):
                plain.append(group)
                continue
            try:
                undo += _undoing(group)
                _settle(group, assign, swaps, used)
            except Exception as error:
                for step in reversed(undo):
                    step()
                what = " ".join(str(error).split())[:300]
                key = group.slots[0].key
                raise UnsupportedError(
                    f"{key} does not go into the model, torch says: {what}. assign=True may"
                ) from error
        for group in plain:
            old, new = group.tensor, group.new
            if type(old) is Parameter and group.is_read and old.is_meta and not swaps and id(new) not in used:
                # Most are like this, and there may be many.
                used.add(id(new))
                _put(group, _parameter(old, new if new.shape == old.shape else _shaped(old, new)))
            else:
                _settle(group, assign, swaps, used)


def _settle(group: Group, assign: bool | None, swaps: bool, used: set[int]) -> None:
    old, new = group.tensor, group.new
    if group.target.in_place:
        _fill(old, new)
        final = old
    else:
        if id(new) in used:
            new = _copied(new)
        used.add(id(new))
        final = _renewed(old, new, group.target, assign, swaps)
    _put(group, final)


def _put(group: Group, tensor: torch.Tensor) -> None:
    for module, name, _, _, _ in group.slots:
        put(module, name, tensor)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return deepcopy(tensor) if tensor.is_quantized else tensor.clone()  # Each fails where the other does not.


def _undoing(group: Group) -> list[Callable[[], object]]:
    """What puts back all of a group as it is now."""
    old, steps = group.tensor, list[Callable[[], object]]()
    if not old.is_meta:
        if _is_wrapper(old) or _is_compressed(old):
            before = old.detach().clone()
            steps.append(lambda: _fill(old, before))
        else:
            data = old.data
            values = data.clone() if is_plain(data) and group.target.in_place else None
            steps.append(lambda: _restore(old, data, values))
    return steps + [partial(put, slot.module, slot.name, slot.tensor) for slot in group.slots]


def _restore(old: torch.Tensor, data: torch.Tensor, values: torch.Tensor | None) -> None:
    old.data = data
    if values is not None:
        old.copy_(values)


def _is_compressed(tensor: torch.Tensor) -> bool:
    """Whether setting its `data` would do nothing at all."""
    return str(tensor.layout).removeprefix("torch.") in COMPRESSED


def _is_wrapper(tensor: torch.Tensor) -> bool:
    return not is_plain(tensor) and tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def _fill(old: torch.Tensor, new: torch.Tensor) -> None:
    if _is_compressed(old):
        old.resize_as_sparse_(new)
        old.copy_(new)
        return
    if not is_plain(old) and not _is_wrapper(old):
        # Neither the number of elements nor how they are quantized is copied by all of torch's kernels.
        _set_data(old, _copied(new.detach()))
        return
    new = _shaped(old, new)
    if new.shape == old.shape:
        old.copy_(new)
    else:  # The module asked for it: a queue that grows with what is loaded.
        old.data = new.detach().to(old.dtype, copy=True)


def _set_data(old: torch.Tensor, data: torch.Tensor) -> None:
    if str(old.layout) == "torch.jagged":  # Setting its `data` does nothing at all, without an error.
        raise RuntimeError("a jagged tensor cannot be filled in place")
    old.data = data


def _shaped(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` with the shape that `old` has where that is only another way to write it."""
    if type(old) not in (Parameter, torch.Tensor):
        if torch.nn.parameter.is_lazy(old):
            old.materialize(new.shape)
    elif not (old.is_nested or new.is_nested) and new.shape == old.shape:
        return new
    if shape_of(new) == shape_of(old):
        return new
    return new.reshape(old.shape) if new.numel() == old.numel() == 1 else new


def _renewed(old: torch.Tensor, new: torch.Tensor, target: Target, assign: bool | None, swaps: bool) -> torch.Tensor:
    """What takes the place of `old`: itself with other data, where others may hold it, else a new object."""
    new = _shaped(old, new)
    dtype, device, _ = target
    if new.dtype != dtype or new.device != device:
        new = new.to(device, dtype)
    if not old.is_meta and not assign:
        _set_data(old, new.detach())
        return old
    if type(old) is not Parameter and not isinstance(old, Parameter):  # Asking a class of torch for instances is slow.
        return new
    if type(new) is not torch.Tensor and isinstance(new, Parameter):
        made = new.requires_grad_(old.requires_grad)
    else:
        made = _parameter(old, new.detach() if new.requires_grad else new)
    if swaps:  # torch's own switch for keeping the objects that an optimizer may hold.
        torch.utils.swap_tensors(old, made)  # type: ignore[no-untyped-call]
        return old
    return made


def _parameter(old: torch.Tensor, new: torch.Tensor) -> Parameter:
    """`new` as a parameter like `old`, with the attributes that somebody set on that."""
    made = Parameter(new, old.requires_grad)
    if old.__dict__:
        # Those of a tensor that wraps others are these others.
        made.__dict__.update({name: value for name, value in old.__dict__.items() if name not in made.__dict__})
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
        for module, name, _, tensor, _ in slots:
            device = devices[id(tensor)]
            if tensor.device == device or tensor.is_meta or device.type == "meta":
                continue
            if isinstance(tensor, Parameter):
                tensor.data = tensor.data.to(device)
                continue
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
            put(module, name, moved[id(tensor)])
