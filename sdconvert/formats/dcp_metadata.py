"""The ``.metadata`` of a torch.distributed checkpoint, as plain data.

One pickle of ``torch.distributed.checkpoint.metadata.Metadata``: ``state_dict_metadata`` maps each
flat name to a ``TensorStorageMetadata`` (properties, size, chunks) or a ``BytesStorageMetadata``;
``storage_data`` maps ``MetadataIndex`` (name, offset) to ``_StorageInfo`` (relative_path, offset,
length); ``planner_data`` maps the flat name to the path that it was flattened from. Instances are
an empty construction and a BUILD with the fields. Sources: ``metadata.py``, ``filesystem.py`` and
``_nested_dict.py`` in ``torch/distributed/checkpoint``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..dtypes import DType
from ..errors import UnreadableError, UnsupportedError, within
from ..limits import Limits
from ..pickles.machine import run
from ..pickles.nodes import Call, Global, Node, Pairs
from ..pickles.resolver import dims, dtype_of
from ..source import Source
from ..tensor import Shape, check_numbers

_LONGEST = 64  # Keys on the way to one value.


class Place(NamedTuple):
    """Where something lies: `nbytes` bytes of `file` from `offset` on. All claims."""

    file: str
    offset: int
    nbytes: int


class Chunk(NamedTuple):
    """The box of a tensor that begins at `offsets` and has `sizes`, and where it is."""

    offsets: Shape
    sizes: Shape
    place: Place


class SavedTensor(NamedTuple):
    """A tensor in chunks."""

    dtype: DType
    shape: Shape
    chunks: tuple[Chunk, ...]


Path = tuple[str | int, ...]
"""The keys of dicts and the indexes of lists on the way to a value."""


@dataclass(frozen=True)
class Metadata:
    """What was saved, by flat name, in order: a tensor, or where the bytes of something else are.

    `paths` has the path of each name that was flattened, `globals` are the names that the pickle mentions
    beside those of every such file.
    """

    saved: Mapping[str, SavedTensor | Place]
    paths: Mapping[str, Path]
    globals: tuple[Global, ...]


def read_metadata(source: Source, limits: Limits) -> Metadata:
    """What the file says. UnreadableError when it is not what torch writes, or contradicts itself."""
    pickled = run(source, limits=limits)
    if pickled.end != source.nbytes:
        raise UnreadableError(f"{source.nbytes - pickled.end} bytes follow the end of its pickle. It is damaged")
    fields = _fields(pickled.root, "Metadata")
    places = _places(fields.get("storage_data"))
    if type(fields.get("storage_data")) is Pairs:
        fields["storage_data"].flat = ()  # Half of what was read: room for what is made of the rest.
    saved: dict[str, SavedTensor | Place] = {}
    for name, node in _mapping(fields.get("state_dict_metadata"), "state_dict_metadata"):
        if type(name) is not str:
            raise UnreadableError("a name in it is not a string. The file is damaged")
        with within(name):
            own = places.pop(name, {})
            saved[name] = _tensor(node, own) if _class(node) == "TensorStorageMetadata" else _bytes(node, own)
    if places:
        raise UnreadableError(f"{next(iter(places))}: it has a place, but nothing is said of it. The file is damaged")
    mentioned = tuple(name for name in pickled.globals if not _is_own(name))
    return Metadata(saved, dict(_paths(fields.get("planner_data"))), mentioned)


def _is_own(name: Global) -> bool:
    """Whether a name is one that every such file has: its classes, and the path that it was saved to."""
    own = ("torch.distributed.checkpoint.", "torch.distributed._shard.")
    return name.module.startswith(own) or name.module in ("pathlib", "pathlib._local")


def _class(node: Node) -> str:
    """The name of the class of an instance, "" for what is not an instance of one of torch's."""
    if type(node) is Call and type(node.func) is Global and node.func.module.startswith("torch.distributed."):
        return node.func.name
    return ""


