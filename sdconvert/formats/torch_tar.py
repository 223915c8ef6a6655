"""torch.save before 0.1.10 (early 2017): a tar archive of four files.

``storages`` is a pickled count, then for each a pickle (key, location, class), an int64
count of elements and the elements, then a pickled list of views (key, root key, offset,
elements). ``tensors`` is a pickled count, then for each a pickle (key, storage key, class),
an int32 of dimensions, four unused bytes, int64 sizes, int64 strides, an int64 offset.
``pickle`` is the object, whose persistent ids are those keys. Source: ``legacy_load`` in
``torch/serialization.py``. Writers that imitate the format leave ``tensors`` and the views
out and name storages in ``pickle`` as later torch does; both are read.
"""

from __future__ import annotations

import struct

from ..checkpoint import Checkpoint, TensorRef, TypedStorage, Value
from ..errors import UnreadableError, within
from ..limits import Limits
from ..pickles.machine import run
from ..pickles.nodes import Global, Node
from ..pickles.rebuild import resolve
from ..pickles.resolver import view
from ..source import Source
from ..source import read as read_bytes
from ..tensor import MAX_DIMENSIONS, Storage
from .archive import read_files
from .protocol import Inner, Nested
from .storages import parse_storage_id, storage_class
from .tardir import is_header, read_members

NAME = "torch-tar"


def sniff(head: bytes, source: Source) -> bool:
    return is_header(head)


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    files = read_members(source)
    if "storages" not in files or "pickle" not in files:
        return read_files("tar", files, nested)
    objects, inner = _Objects(limits), Inner(nested)
    with within("storages"):
        objects.read_storages(files["storages"])
    if "tensors" in files:
        with within("tensors"):
            objects.read_tensors(files["tensors"])
    with within("pickle"):
        pickled = run(files["pickle"], limits=limits)
        if pickled.end != files["pickle"].nbytes:
            raise UnreadableError("bytes follow its end. The file is damaged or forged")
        tree, sources = resolve(pickled.root, objects.load, inner)
    mentioned = inner.beside([*objects.globals, *pickled.globals])
    return Checkpoint(NAME, tree, mentioned, "torch before 0.1.10", sources=sources)


class _Objects:
    """Storages and tensors by key, as text: C pointers that old torch used as names."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.known: dict[str, Value] = {}
        self.globals: list[Global] = []

    def unpickle(self, source: Source, at: int) -> tuple[Node, int]:
        pickled = run(source, at, limits=self.limits)
        self.globals += pickled.globals
        return pickled.root, pickled.end

    def count(self, source: Source) -> tuple[int, int]:
        count, at = self.unpickle(source, 0)
        if type(count) is not int or not 0 <= count <= source.nbytes:
            raise UnreadableError("its count is not one. The file is damaged")
        return count, at

    def add(self, key: Node, value: Value) -> None:
        if type(key) not in (int, str) or str(key) in self.known:
            raise UnreadableError("a key is there twice, or is not a number. The file is damaged")
        self.known[str(key)] = value

    def read_storages(self, source: Source) -> None:
        count, at = self.count(source)
        for _ in range(count):
            entry, at = self.unpickle(source, at)
            if type(entry) is not tuple or len(entry) != 3 or type(entry[0]) not in (int, str):
                raise UnreadableError("a storage is not described by a key and two values. The file is damaged")
            dtype = storage_class(entry[2])
            itemsize = 1 if dtype is None else dtype.itemsize
            (numel,) = struct.unpack("<q", read_bytes(source, at, 8))
            if not 0 <= numel < 1 << 60:
                raise UnreadableError(f"storage {entry[0]} has {numel} elements. The file is damaged")
            storage = Storage(source, at + 8, numel * itemsize, str(entry[0]))
            at += 8 + storage.nbytes
            self.add(entry[0], TypedStorage(storage, dtype, 0, numel))
        if at == source.nbytes:
            return
        views, at = self.unpickle(source, at)
        for part in views if type(views) is list else ():
            if type(part) is not tuple or len(part) != 4 or type(part[1]) not in (int, str):
                raise UnreadableError("a view of a storage is not described by two keys and two numbers. It is damaged")
            key, root_key, offset, numel = part
            root = self.known.get(str(root_key))
            if type(root) is not TypedStorage or type(offset) is not int or type(numel) is not int:
                raise UnreadableError("a view belongs to no storage. The file is damaged")
            if offset < 0 or numel < 0 or offset + numel > root.numel:
                raise UnreadableError("a view reaches outside of its storage. The file is damaged")
            itemsize = 1 if root.dtype is None else root.dtype.itemsize
            self.add(key, TypedStorage(root.storage, root.dtype, root.offset + offset * itemsize, numel))
        if at != source.nbytes:
            raise UnreadableError("bytes follow its last storage. The file is damaged or forged")

    def read_tensors(self, source: Source) -> None:
        count, at = self.count(source)
        for _ in range(count):
            entry, at = self.unpickle(source, at)
            if type(entry) is not tuple or len(entry) != 3 or not {type(entry[0]), type(entry[1])} <= {int, str}:
                raise UnreadableError("a tensor is not described by two keys and a class. The file is damaged")
            typed = self.known.get(str(entry[1]))
            if type(typed) is not TypedStorage or typed.dtype is None:
                raise UnreadableError(f"tensor {entry[0]} has no storage. The file is damaged")
            (ndim,) = struct.unpack("<i", read_bytes(source, at, 4))
            if not 0 <= ndim <= MAX_DIMENSIONS:
                raise UnreadableError(f"tensor {entry[0]} has {ndim} dimensions. The file is damaged")
            numbers = struct.unpack(f"<{2 * ndim + 1}q", read_bytes(source, at + 8, 16 * ndim + 8))
            at += 16 + 16 * ndim
            self.add(entry[0], view(typed, typed.dtype, numbers[-1], numbers[:ndim], numbers[ndim : 2 * ndim]))
        if at != source.nbytes:
            raise UnreadableError("bytes follow its last tensor. The file is damaged or forged")

    def load(self, pid: Node) -> Value:
        if type(pid) is tuple and pid[:1] == ("storage",):
            found = parse_storage_id(pid)
            typed = self.known.get(str(found.key))
            if type(typed) is not TypedStorage or typed.storage.nbytes != found.nbytes:
                raise UnreadableError(f"storage {found.key} is missing or of another size. The file is damaged")
            return TypedStorage(typed.storage, found.dtype, 0, found.numel)
        if type(pid) is tuple and pid and type(pid[0]) is Global:  # (class, file, source)
            return pid[0]
        value = self.known.get(str(pid)) if type(pid) in (int, str) else None
        if type(value) not in (TensorRef, TypedStorage):
            raise UnreadableError("a persistent id names nothing that is in the file. It is damaged")
        return value
