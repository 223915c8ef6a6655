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

import io
import struct
import tarfile
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint, TensorRef, TypedStorage, Value
from ..errors import UnreadableError, UnsupportedError, within
from ..limits import Limits
from ..pickles.machine import run
from ..pickles.nodes import Global, Node
from ..pickles.rebuild import resolve
from ..source import SliceSource, Source
from ..source import read as read_bytes
from ..tensor import MAX_DIMENSIONS, Storage, strided
from .protocol import Nested
from .storages import parse_storage_id, storage_class

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

NAME = "torch-tar"


def sniff(head: bytes, source: Source) -> bool:
    if head[257:262] == b"ustar":
        return True
    # A tar from before POSIX has no magic: its header's checksum is an octal number that must fit.
    if len(head) < 512 or not head[:1].strip(b"\0"):
        return False
    field = head[148:156].strip(b" \0")
    return (
        field.isdigit()
        and all(c < 0x38 for c in field)
        and int(field, 8) == sum(head[:512]) - sum(head[148:156]) + 8 * 0x20
    )


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    files = _members(source)
    missing = [name for name in ("storages", "pickle") if name not in files]
    if missing:
        inside = sorted(name for name in files if not name.endswith("/"))
        shown = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        raise UnsupportedError(f"it is a tar archive around other files ({shown}). Unpack it and convert one of them")
    objects = _Objects(limits)
    with within("storages"):
        objects.read_storages(files["storages"])
    if "tensors" in files:
        with within("tensors"):
            objects.read_tensors(files["tensors"])
    with within("pickle"):
        pickled = run(files["pickle"], limits=limits)
        if pickled.end != files["pickle"].nbytes:
            raise UnreadableError("bytes follow its end. The file is damaged or forged")
        tree, sources = resolve(pickled.root, objects.load, lambda inner: nested(inner).root)
    seen = {name.full: name for name in [*objects.globals, *pickled.globals]}
    return Checkpoint(NAME, tree, tuple(seen.values()), "torch before 0.1.10", sources=sources)


class _File(io.RawIOBase):
    """A source as the seekable file that ``tarfile`` wants."""

    def __init__(self, source: Source) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._source.nbytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        # RawIOBase.read would allocate `size` bytes first, and a tar header can claim any number.
        left = max(0, self._source.nbytes - self._at)
        return super().read(left if size < 0 else min(size, left))

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._source.nbytes - self._at))
        self._source.readinto(self._at, view[:count])
        self._at += count
        return count


def _members(source: Source) -> dict[str, Source]:
    """The regular files of the archive by name, each as a range of `source`."""
    files: dict[str, Source] = {}
    try:
        with tarfile.open(fileobj=_File(source), mode="r:") as tar:
            for number, member in enumerate(tar):
                name = member.name.removeprefix("./")
                if number > 10_000 or name in files:
                    raise UnreadableError(f"tar member {name} is there twice, or there are too many. It is forged")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise UnreadableError(f"tar member {name} is not a regular file. No checkpoint has one")
                files[name] = SliceSource(source, member.offset_data, member.size, name)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"its tar archive is damaged: {error}") from error
    return files


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
            if type(entry) is not tuple or len(entry) != 3:
                raise UnreadableError("a storage is not described by three values. The file is damaged")
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
        for view in views if type(views) is list else ():
            if type(view) is not tuple or len(view) != 4:
                raise UnreadableError("a view of a storage is not described by four values. The file is damaged")
            key, root_key, offset, numel = view
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
            if type(entry) is not tuple or len(entry) != 3:
                raise UnreadableError("a tensor is not described by three values. The file is damaged")
            typed = self.known.get(str(entry[1]))
            if type(typed) is not TypedStorage or typed.dtype is None:
                raise UnreadableError(f"tensor {entry[0]} has no storage. The file is damaged")
            (ndim,) = struct.unpack("<i", read_bytes(source, at, 4))
            if not 0 <= ndim <= MAX_DIMENSIONS:
                raise UnreadableError(f"tensor {entry[0]} has {ndim} dimensions. The file is damaged")
            numbers = struct.unpack(f"<{2 * ndim + 1}q", read_bytes(source, at + 8, 16 * ndim + 8))
            at += 16 + 16 * ndim
            offset = numbers[-1] + typed.offset // typed.dtype.itemsize
            self.add(entry[0], strided(typed.dtype, numbers[:ndim], typed.storage, offset, numbers[ndim : 2 * ndim]))
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
