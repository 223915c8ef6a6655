"""What a file holds (`Checkpoint`) and what we want of it (`StateDict`), as plain data.

The tree below `Checkpoint.root` is made of None, bool, int, float, complex, str, bytes,
list (tuples and sets too), `Dict`, `Object`, `TensorRef`, `EncodedTensor`, `TypedStorage`,
`LostTensor` and `Global`, the last being a mere name. It may share nodes and be cyclic, as pickles may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .dtypes import DType
from .pickles.nodes import Global
from .tensor import Storage, TensorRef

__all__ = [
    "TENSORS",
    "Aside",
    "Candidate",
    "Checkpoint",
    "Dict",
    "EncodedTensor",
    "Encoding",
    "Global",
    "LostTensor",
    "Object",
    "Skipped",
    "StateDict",
    "TensorRef",
    "TypedStorage",
    "Value",
]

Value = Any


@dataclass(eq=False, slots=True)
class Dict:
    """A mapping in the order it was filled. Keys are as the pickle has them; of equal ones the last counts.

    `attributes` is what was set on the mapping itself, such as ``_metadata`` of a state dict.
    """

    pairs: list[tuple[Value, Value]] = field(default_factory=list)
    attributes: Dict | None = None
    _index: dict[str, Value] | None = field(default=None, init=False, repr=False)

    def by_name(self) -> Mapping[str, Value]:
        """The values under keys that are strings. Made once; the pairs must not change any more."""
        if self._index is None:
            self._index = {key: value for key, value in self.pairs if type(key) is str}
        return self._index

    def get(self, key: str) -> Value:
        """The value under `key`, None when there is none."""
        return self.by_name().get(key)

    def __contains__(self, key: str) -> bool:
        return key in self.by_name()


@dataclass(eq=False, slots=True)
class Object:
    """An instance of a class that is not here: its type's name and all that was to be given to it."""

    type_name: str
    args: list[Value] = field(default_factory=list)
    state: Value = None
    pairs: list[tuple[Value, Value]] = field(default_factory=list)
    items: list[Value] = field(default_factory=list)


class TypedStorage(NamedTuple):
    """A view of `numel` elements, `offset` bytes into `storage`; `dtype` None counts bytes."""

    storage: Storage
    dtype: DType | None
    offset: int
    numel: int


@dataclass(frozen=True)
class LostTensor:
    """A tensor that is there but cannot be written, and `why` in words. `empty` when it has no values at all."""

    why: str
    empty: bool = False


@dataclass(frozen=True, eq=False)
class EncodedTensor:
    """A tensor that no plain tensor can be: quantized, sparse, complex128, a subclass. Plain ones and a recipe stand
    for it.

    `parts` are the plain tensors, by their role in the recipe; `recipe` is JSON-ready data, with
    the key ``encoding`` for what kind it is. `dtype` and `shape` are those that torch gives the whole.
    """

    recipe: Mapping[str, Any]
    parts: Mapping[str, TensorRef]
    dtype: DType
    shape: tuple[int, ...]


TENSORS = frozenset({TensorRef, EncodedTensor, LostTensor})
"""The leaves that belong in a state dict."""


@dataclass(frozen=True)
class Encoding:
    """Where the parts of an encoded tensor are in a state dict: `parts` gives the name of each by its role."""

    recipe: Mapping[str, Any]
    parts: Mapping[str, str]


class Aside(NamedTuple):
    """A tree beside the state dict, and what it is, in words."""

    root: Value
    what: str


@dataclass(frozen=True)
class Checkpoint:
    """A file, understood: a tree with `TensorRef` leaves.

    `container` is the name of its format, `version` what the file says made it (or "").
    `kind` names what the whole is, where the container decides that (``torchscript``).
    `globals` are the names that its pickles mention, `sources` the author's source code of
    classes where the file carries it, `warnings` what the reader noticed. With `members`, `root` maps the
    names of files in an archive to what each of them holds. `aside` is what is not in the state dict by the
    container's own rules, such as constants, and is taken when a key names it. `copies` are other
    roots, by the name of a dtype: the same weights, as they were stored in it already.

    Of a directory, `files` are those that were read, `skipped` what else is there that could have been
    meant. `shards` numbers the files that its storages are in, where that is a layout to be kept.
    """

    container: str
    root: Value
    globals: tuple[Global, ...] = ()
    version: str = ""
    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    members: bool = False
    aside: Mapping[str, Aside] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    shards: Mapping[Storage, int] = field(default_factory=dict)
    copies: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A state dict that could be meant: where it is, how many tensors and bytes. Of files that were not looked
    into (`kind` is ``file`` or ``directory``), `key` is the path, and `tensors` 0."""

    key: str
    tensors: int
    nbytes: int
    kind: str


@dataclass(frozen=True)
class Skipped:
    """Something that was left out of the state dict, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class StateDict(Mapping[str, TensorRef]):
    """A mapping of names to tensors, in order, and what was decided on the way to them.

    `key` is the dotted path at which they were found ("" for the root), `kind` one of
    ``module``, ``wrapped``, ``state_dict``, ``tensor``, ``torchscript``, ``exported``. `encoded` says which of the
    tensors are parts of one that is not plain, by that one's name. `others` could have been meant too. `shards`
    numbers the files that the storages are in, where that is a layout to be kept.
    """

    tensors: Mapping[str, TensorRef]
    key: str
    kind: str
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    others: tuple[Candidate, ...] = ()
    leftovers: Value = None
    encoded: Mapping[str, Encoding] = field(default_factory=dict)
    shards: Mapping[Storage, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each counted by itself."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __getitem__(self, name: str) -> TensorRef:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
