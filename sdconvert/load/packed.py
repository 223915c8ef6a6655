"""Weight and bias that a module of torch's quantization keeps packed together, and not as parameters.

``torch.ao.nn.quantized.Linear`` has a submodule whose state dict holds ``_packed_params``, a tuple of weight and bias,
and ``dtype``, neither a tensor (``torch/ao/nn/quantized/modules/linear.py``, version 3). Here the two tensors have
names of their own, as in a conversion: ``fc._packed_params._packed_params.0`` and, if there is a bias, ``.1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import Module

_PACKED, _DTYPE = "_packed_params", "dtype"


def unpacked(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names and values of a state dict, with the tensors of packed ones under names of their own."""
    for name, value in state.items():
        owner, _, last = name.rpartition(".")
        if last == _PACKED and type(value) is tuple:
            yield from ((f"{name}.{place}", part) for place, part in enumerate(value) if part is not None)
        elif not (last == _DTYPE and type(value) is torch.dtype and owner.rpartition(".")[2] == _PACKED):
            yield name, value


def version_of(module: Module, prefix: str, names: Iterable[str]) -> dict[str, int]:
    """The version that names below a quantized module show, where the source has no note of it."""
    if type(module).__module__.startswith("torch.ao.nn.") and any(_is_packed(prefix, name) for name in names):
        return {"version": module._version}
    return {}


def pack(module: Module, prefix: str, state: dict[str, Any]) -> None:
    """Put the tensors of a packed module together as it wants them, if it is one."""
    if (type(module).__name__, type(module).__module__) != (
        "LinearPackedParams",
        "torch.ao.nn.quantized.modules.linear",
    ):
        return
    weight, bias = (state.pop(f"{prefix}{_PACKED}.{place}", None) for place in range(2))
    if weight is not None:
        state[prefix + _PACKED] = weight, bias
        # Without a quantizer it was made for half precision, the other way there is.
        state[prefix + _DTYPE] = weight.dtype if weight.is_quantized else torch.float16


def _is_packed(prefix: str, name: str) -> bool:
    return name.startswith((f"{prefix}{_PACKED}.0", f"{prefix}{_PACKED}.{_PACKED}.0"))
