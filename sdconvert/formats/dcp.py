"""torch.distributed.checkpoint (DCP): ``.metadata`` and files such as ``__0_0.distcp``, one or more of each rank.

A ``.distcp`` file is a row of items, each a whole file of ``torch.save``: one chunk of a tensor, or
something that is not a tensor. With ``SerializationFormat.SAFETENSORS`` it is a safetensors file
whose tensors are the chunks, by name. FSDP, torchtitan, Accelerate and Lightning write these;
Lightning puts the rest of its checkpoint beside them, in ``meta.pt``. Source:
``torch/distributed/checkpoint/filesystem.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..checkpoint import Checkpoint, Dict, EncodedTensor, Global, LostTensor, TensorRef, Value
from ..errors import UnreadableError, UnsupportedError, listed, within
from ..limits import Limits
from ..source import Folder, SliceSource
from ..source import read as read_bytes
from .boxes import Box, assemble
from .dcp_metadata import Chunk, Metadata, Path, Place, SavedTensor, read_metadata
from .protocol import Nested

NAME = "dcp"
_METADATA, _META = ".metadata", "meta.pt"
_OF_A_RANK = re.compile(r"__\d+\.metadata")
_SHOWN = 3


def sniff(folder: Folder) -> bool:
    if folder.entry:
        return False
    return _METADATA in folder.files or any(
        (name.endswith(".distcp") and "/" not in name) or _OF_A_RANK.fullmatch(name) for name in folder.files
    )


def read(folder: Folder, nested: Nested, limits: Limits) -> Checkpoint:
    if _METADATA not in folder.files:
        if any(_OF_A_RANK.fullmatch(name) for name in folder.files):
            raise UnsupportedError(
                "each rank saved by itself, without a common .metadata (use_collectives=False), which is not read"
            )
        raise UnreadableError(
            "its .metadata is missing: the save did not finish, or a copy left out names that begin with a dot"
        )
    with within(_METADATA):
        metadata = read_metadata(folder.open(_METADATA), limits)
        _check_places(folder, metadata)
    items = _Items(folder, nested, {name.full: name for name in metadata.globals})
    root = unflattened(
        (metadata.paths.get(name, (name,)), items.value(name, saved)) for name, saved in metadata.saved.items()
    )
    warnings = []
    used = {place.file for saved in metadata.saved.values() for place in _places(saved)}
    # With several threads a writer makes as many files, and leaves those empty that it does not need.
    unused = [name for name, size in folder.files.items() if name.endswith(".distcp") and size and name not in used]
    if unused:
        warnings.append(
            f"{listed(unused, _SHOWN)}: not a part of this checkpoint, by its .metadata; left over from another?"
        )
    if _META in folder.files:
        with within(_META):
            rest = nested(folder.open(_META))
        if _META not in root and any(len(path) > 1 for path in metadata.paths.values()):
            root.pairs.append((_META, rest.root))
            items.globals.update((name.full, name) for name in rest.globals)
        else:
            warnings.append(f"{_META} was left out: the weights have no key of their own")
    return Checkpoint(NAME, root, tuple(items.globals.values()), warnings=tuple(warnings))


def _places(saved: SavedTensor | Place) -> Iterable[Place]:
    return [chunk.place for chunk in saved.chunks] if isinstance(saved, SavedTensor) else [saved]


def _check_places(folder: Folder, metadata: Metadata) -> None:
    """UnreadableError unless every file is there, every range inside of it, and no two ranges meet."""
    by_file: dict[str, list[tuple[int, int, str]]] = {}
    for name, saved in metadata.saved.items():
        for place in _places(saved):
            by_file.setdefault(place.file, []).append((place.offset, place.nbytes, name))
    missing = sorted(file for file in by_file if file not in folder.files)
    if missing:
        raise UnreadableError(
            f"{len(missing)} of {len(by_file)} files are not there: {listed(missing, _SHOWN)}. "
            "Copy or download the whole directory again"
        )
    for file, ranges in by_file.items():
        ranges.sort()
        reach, owner = 0, ""
        for offset, nbytes, name in ranges:
            if offset + nbytes > folder.files[file]:
                raise UnreadableError(
                    f"{name}: is said to be bytes {offset} to {offset + nbytes} of {file}, which has only "
                    f"{folder.files[file]}. The file was cut short; copy or download it again"
                )
            # In a safetensors file all have offset 0: there, the file's own header tells them apart.
            if offset < reach and offset:
                raise UnreadableError(f"{owner} and {name} overlap in {file}. The checkpoint is damaged or hostile")
            if offset + nbytes > reach:
                reach, owner = offset + nbytes, name


class _Items:
    """Reads what the metadata names. `globals` collects the names that the items' pickles mention."""

    def __init__(self, folder: Folder, nested: Nested, names: dict[str, Global]) -> None:
        self.folder, self.nested, self.globals = folder, nested, names
        self.safetensors: dict[str, dict[str, TensorRef]] = {}
        self.zips: set[str] = set()
        self.begun: set[str] = set()

    def value(self, name: str, saved: SavedTensor | Place) -> Value:
        with within(name):
            if isinstance(saved, SavedTensor):
                return self.tensor(name, saved)
            with within(saved.file):
                return self.item(saved, name).root

    def tensor(self, name: str, saved: SavedTensor) -> Value:
        boxes: list[Box] = []
        if not saved.chunks:
            raise UnreadableError("it has no chunks. The checkpoint is damaged")
        for chunk in saved.chunks:
            with within(chunk.place.file):
                part = self.part(name, chunk)
                if type(part) is EncodedTensor or type(part) is LostTensor:
                    if len(saved.chunks) == 1:
                        return part
                    raise UnsupportedError("it is in several parts that are not plain tensors")
                if type(part) is not TensorRef:
                    raise UnreadableError("a tensor is expected, and something else is there. The file is damaged")
                if part.dtype != saved.dtype or part.shape != chunk.sizes:
                    raise UnreadableError(
                        f"its chunk is {part.dtype.name} {list(part.shape)}, and .metadata says "
                        f"{saved.dtype.name} {list(chunk.sizes)}. They do not belong together"
                    )
                boxes.append(Box(chunk.offsets, part))
        return assemble(saved.shape, boxes)

    def part(self, name: str, chunk: Chunk) -> Value:
        place = chunk.place
        if self.is_safetensors(place.file):
            parts = self.safetensors[place.file]
            if name not in parts:
                raise UnreadableError("it is not in that file, or twice. The checkpoint is damaged")
            return parts.pop(name)
        return self.item(place, name).root

    def is_safetensors(self, file: str) -> bool:
        """Whether a file is one of safetensors, whose header is then read; by its content, the first time."""
        if file in self.zips:
            return False
        if file not in self.safetensors:
            source = self.folder.open(file)
            head = read_bytes(source, 0, min(9, source.nbytes))
            if head[8:9] != b"{":
                self.zips.add(file)
                return False
            root = self.nested(source).root
            self.safetensors[file] = dict(root.by_name()) if type(root) is Dict else {}
        return True

    def item(self, place: Place, name: str) -> Checkpoint:
        if place.offset == 0:
            if place.file in self.begun:
                raise UnreadableError("something else lies where it does. The checkpoint is damaged or hostile")
            self.begun.add(place.file)
        inside = self.nested(SliceSource(self.folder.open(place.file), place.offset, place.nbytes, name))
        for mentioned in inside.globals:
            self.globals.setdefault(mentioned.full, mentioned)
        return inside


def unflattened(values: Iterable[tuple[Path, Value]]) -> Dict:
    """The tree in which each value lies at its path: dicts for names, lists for indexes.

    UnreadableError when a path goes through a value, or two are the same.
    """
    root: dict[str | int, Any] = {}
    for path, value in values:
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if type(node) is not dict:
                raise UnreadableError(f"{_dotted(path)}: another value lies on its path. The file is damaged")
        if path[-1] in node:
            raise UnreadableError(f"{_dotted(path)}: there are two of this name. The file is damaged")
        node[path[-1]] = value
    return Dict([(str(key), _tree(value)) for key, value in root.items()])


def _tree(node: Any) -> Value:
    if type(node) is not dict:  # Values are never Python's own dicts.
        return node
    below = [(key, _tree(value)) for key, value in node.items()]
    if all(type(key) is int for key, _ in below) and sorted(node) == list(range(len(below))):
        return [value for _, value in sorted(below, key=lambda pair: pair[0])]
    return Dict(below)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
