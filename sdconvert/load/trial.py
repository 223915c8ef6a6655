"""Letting a module load, and putting it back as it was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import Module
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_LAZY = (UninitializedParameter, UninitializedBuffer)
_OWN = ("_parameters", "_buffers", "_modules")


class _Kept(NamedTuple):
    """A tensor and all by which a change of it shows: its class, its memory, how often it was written to."""

    tensor: torch.Tensor
    kind: type
    data: torch.Tensor
    version: int
    values: torch.Tensor | None

    @staticmethod
    def of(tensor: torch.Tensor, copies: bool) -> _Kept:
        data = tensor.data
        if isinstance(tensor, _LAZY):
            return _Kept(tensor, type(tensor), data, 0, None)
        version = 0 if tensor.is_inference() else tensor._version
        return _Kept(tensor, type(tensor), data, version, data.clone() if copies and not tensor.is_meta else None)

    @property
    def was_lazy(self) -> bool:
        return issubclass(self.kind, _LAZY)

    def is_written(self) -> bool:
        """Whether its memory is another now, or values were written to it.

        A lazy one that was made a real one had none.
        """
        if self.was_lazy:
            return False
        if self.tensor.data_ptr() != self.data.data_ptr() or self.tensor.shape != self.data.shape:
            return True
        return not self.tensor.is_inference() and self.tensor._version != self.version

    def put_back(self) -> None:
        tensor = self.tensor
        if self.was_lazy:
            if type(tensor) is not self.kind:
                tensor.data = self.data
                tensor.__class__ = self.kind
            return
        written = self.is_written()
        if tensor.data_ptr() != self.data.data_ptr() or tensor.shape != self.data.shape:
            tensor.data = self.data
        if written and self.values is not None:
            with torch.no_grad():
                tensor.copy_(self.values)


class Trial:
    """A module as it is now. With `copies`, also the values of its own tensors, which cost memory."""

    def __init__(self, module: Module, *, copies: bool) -> None:
        self.module = module
        self._attributes = dict(module.__dict__)
        self._own = {kind: dict(module.__dict__[kind]) for kind in _OWN}
        own: list[torch.Tensor | None] = [*self._own["_parameters"].values(), *self._own["_buffers"].values()]
        self._kept = [_Kept.of(tensor, copies) for tensor in own if tensor is not None]

    def now(self, name: str) -> torch.Tensor | None:
        """The parameter or buffer that has this name now."""
        found = self.module._parameters.get(name)
        return found if found is not None else self.module._buffers.get(name)

    def written(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A copy of what was written to a tensor in place, if anything was."""
        if any(kept.tensor is tensor and kept.is_written() for kept in self._kept):
            return tensor.detach().clone()
        return None

    def is_clean(self) -> bool:
        """Whether nothing changed but which tensors the parameters and buffers are."""
        now, before = self.module.__dict__, self._attributes
        if now.keys() != before.keys() or any(now[name] is not value for name, value in before.items()):
            return False
        if any(now[kind].keys() != self._own[kind].keys() for kind in _OWN):
            return False
        return not any(kept.is_written() for kept in self._kept)

    def put_back(self) -> None:
        """The parameters and buffers that were there, with the values they had; attributes stay as they are now."""
        for kind in ("_parameters", "_buffers"):
            self.module.__dict__[kind].update(self._own[kind])
        for kept in self._kept:
            kept.put_back()

    def undo(self) -> None:
        """All of it, as it was."""
        self.module.__dict__.clear()
        self.module.__dict__.update(self._attributes)
        for kind in _OWN:
            self.module.__dict__[kind].clear()
            self.module.__dict__[kind].update(self._own[kind])
        self.put_back()
