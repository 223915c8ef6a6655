"""A checkpoint in several complete files: those that an index names, or a whole set ``-00001-of-0000N``.

``{"metadata": {...}, "weight_map": {name: file}}``; each shard is a torch or a safetensors file by
itself. The index is a hint: what counts is what the shards hold. A tie is recorded as ``{alias:
kept}`` in the metadata of the index and of the shards, of every shard or of the one that has the
kept name (``save_torch_state_dict`` in huggingface_hub); indexes that list aliases too are common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import Checkpoint, Dict, EncodedTensor, Global, Skipped, TensorRef, Value
from ..errors import UnreadableError, listed, within
from ..limits import Limits
from ..recipes import part_name, with_recipes
from ..shardnames import ShardName, as_index, as_shard, is_plain
from ..source import Folder
from ..strict_json import parse
from ..tensor import Storage
from .protocol import Nested

NAME = "sharded"
_SHOWN, _LONGEST = 5, 100
_RESERVED = ("format", "total_size")


def sniff(folder: Folder) -> bool:
    return as_index(folder.entry) is not None or as_shard(folder.entry) is not None


def read(folder: Folder, nested: Nested, limits: Limits) -> Checkpoint:
    entry = as_shard(folder.entry)
    index = _Index() if entry else _index(folder, limits)
    files = _set(folder, entry) if entry else sorted(set(index.weight_map.values()))
    lost = [name for name in files if name not in folder.files]
    if lost:
        raise UnreadableError(
            f"{len(lost)} of {len(files)} shards are missing: {listed(lost, _SHOWN, _LONGEST)}. "
            "Download or copy them again"
        )
    nested = nested.among(len(files))
    merged = _Merged()
    for number, name in enumerate(files):
        with within(name):
            merged.add(number, name, nested(folder.open(name)), limits)
    merged.restore_aliases(index.metadata)
    if entry:
        merged.warnings.append(f"there is no index; the {len(files)} shards that belong together by name were taken")
    else:
        merged.compare(index.weight_map)
    rest = {key: value for key, value in merged.metadata.items() if key not in merged.tensors}
    return Checkpoint(
        f"sharded+{'+'.join(merged.containers)}",
        # As state_dict() marks its own: it is complete.
        Dict(list(merged.tensors.items()), attributes=Dict([("_metadata", Dict())])),
        tuple(merged.globals),
        warnings=tuple(dict.fromkeys(merged.warnings)),
        metadata=rest,
        sources=merged.sources,
        files=(*([] if entry else [folder.entry]), *files),
        skipped=tuple(_stale(folder, files)),
        shards=merged.shards,
    )


@dataclass(frozen=True)
class _Index:
    """What an index says. `metadata` has only the strings: sizes and counts are for others."""

    weight_map: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def _index(folder: Folder, limits: Limits) -> _Index:
    with within(folder.entry):
        source = folder.open(folder.entry)
        if source.nbytes > limits.header_bytes:
            raise UnreadableError(f"has {source.nbytes} bytes, more than Limits.header_bytes")
        content = parse(source, 0, source.nbytes, "content", limits.json_bytes)
        weight_map, metadata = content.get("weight_map"), content.get("metadata")
        if type(weight_map) is not dict or not weight_map:
            raise UnreadableError("has no weight_map that says which tensor is in which file. It is no index of shards")
        for name, file in weight_map.items():
            if type(file) is not str or not is_plain(file):
                raise UnreadableError(
                    f"{name} is said to be in {_shown(file)}, which is not the name of a file beside the index. "
                    "It is damaged or hostile"
                )
            if as_index(file):
                raise UnreadableError(f"{name} is said to be in {file}, which is an index too. It is damaged")
        if type(metadata) is not dict:
            metadata = {}
        strings = {key: value for key, value in metadata.items() if type(value) is str}
        return _Index(weight_map, {key: value for key, value in strings.items() if key not in _RESERVED})


def _set(folder: Folder, first: ShardName) -> list[str]:
    """All shards of a set that has no index. UnreadableError when there are fewer than their names say."""
    numbers = sorted(shard.number for shard in _siblings(folder, first) if shard.total == first.total)
    if len(numbers) < first.total:
        here = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
        raise UnreadableError(
            f"{first.total - len(numbers)} of {first.total} shards are missing, only number {here} "
            f"of {first.stem}{first.ending} is there. Download or copy them again"
        )
    return [first._replace(number=number).name for number in numbers]


def _siblings(folder: Folder, shard: ShardName) -> Iterator[ShardName]:
    """The shards of the same stem and ending, those of sets of other counts too."""
    for name in folder.files:
        other = as_shard(name)
        if other and (other.stem, other.ending) == (shard.stem, shard.ending):
            yield other


def _stale(folder: Folder, files: list[str]) -> Iterator[Skipped]:
    """Shards that lie beside those that were read and have their names, of another run for example."""
    kinds = {(shard.stem, shard.ending): shard for name in files if (shard := as_shard(name))}
    known = set(files)
    for shard in kinds.values():
        for other in _siblings(folder, shard):
            if other.name not in known:
                yield Skipped(other.name, "a shard of another set")


class _Merged:
    """What the shards hold, together."""

    def __init__(self) -> None:
        self.tensors: dict[str, Value] = {}
        self.home: dict[str, str] = {}
        self.shards: dict[Storage, int] = {}
        self.containers: dict[str, None] = {}
        self.globals: dict[Global, None] = {}
        self.sources: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.warnings: list[str] = []

    def add(self, number: int, file: str, shard: Checkpoint, limits: Limits) -> None:
        """Take all that a shard holds. UnreadableError when another has a tensor of the same name."""
        if type(shard.root) is not Dict:
            raise UnreadableError("holds no state dict. A shard has one, names to tensors, and nothing around it")
        if any(type(name) is not str for name, _ in shard.root.pairs):
            raise UnreadableError("has a name in its state dict that is not text. It is no shard")
        for name, value in with_recipes(dict(shard.root.pairs), shard.root, limits).items():
            if self.home.get(name, file) != file:
                raise UnreadableError(
                    f"{name} is also in {self.home[name]}. Remove the shard that does not belong to the others"
                )
            self.tensors[name] = value
            self.home[name] = file
            for storage in _storages(value):
                self.shards[storage] = number
        self.containers[shard.container] = None
        self.globals |= dict.fromkeys(shard.globals)
        self.sources |= shard.sources
        self.warnings += shard.warnings
        for key, said in shard.metadata.items():
            if self.metadata.setdefault(key, said) != said:
                self.warnings.append(f"the shards differ in their metadata {key!r}; the first was kept")

    def restore_aliases(self, metadata: Mapping[str, str]) -> None:
        """Give a tied tensor the other names that metadata, of a shard or of the index, says it has."""
        kept = dict(self.tensors)
        for key, name in (*self.metadata.items(), *metadata.items()):
            if name in kept and key not in self.tensors and key not in _RESERVED:
                self.tensors[key] = kept[name]
            elif key not in self.tensors:
                self.metadata.setdefault(key, name)

    def compare(self, weight_map: Mapping[str, str]) -> None:
        """Say where the index and the shards differ. UnreadableError when a tensor of the index is in none of them."""
        tensors: dict[str, Value] = {}
        home: dict[str, str] = {}
        for whole, value in self.tensors.items():
            names = [whole]  # The index maps an encoded tensor by itself, or its parts.
            if type(value) is EncodedTensor and whole not in weight_map:
                names = [part_name(whole, role) for role in value.parts]
            tensors |= dict.fromkeys(names, value)
            if whole in self.home:
                home |= dict.fromkeys(names, self.home[whole])
        lost = [name for name in weight_map if name not in tensors]
        if lost:
            raise UnreadableError(
                f"the index has tensors that are in none of its shards: {listed(lost, _SHOWN, _LONGEST)}. "
                f"{weight_map[lost[0]]} is not the file that it was made for"
            )
        tied = {id(tensors[name]) for name in weight_map}
        extra = [name for name in home if name not in weight_map and id(tensors[name]) not in tied]
        if extra:
            self.warnings.append(
                f"the shards have tensors that are not in the index: {listed(extra, _SHOWN, _LONGEST)}"
            )
        moved = [name for name, file in weight_map.items() if home.get(name, file) != file]
        if moved:
            self.warnings.append(
                f"the index has tensors in other shards than they are in: {listed(moved, _SHOWN, _LONGEST)}"
            )


def _storages(value: Value) -> Iterator[Storage]:
    tensors: list[TensorRef] = []
    if type(value) is TensorRef:
        tensors.append(value)
    elif type(value) is EncodedTensor:
        tensors += value.parts.values()
    for tensor in tensors:
        yield from (piece.storage for piece in tensor.pieces)


def _shown(value: Any) -> str:
    text = str(value) if type(value) is str else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
