"""Quantized and sparse tensors as plain ones: ``--dequantize`` and ``--densify``.

A dense tensor is a source like a file, whose bytes are computed when they are read, by torch, a block at a
time: so it is planned, copied, cast and verified like any other, in the same memory. Which numbers come out
is torch's decision: `dequantize` and `to_dense` are called on the part that is asked for.
"""

from __future__ import annotations

import json
import warnings as warnings_of_python
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from .checkpoint import Encoding, StateDict
from .computed import Dequantized
from .dtypes import BY_NAME
from .errors import UnreadableError, UnsupportedError, within
from .limits import DEFAULT_LIMITS, Limits
from .source import Source
from .sparse import sparse_source
from .tensor import Storage, TensorRef, contiguous_strides, numel, strided

_CHANNELS = 1 << 20  # Scales and zero points that are kept in memory: 16 MiB.


def made_dense(
    weights: StateDict, *, dequantize: bool, densify: bool, limits: Limits = DEFAULT_LIMITS
) -> tuple[StateDict, list[Storage]]:
    """The weights with their quantized (sparse) tensors as plain ones, and the storages that those are computed from.

    Warnings name what stays encoded all the same. UnsupportedError without torch; UnreadableError when an index
    points outside of its tensor, or when the outcome would be far larger than the file.
    """
    wanted = {name for name, one in weights.encoded.items() if _wants(one, dequantize, densify)}
    if not wanted:
        return weights, []
    if find_spec("torch") is None:
        flag = "--dequantize" if dequantize else "--densify"
        raise UnsupportedError(f"{flag} needs torch. Install it with: pip install 'sdconvert[torch]'")
    _hear_torch_out()
    tensors: dict[str, TensorRef] = {}
    left, warnings = dict(weights.encoded), list(weights.warnings)
    owner = {part: name for name in wanted for part in weights.encoded[name].parts.values()}
    made: dict[Any, TensorRef | str] = {}
    storages: list[Storage] = []
    for part, tensor in weights.tensors.items():
        name = owner.get(part)
        if name is None:
            tensors[part] = tensor
            continue
        one = weights.encoded[name]
        if part != next(iter(one.parts.values())):
            if name in left:
                tensors[part] = tensor
            continue
        parts = {role: weights.tensors[part] for role, part in one.parts.items()}
        key = (tuple(parts.values()), json.dumps(one.recipe, sort_keys=True))  # A tie stays one.
        if key not in made:
            with within(name):
                made[key] = _dense(name, one.recipe, parts, limits)
        outcome = made[key]
        if isinstance(outcome, TensorRef):
            tensors[name] = outcome
            del left[name]
            storages += (piece.storage for part in parts.values() for piece in part.pieces)
        else:
            tensors[part] = tensor
            warnings.append(f"{name} stays encoded: {outcome}")
    return replace(weights, tensors=tensors, encoded=left, warnings=tuple(warnings)), storages


def _hear_torch_out() -> None:
    """torch warns once in a process that quantized tensors will go away some day, which is nothing new to who wants
    them dequantized."""
    import torch

    with warnings_of_python.catch_warnings():
        warnings_of_python.simplefilter("ignore")
        torch._make_per_tensor_quantized_tensor(torch.zeros(1, dtype=torch.int8), 1.0, 0)


def _wants(one: Encoding, dequantize: bool, densify: bool) -> bool:
    kind = one.recipe["encoding"]
    return (dequantize and kind in ("quantized", "subclass")) or (
        densify and (kind.startswith("sparse_") or kind in ("nested", "jagged"))
    )


def _dense(name: str, recipe: Any, parts: dict[str, TensorRef], limits: Limits) -> TensorRef | str:
    """The dense tensor, or why there is none."""
    kind, shape = recipe["encoding"], tuple(recipe["shape"])
    source: Source
    if kind == "quantized":
        dtype = "float32"
        if "scales" in parts and parts["scales"].numel > _CHANNELS:
            return "it has too many channels to dequantize it in bounded memory"
        source = Dequantized(name, recipe, parts)
    elif kind in ("sparse_coo", "sparse_csr", "sparse_csc"):
        dtype = recipe["dtype"]
        made = sparse_source(name, recipe, parts)
        if isinstance(made, str):
            return made
        source = made
    elif kind == "subclass":
        return f"--dequantize knows torch's own quantized tensors, not {recipe['class']}"
    else:
        return f"--densify knows COO, CSR and CSC, not {kind}"
    element, held = BY_NAME[dtype], sum(part.nbytes for part in parts.values())
    nbytes = numel(shape) * element.itemsize
    if nbytes > limits.expansion * held + limits.expansion_slack:
        raise UnreadableError(
            f"it would have {nbytes} bytes, made of {held}. --max-expansion {nbytes // max(held, 1) + 1} allows it"
        )
    return strided(element, shape, Storage(source, 0, nbytes, name), 0, contiguous_strides(shape))
