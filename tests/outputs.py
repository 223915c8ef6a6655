"""Looking at an output through the eyes of others: safetensors' own reader, and plain JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    result: dict[str, Any] = json.loads(data[8 : 8 + size])
    return result


def contents(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file as its reference reader gives them, aliases resolved."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
        metadata = dict(file.metadata() or {})
    assert metadata.pop("format") == "pt"
    return tensors | {alias: tensors[kept] for alias, kept in metadata.items() if kept in tensors}


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, row-major, with conjugation and negation carried out."""
    dense = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return bytes(dense.reshape(-1).view(torch.uint8).numpy()) if dense.numel() else b""


def described(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], str]:
    """dtype, shape and digest: what the corpus' manifest says of a tensor."""
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), hashlib.sha256(raw(tensor)).hexdigest()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same names, dtypes, shapes and bytes; AssertionError names what differs."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert described(ours[name]) == described(tensor), name
    return True
