"""What a model has to be filled: its parameters and buffers, module by module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.nn import Module

_PLAIN = (torch.nn.Parameter, torch.Tensor)


class Slot(NamedTuple):
    """A parameter or buffer of a module, called `key` in the state dict. `tensor` is what is there now."""

    module: Module
    name: str
    key: str
    tensor: torch.Tensor

    @property
    def is_parameter(self) -> bool:
        return self.name in self.module._parameters

    @property
    def is_hidden(self) -> bool:
        """Whether it is a buffer that no state dict has."""
        return self.name in self.module._non_persistent_buffers_set and not self.is_parameter


def own(module: Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's own parameters and persistent buffers by their names in it, in the order of its state dict."""
    for name, param in module._parameters.items():
        if param is not None:
            yield name, param
    hidden = module._non_persistent_buffers_set
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in hidden:
            yield name, buffer


def walk(module: Module, prefix: str = "") -> Iterator[tuple[Module, str]]:
    """Every module with the prefix of its names, parents first; one that is there twice comes twice."""
    yield module, prefix
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, f"{prefix}{name}.")


def all_slots(modules: Iterable[tuple[Module, str]]) -> Iterator[Slot]:
    """Every parameter and buffer of a model, in its order, non-persistent buffers after a module's others."""
    for module, prefix in modules:
        for name, tensor in own(module):
            yield Slot(module, name, prefix + name, tensor)
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield Slot(module, name, prefix + name, buffer)


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
