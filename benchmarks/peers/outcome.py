"""What came out of a checkpoint, compared with what should have: read by safetensors and torch themselves.

``python -m benchmarks.peers.outcome OUT`` reads a truth from standard input, as JSON, and prints the verdict.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from benchmarks.peers.cases import Truth

RIGHT = "right"
TOO_LARGE = 1.5  # Times the bytes of the weights. Below it is what headers and padding take of small files.
_CLASS = re.compile(r"Can't get attribute|No module named|has no attribute '\w+' on <module")


def judged(truth: Truth, found: Truth, aliases: dict[str, str], written: int, needed: int) -> str:
    """One verdict in a few words: the worst that can be said.

    found: every tensor of the output. aliases: names that it has as other names. written: bytes of the output's
    tensors. needed: those of the weights, each storage once.
    """
    names = {**found, **{alias: found[kept] for alias, kept in aliases.items() if kept in found}}
    other, more = truth.keys() - names.keys(), found.keys() - truth.keys()
    renamed = {found[name][2] for name in more}
    lost = {name for name in other if truth[name][2] not in renamed}
    kept = truth.keys() & names.keys()
    if any(truth[name][0] == names[name][0] and truth[name][1:] != names[name][1:] for name in kept):
        return "wrong bytes"
    if any(truth[name][0] != names[name][0] for name in kept):
        return "another dtype"
    if lost:
        return f"{len(lost)} of {len(truth)} names missing"
    if written > TOO_LARGE * needed:
        return f"{written / needed:.1f} times too large"
    if other:
        return "other names"
    if more:
        return f"{len(more)} tensor{'s' * (len(more) > 1)} too many"
    return RIGHT


def refused(said: str) -> str:
    """The verdict on a way that failed, from what it said last."""
    return "needs the class" if _CLASS.search(said) else "refuses"


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))


def read(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and aliases of a safetensors file, a directory with one, or a .pt; nested names joined by dots."""
    import torch
    from safetensors import safe_open

    if out.suffix == ".pt":
        return dict(_tensors(torch.load(out, weights_only=True))), {}
    (path,) = out.glob("*.safetensors") if out.is_dir() else [out]
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def verdict(out: Path, truth: Truth) -> str:
    """`judged`, of an output as it lies on the disk. A nested state dict counts by the names inside of it."""
    from benchmarks.peers.cases import described

    tensors, aliases = read(out)
    if out.suffix == ".pt":
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    found = described(tensors)
    # Ties are the same tensors under several names: the distinct digests are what has to be written.
    sizes = {entry[2]: tensor.nbytes for entry, tensor in zip(found.values(), tensors.values(), strict=True)}
    needed = sum(sizes.get(digest, 0) for digest in {entry[2] for entry in truth.values()})
    storages = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors.values()}
    return judged(truth, found, aliases, sum(storages.values()), max(needed, 1))


if __name__ == "__main__":
    print(verdict(Path(sys.argv[1]), json.load(sys.stdin)))
