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

    `names` are all of them, aliases too, in the state dict's order; a part of an encoded tensor is one like any
    other. `shards` are the files: the names of the entries in each, every entry in one; an alias goes where its
    kept name goes, and so does all that an encoded tensor is made of.
    """

    entries: tuple[Entry, ...]
    aliases: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = field(kw_only=True)
    shards: tuple[tuple[str, ...], ...] = field(kw_only=True)
    encoded: Mapping[str, Encoding] = field(default_factory=dict, kw_only=True)
    """Of which tensors that are not plain some entries are parts, by those tensors' names."""

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.nbytes for entry in self.entries)

    def parts(self) -> list[Plan]:
        """A plan for each shard, of one file. Together they are this one."""
        if len(self.shards) == 1:
            return [self]
        entries = {entry.name: entry for entry in self.entries}
        tied: dict[str, list[str]] = {}
        for alias, kept in self.aliases.items():
            tied.setdefault(kept, []).append(alias)
        place = {name: number for number, name in enumerate(self.names)}
        plans = []
        for shard in self.shards:
            aliases = {alias: kept for kept in shard for alias in tied.get(kept, ())}
            names = tuple(sorted((*shard, *aliases), key=place.__getitem__))
            ours = tuple(entries[name] for name in shard)
            encoded = {name: one for name, one in self.encoded.items() if {*one.parts.values()} <= {*names}}
            plans.append(Plan(ours, MappingProxyType(aliases), names=names, shards=(shard,), encoded=encoded))
        return plans

    def to_json(self) -> dict[str, object]:
        """The plan as JSON-ready data."""
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
            "shards": [list(shard) for shard in self.shards],
        }


def make_plan(
    weights: StateDict,
    *,
    dtype: DType | None = None,
    shard_bytes: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Plan:
    """Decide ties, sizes and shards. With `dtype`, floating-point tensors are to be cast to it, but not parts of
    encoded ones.

    `shard_bytes` is how many bytes of tensors a shard may have, 0 for one file, None for the layout of the source:
    the shards that it has, or one file.

    UnreadableError when views would make the output far larger than what they are views of.
    """
    by_storage: dict[Storage, list[tuple[str, TensorRef]]] = {}
    for name, tensor in weights.tensors.items():
        for piece in tensor.pieces:
            by_storage.setdefault(piece.storage, [])
        by_storage[tensor.pieces[0].storage].append((name, tensor))  # The same tensor begins in the same storage.
    parts = {part for one in weights.encoded.values() for part in one.parts.values()} if dtype is not None else ()
    targets = {
        name: tensor.dtype if name in parts else _target(tensor, dtype) for name, tensor in weights.tensors.items()
    }
    aliases: dict[str, str] = {}
    warnings: list[str] = []
    for sharing in by_storage.values():
        if len(sharing) > 1:
            # What is cast under one name and a part of an encoded tensor under another is two tensors of the output.
            kept: dict[tuple[TensorRef, DType], str] = {}
            for name, tensor in sharing:
                first = kept.setdefault((tensor, targets[name]), name)
                if first != name:
                    aliases[name] = first
            _overlaps([(name, tensor) for (tensor, _), name in kept.items()], warnings)
    entries = tuple(
        Entry.of(name, tensor, targets[name]) for name, tensor in weights.tensors.items() if name not in aliases
    )
    plan = Plan(
        entries,
        MappingProxyType(aliases),
        tuple(warnings),
        names=tuple(weights.tensors),
        shards=_shards(entries, weights, aliases, shard_bytes),
        encoded=weights.encoded,
    )
    check_cost({entry.name: entry.tensor for entry in entries}, plan.nbytes, limits)
    return plan


def check_cost(tensors: Mapping[str, TensorRef], nbytes: int, limits: Limits) -> None:
    """UnreadableError when `tensors`, of `nbytes` bytes in all, cost far more to read than what they are views of."""
    for name, tensor in tensors.items():
        if len(tensor.pieces) > limits.pieces:
            raise UnreadableError(
                f"{name}: it is in {len(tensor.pieces)} parts, more than Limits.pieces. "
                f"The checkpoint is hostile; --exclude {name} leaves it out"
            )
        if (scattered := reads(tensor)) > limits.scattered_reads:
            raise UnreadableError(
                f"{name}: its elements lie apart from each other, in {scattered} places of its storage. "
                f"The file is hostile, or Limits.scattered_reads is too low; --exclude {name} leaves it out"
            )
    held = sum(storage.nbytes for storage in {piece.storage for tensor in tensors.values() for piece in tensor.pieces})
    if nbytes > limits.expansion * held + limits.expansion_slack:
        raise UnreadableError(
            f"its tensors have {nbytes} bytes, made of {held} bytes by views that repeat them. "
            f"--max-expansion {nbytes // max(held, 1) + 1} allows it"
        )


def _shards(
    entries: tuple[Entry, ...], weights: StateDict, aliases: Mapping[str, str], most: int | None
) -> tuple[tuple[str, ...], ...]:
    # What is one tensor for whoever loads it stays in one file; of two that share a part, both.
    joined: dict[str, str] = {}

    def whole(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    for encoding in weights.encoded.values():
        first, *others = (whole(aliases.get(part, part)) for part in encoding.parts.values())
        joined |= {other: first for other in others if other != first}
    blocks: dict[str, list[Entry]] = {}
    for entry in entries:
        blocks.setdefault(whole(entry.name), []).append(entry)
    if most:
        shards = _split([(block, sum(entry.nbytes for entry in block)) for block in blocks.values()], most)
    elif most is None and weights.shards:
        by_file: dict[int, list[Entry]] = {}
        for block in blocks.values():
            # Of tensors that are in no storage of the source's, the first shard.
            file = min((weights.shards.get(piece.storage, 0) for piece in block[0].tensor.pieces), default=0)
            by_file.setdefault(file, []).extend(block)
        shards = [by_file[file] for file in sorted(by_file)]
    else:
        shards = [list(entries)]
    return tuple(tuple(entry.name for entry in shard) for shard in shards)


def _split(blocks: list[tuple[list[Entry], int]], most: int) -> list[list[Entry]]:
    """Shards of at most `most` bytes, as ``split_state_dict_into_shards_factory`` in huggingface_hub fills them.

    In order, and never looking back; a block that is too large by itself is a shard of its own, and the
    shard that was being filled goes on after it.
    """
    shards: list[list[Entry]] = []
    current: list[Entry] = []
    filled = 0
    for block, nbytes in blocks:
        if nbytes > most:
            shards.append(list(block))
            continue
        if filled + nbytes > most:
            shards.append(current)
            current, filled = [], 0
        current += block
        filled += nbytes
    if current:
        shards.append(current)
    return shards


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
