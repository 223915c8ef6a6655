"""The quantized modules of ``torch.ao.nn``, which write something else than their parameters and buffers.

Their weights are packed by a C++ class, of which a pickle shows what it was packed from: a weight and a
bias. The names are those of ``state_dict()``: ``_save_to_state_dict`` of the classes in
``torch/ao/nn/quantized/modules`` and ``dynamic/modules``. A pair of weight and bias, which ``state_dict()``
keeps as a tuple under one name, gives that name with ``.0`` and ``.1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..checkpoint import TENSORS, Dict, LostTensor, Object, Value
from ..errors import UnreadableError
from .encoded import constant
from .nodes import Call
from .resolver import Rebuild, Resolver

QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.(dynamic\.)?modules\.")
_PACKED = ("_packed_params", "_packed_weight", "param", "_packed_weight_ih", "_packed_weight_hh")
_CONV = 15  # Values in the state of a convolution.
_DEPTH = 8


def _script_object(r: Resolver, call: Call) -> Value:
    """A C++ object and its state (what it was made of, the name of its class)."""
    state = call.states[0] if call.states and len(call.states) == 1 else None
    if type(state) is tuple and len(state) == 2 and type(state[1]) is str:
        return r.value(state[0])
    result = Object(call.func.full)
    r.todo.append((call, result))
    return result


def _convolution(r: Resolver, call: Call) -> Value:
    """``_ConvNd.__getstate__``: (..., weight, bias, scale, zero_point, training), put as other modules are."""
    state = call.states[0] if call.states and len(call.states) == 1 else None
    result = Object(call.func.full)
    if type(state) is not tuple or len(state) != _CONV:
        r.todo.append((call, result))
        return result
    weight, bias, scale, zero_point = state[10:14]
    parameters = Dict([("weight", r.value(weight)), ("bias", r.value(bias))])
    parameters.pairs += scalars({"scale": scale, "zero_point": zero_point})
    result.state = Dict([("_parameters", parameters), ("_buffers", Dict()), ("_modules", Dict())])
    return result


def scalars(values: Mapping[str, Value]) -> list[tuple[str, Value]]:
    """``torch.tensor(scale)`` and ``torch.tensor(zero_point)``: float32 and int64, without dimensions."""
    found: list[tuple[str, Value]] = []
    for name, dtype, kind in (("scale", "float32", float), ("zero_point", "int64", int)):
        value = values.get(name)
        if type(value) in TENSORS:
            found.append((name, value))
        elif type(value) is kind or (kind is float and type(value) is int):
            found.append((name, constant(dtype, [value], ())))
        elif value is not None:
            raise UnreadableError(f"a quantized module's {name} is not a number. The file is damaged")
    return found


def own_weights(type_name: str, state: Dict) -> list[tuple[str, Value]]:
    """What a quantized module's state dict has beside its parameters, buffers and children."""
    if not QUANTIZED.match(type_name):
        return []
    buffers = state.get("_buffers")
    there = buffers.by_name() if type(buffers) is Dict else {}
    found = [(name, value) for name, value in scalars(state.by_name()) if name not in there]
    if not type_name.endswith(_SCALED):
        found = []
    for name in _PACKED:
        value = state.get(name)
        if type_name.endswith(".EmbeddingPackedParams") and type(value) is list and len(value) == 4 and value[1]:
            value = value[1][0]  # (version, [weight], floats, integers), of which state_dict() keeps the weight.
        if value is not None:
            found += _spread(name, value, 0)
    return found


# The classes whose scale and zero point are numbers that become tensors; elsewhere they are buffers, or not saved.
_SCALED = (".Linear", ".LinearReLU", ".LinearLeakyReLU", ".LinearTanh", ".QFunctional")


def _spread(name: str, value: Value, depth: int) -> Iterator[tuple[str, Value]]:
    """A packed weight's parts; what is not a tensor (numbers, None) is packing."""
    if type(value) in TENSORS:
        yield name, value
    elif type(value) is list and depth < _DEPTH and len(value) < 1000:
        for index, item in enumerate(value):
            yield from _spread(f"{name}.{index}", item, depth + 1)
    elif type(value) is Object or type(value) is list:
        yield name, LostTensor("packed in a way that this reader does not know")


_CLASSES = [
    f"{package}.{name}{dims}d"
    for package, names in (
        ("quantized.modules.conv", ("Conv", "ConvTranspose")),
        ("quantized.dynamic.modules.conv", ("Conv", "ConvTranspose")),
        ("intrinsic.quantized.modules.conv_relu", ("ConvReLU",)),
        ("intrinsic.quantized.modules.conv_add", ("ConvAdd", "ConvAddReLU")),
    )
    for name in names
    for dims in (1, 2, 3)
]
QUANTIZED_MODULES: Mapping[str, Rebuild] = {
    "torch.ScriptObject": _script_object,
    **{f"torch.{nn}.{name}": _convolution for name in _CLASSES for nn in ("nn", "ao.nn")},
}
