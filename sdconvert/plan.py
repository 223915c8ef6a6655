"""What will be written, decided before the first byte is: who shares with whom, and what that costs.

A tie is two names for the same view of one storage: it is written once, under the name
that comes first, and the others become aliases. Views of one storage that are not the
same are written apart, each whole; where they overlap, that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from .checkpoint import Encoding, StateDict
from .dtypes import DType
from .errors import UnreadableError
from .gather import reads
from .limits import DEFAULT_LIMITS, Limits
from .tensor import Storage, TensorRef

_TOLD = 10


class Entry(NamedTuple):
    """One tensor of the output: its name, where its bytes come from, and the dtype they are to have."""

    name: str
    tensor: TensorRef
    dtype: DType
    nbytes: int
    """Bytes in the output."""

    @staticmethod
    def of(name: str, tensor: TensorRef, dtype: DType) -> Entry:
        """The entry for a tensor of which every element becomes one of `dtype`."""
        return Entry(name, tensor, dtype, tensor.numel * dtype.itemsize)


@dataclass(frozen=True)
class Plan:
    """`entries` in the state dict's order; `aliases` maps each other name of a tie to the kept one.

    `names` are all of them, aliases too, in the state dict's order. A part of an encoded tensor is one like any other.
    """

    entries: tuple[Entry, ...]
    aliases: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = field(kw_only=True)
    encoded: Mapping[str, Encoding] = field(default_factory=dict, kw_only=True)
    """Of which tensors that are not plain some entries are parts, by those tensors' names."""

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.nbytes for entry in self.entries)

    def to_json(self) -> dict[str, object]:
        """The plan as JSON-ready data, as ``--dry-run --json`` prints it."""
        return {
            "entries": [
                {
                    "name": entry.name,
                    "dtype": entry.dtype.name,
                    "shape": list(entry.tensor.shape),
                    "bytes": entry.nbytes,
                    "storages": sorted({piece.storage.name for piece in entry.tensor.pieces}),
                    "contiguous": entry.tensor.is_plain,
                }
                for entry in self.entries
            ],
            "aliases": dict(self.aliases),
            "bytes": self.nbytes,
        }


def make_plan(weights: StateDict, *, dtype: DType | None = None, limits: Limits = DEFAULT_LIMITS) -> Plan:
    """Decide ties and sizes. With `dtype`, floating-point tensors are to be cast to it, but not parts of encoded ones.

    UnreadableError when views would make the output far larger than what they are views of.
    """
    by_storage: dict[Storage, list[tuple[str, TensorRef]]] = {}
    for name, tensor in weights.tensors.items():
        for piece in tensor.pieces:
            by_storage.setdefault(piece.storage, []).append((name, tensor))
    aliases: dict[str, str] = {}
    warnings: list[str] = []
    for sharing in by_storage.values():
        if len(sharing) > 1:
            kept: dict[TensorRef, str] = {}
            for name, tensor in sharing:
                first = kept.setdefault(tensor, name)
                if first != name:
                    aliases[name] = first
            _overlaps([(name, tensor) for tensor, name in kept.items()], warnings)
    parts = {part for one in weights.encoded.values() for part in one.parts.values()}
    entries = tuple(
        Entry.of(name, tensor, tensor.dtype if name in parts else _target(tensor, dtype))
        for name, tensor in weights.tensors.items()
        if name not in aliases
    )
    names = tuple(weights.tensors)
    plan = Plan(entries, MappingProxyType(aliases), tuple(warnings), names=names, encoded=weights.encoded)
    for entry in entries:
        if (scattered := reads(entry.tensor)) > limits.scattered_reads:
            raise UnreadableError(
                f"{entry.name}: its elements lie apart from each other, in {scattered} places of its storage. "
                f"The file is hostile, or Limits.scattered_reads is too low; --exclude {entry.name} leaves it out"
            )
    held = sum(storage.nbytes for storage in by_storage)
    most = limits.expansion * held + limits.expansion_slack
    if plan.nbytes > most:
        raise UnreadableError(
            f"the output would have {plan.nbytes} bytes, made of {held} bytes by views that repeat them. "
            f"--max-expansion {plan.nbytes // max(held, 1) + 1} allows it"
        )
    return plan


def _target(tensor: TensorRef, dtype: DType | None) -> DType:
    castable = tensor.dtype.kind == "f" and tensor.dtype.packed == 1
    return dtype if dtype is not None and castable else tensor.dtype


def _overlaps(sharing: list[tuple[str, TensorRef]], warnings: list[str]) -> None:
    """Say which different views of one storage have bytes in common: a tie of theirs is lost in the output."""
    ranges = []
    for name, tensor in sharing:
        if len(tensor.pieces) == 1 and tensor.numel:
            piece = tensor.pieces[0]
            last = sum((size - 1) * stride for size, stride in zip(piece.shape, piece.strides, strict=True))
            begin = piece.offset * tensor.dtype.itemsize
            ranges.append((begin, begin + (last + 1) * tensor.dtype.itemsize, name))
    reach, owner = -1, ""
    for begin, end, name in sorted(ranges):
        if begin < reach and len(warnings) <= _TOLD:
            if len(warnings) == _TOLD:
                warnings.append("more tensors overlap others; each is written whole")
            else:
                warnings.append(f"{owner} and {name} overlap in memory but are not the same; each is written whole")
        if end > reach:
            reach, owner = end, name
