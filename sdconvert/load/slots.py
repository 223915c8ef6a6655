"""What a model has to be filled: its parameters and buffers, module by module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.nn import Module

_PLAIN = (torch.nn.Parameter, torch.Tensor)


class Slot(NamedTuple):
    """A parameter or buffer of a module, called `key` in the state dict. `tensor` is what is there now.

    `is_hidden` is a buffer that no state dict has.
    """

    module: Module
    name: str
    key: str
    tensor: torch.Tensor
    is_hidden: bool = False


class Node(NamedTuple):
    """A module, what its names begin with, its own slots in the order of its state dict, hidden ones last, and what
    is below it. A module that is there twice is two of these."""

    module: Module
    prefix: str
    slots: list[Slot]
    children: list[Node]


def tree(module: Module, prefix: str = "") -> Node:
    """A module and all below it, as they are now."""
    slots = []
    for name, tensor in module._parameters.items():
        if tensor is not None:
            slots.append(Slot(module, name, prefix + name, tensor))
    if module._buffers:
        slots += _buffers(module, prefix)
    children = []
    for name, child in module._modules.items():
        if child is not None:
            children.append(tree(child, f"{prefix}{name}."))
    return Node(module, prefix, slots, children)


def _buffers(module: Module, prefix: str) -> Iterator[Slot]:
    hidden = module._non_persistent_buffers_set
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in hidden:
            yield Slot(module, name, prefix + name, buffer)
    for name in hidden:
        buffer = module._buffers.get(name)
        if buffer is not None:
            yield Slot(module, name, prefix + name, buffer, is_hidden=True)


def nodes(root: Node) -> Iterator[Node]:
    """A node and all below it, parents first."""
    yield root
    for child in root.children:
        yield from nodes(child)


def own(module: Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's own parameters and persistent buffers by their names in it, in the order of its state dict."""
    for name, param in module._parameters.items():
        if param is not None:
            yield name, param
    hidden = module._non_persistent_buffers_set
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in hidden:
            yield name, buffer


def takes_extra(module: Module) -> bool:
    """Whether a module has an extra state."""
    return type(module).set_extra_state is not Module.set_extra_state


def asks(module: Module) -> bool:
    """Whether a module has its own way of loading."""
    return bool(
        module._load_state_dict_pre_hooks
        or type(module)._load_from_state_dict is not Module._load_from_state_dict
        or "_load_from_state_dict" in module.__dict__
    )


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is its elements in one memory: dense, not quantized, nested or a wrapper around others."""
    if type(tensor) not in _PLAIN and type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape; of a nested tensor, which has none that numbers can say, how many it holds."""
    return (tensor.size(0),) if tensor.is_nested else tuple(tensor.shape)


def fits(source: tuple[int, ...], model: tuple[int, ...]) -> bool:
    """torch's rule: one element of torch 0.3, which had no scalars, goes into a scalar."""
    return source == model or (not model and source == (1,))


def shapes(slots: Iterable[Slot]) -> dict[str, tuple[int, ...] | None]:
    """The shapes of what a state dict has of the model, by name; None where any will do."""
    return {
        slot.key: None if torch.nn.parameter.is_lazy(slot.tensor) else shape_of(slot.tensor)
        for slot in slots
        if not slot.is_hidden
    }