def _fields(node: Node, name: str) -> dict[str, Node]:
    """The fields of an instance of the class `name`."""
    state = node.states[-1] if _class(node) == name and node.states else None
    if type(state) is not Pairs:
        raise UnreadableError(f"a {name} is expected, and something else is there. The file is damaged, or not torch's")
    return {key: value for key, value in state.pairs if type(key) is str}


def _mapping(node: Node, what: str) -> Iterable[tuple[Node, Node]]:
    if type(node) is Pairs:
        flat = iter(node.flat)
        return zip(flat, flat, strict=True)
    if type(node) is Call and type(node.func) is Global and node.func.key == "collections.OrderedDict":
        return node.pairs or []
    raise UnreadableError(f"its {what} is not a dict. The file is damaged")


def _places(node: Node) -> dict[str, dict[str, Place]]:
    """Places by name, and by the text of the offset: numbers can be chosen so that their hashes collide."""
    files: dict[str, str] = {}
    found: dict[str, dict[str, Place]] = {}
    for key, value in _mapping(node, "storage_data"):
        index, info = _fields(key, "MetadataIndex"), _fields(value, "_StorageInfo")
        name, at = index.get("fqn"), index.get("offset")
        if type(name) is not str:
            raise UnreadableError("a name in it is not a string. The file is damaged")
        path, offset, length = info.get("relative_path"), info.get("offset"), info.get("length")
        if type(path) is not str or type(offset) is not int or type(length) is not int or min(offset, length) < 0:
            raise UnreadableError(f"{name}: its place is not a file, an offset and a length. The file is damaged")
        if info.get("transform_descriptors"):
            raise UnsupportedError(
                f"{name}: it was saved through an extension, such as compression, which is not read. "
                "Load it with torch.distributed.checkpoint and save it without"
            )
        own = found.setdefault(name, {})
        where = str(_numbers(at)) if at is not None else ""
        if where in own:
            raise UnreadableError(f"{name}: it has two places for one offset. The file is damaged")
        own[where] = Place(files.setdefault(path, path), offset, length)
    return found


def _numbers(node: Node) -> Shape:
    size = dims(node)
    check_numbers(size, len(size))
    return size


def _tensor(node: Node, places: dict[str, Place]) -> SavedTensor:
    fields = _fields(node, "TensorStorageMetadata")
    shape = _numbers(fields.get("size"))
    listed = fields.get("chunks")
    if type(listed) is not list:
        raise UnreadableError("its chunks are not a list. The file is damaged")
    chunks = []
    for chunk in listed:
        about = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _numbers(about.get("offsets")), _numbers(about.get("sizes"))
        place = places.pop(str(offsets), None) or (places.pop("", None) if len(listed) == 1 else None)
        if place is None:
            raise UnreadableError(f"nothing says where its chunk at {list(offsets)} is. The file is damaged")
        chunks.append(Chunk(offsets, sizes, place))
    if places:
        raise UnreadableError(f"it has a place for offset {next(iter(places))}, but no chunk there. It is damaged")
    return SavedTensor(_dtype(fields.get("properties")), shape, tuple(chunks))


def _dtype(node: Node) -> DType:
    """TensorProperties, whose state is (dtype, layout, requires_grad, memory format, pin_memory)."""
    state = node.states[-1] if _class(node) == "TensorProperties" and node.states else None
    if type(state) is Pairs:
        state = tuple(value for key, value in state.pairs if key == "dtype")
    if type(state) is not tuple or not state:
        raise UnreadableError("its properties are not a tensor's. The file is damaged")
    return dtype_of(state[0])


def _bytes(node: Node, places: dict[str, Place]) -> Place:
    if _class(node) != "BytesStorageMetadata" or len(places) != 1:
        raise UnreadableError("it is neither a tensor nor bytes in one place. The file is damaged")
    return next(iter(places.values()))


def _paths(node: Node) -> Iterator[tuple[str, Path]]:
    """The paths that there are; other planners than torch's own leave other things there."""
    if type(node) is not Pairs:
        return
    for name, path in node.pairs:
        if type(name) is not str or type(path) is not tuple or not 0 < len(path) <= _LONGEST:
            continue
        if all(type(key) is str or (type(key) is int and 0 <= key < 1 << 31) for key in path):
            yield name, path
