"""What torch's persistent ids say about storages, the same in every container."""

from __future__ import annotations

from typing import NamedTuple

from ..checkpoint import TypedStorage
from ..dtypes import BY_STORAGE, DType
from ..errors import UnreadableError
from ..pickles.nodes import Global, Node, kind_of
from ..tensor import Storage

_UNTYPED = frozenset({"UntypedStorage", "_UntypedStorage", "TypedStorage"})


class StorageId(NamedTuple):
    """("storage", class, key, location, elements[, view]), checked. `dtype` None counts bytes.

    `itemsize` is the bytes of an element, `nbytes` those of the whole storage; `view` is
    None or (key, offset, elements) of the part that is meant, in elements.
    """

    dtype: DType | None
    itemsize: int
    key: str | int
    numel: int
    nbytes: int
    view: tuple[str, int, int] | None

    def typed(self, storage: Storage) -> TypedStorage:
        """The part of `storage` that is meant, `storage` being the one with this key."""
        if self.view is None:
            return TypedStorage(storage, self.dtype, 0, self.numel)
        return TypedStorage(storage, self.dtype, self.view[1] * self.itemsize, self.view[2])


def storage_class(node: Node) -> DType | None:
    """The dtype of ``torch.FloatStorage`` and its kin, None for an untyped one; UnreadableError for others."""
    if type(node) is Global and node.module.partition(".")[0] == "torch":
        if node.name in _UNTYPED:
            return None
        if node.name in BY_STORAGE:
            return BY_STORAGE[node.name]
    name = node.full if type(node) is Global else kind_of(node)
    raise UnreadableError(f"{name} is not a storage class of torch that this reader knows")


def parse_storage_id(pid: Node) -> StorageId:
    """The storage that a persistent id names; UnreadableError when it names none."""
    if type(pid) is not tuple or not 5 <= len(pid) <= 6 or pid[0] != "storage":
        raise UnreadableError("a persistent id does not name a storage. The file is damaged, or not torch's")
    key, numel = pid[2], pid[4]
    if type(key) is not str and type(key) is not int:
        raise UnreadableError("a storage's key is not a string. The file is damaged")
    if type(numel) is not int or not 0 <= numel < 1 << 60:
        raise UnreadableError(f"storage {key} has a length that cannot be. The file is damaged")
    view = None
    if len(pid) == 6 and pid[5] is not None:
        view = pid[5]
        if type(view) is not tuple or [type(part) for part in view] != [str, int, int]:
            raise UnreadableError(f"the view of storage {key} is not one. The file is damaged")
        if view[1] < 0 or view[2] < 0 or view[1] + view[2] > numel:
            raise UnreadableError(f"the view of storage {key} reaches outside of it. The file is damaged")
    dtype = storage_class(pid[1])
    itemsize = 1 if dtype is None else dtype.itemsize
    return StorageId(dtype, itemsize, key, numel, numel * itemsize, view)
