"""Letting a module load, and putting it back as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

_OWN = ("_parameters", "_buffers", "_modules")


class Trial:
    """A module as it is now. With `copies`, also the values of its own tensors, which cost memory."""

    def __init__(self, module: Module, *, copies: bool) -> None:
        self.module = module
        self._attributes = dict(module.__dict__)
        self._own = {kind: dict(module.__dict__[kind]) for kind in _OWN}
        self._tensors: list[tuple[torch.Tensor, Any, torch.Tensor, int, torch.Tensor | None]] = []
        own: list[torch.Tensor | None] = [*self._own["_parameters"].values(), *self._own["_buffers"].values()]
        for tensor in own:
            if tensor is None:
                continue
            lazy = torch.nn.parameter.is_lazy(tensor)
            data = tensor.data
            values = data.clone() if copies and not lazy and not tensor.is_meta else None
            version = 0 if tensor.is_inference() else tensor._version
            self._tensors.append((tensor, type(tensor), data, version, values))

    def now(self, name: str) -> torch.Tensor | None:
        """The parameter or buffer that has this name now."""
        found = self.module._parameters.get(name)
        return found if found is not None else self.module._buffers.get(name)

    def is_clean(self) -> bool:
        """Whether nothing changed but which tensors the parameters and buffers are."""
        module = self.module
        if module.__dict__.keys() != self._attributes.keys():
            return False
        if any(module.__dict__[name] is not value for name, value in self._attributes.items()):
            return False
        if any(module.__dict__[kind].keys() != self._own[kind].keys() for kind in _OWN):
            return False
        return all(
            torch.nn.parameter.is_lazy(kind) or tensor.is_inference() or tensor._version == version
            for tensor, kind, _, version, _ in self._tensors
        )

    def put_back(self) -> None:
        """The parameters and buffers that were there, with the values they had; attributes stay as they are now."""
        for kind in _OWN:
            current = self.module.__dict__[kind]
            if kind != "_modules":
                current.update(self._own[kind])
        for tensor, kind, data, version, values in self._tensors:
            if type(tensor) is not kind:  # A lazy parameter that was made a real one.
                tensor.data = torch.empty(0, dtype=data.dtype, device=data.device)
                tensor.__class__ = kind
                continue
            if not torch.nn.parameter.is_lazy(tensor) and tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if values is not None and not tensor.is_inference() and tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(values)

    def undo(self) -> None:
        """All of it, as it was."""
        self.module.__dict__.clear()
        self.module.__dict__.update(self._attributes)
        for kind in _OWN:
            current = self.module.__dict__[kind]
            current.clear()
            current.update(self._own[kind])
        self.put_back()
