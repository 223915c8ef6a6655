"""torch.save of 0.1.10 to 1.5: five pickles in a row, then the storages.

The pickles are a magic number, a protocol number, facts about the machine, the object,
and the list of storage keys; then for each key an int64 count of elements and the
elements, little-endian. Sizes are only known once the object is read. Source:
``_legacy_save`` and ``_legacy_load`` in ``torch/serialization.py``.
"""

from __future__ import annotations

from functools import partial

from ..checkpoint import Checkpoint, Value
from ..errors import UnreadableError, within
from ..late import LateSource
from ..limits import Limits
from ..pickles.machine import Pickled, run
from ..pickles.nodes import Node, Pairs
from ..pickles.rebuild import resolve
from ..source import Source, is_far
from ..source import read as read_bytes
from ..tensor import Storage
from .protocol import Inner, Nested
from .storages import StorageId, parse_storage_id

NAME = "torch-legacy"
_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_LE = _MAGIC.to_bytes(10, "little")


def sniff(head: bytes, source: Source) -> bool:
    # PROTO, perhaps FRAME, LONG1, length 10, the number; or, in protocol 0, its digits.
    return _MAGIC_LE in head[:24] or head[:32].startswith((b"L%dL\n" % _MAGIC, b"I%d\n" % _MAGIC))


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    magic = run(source, limits=limits)
    if magic.root != _MAGIC or type(magic.root) is not int:
        raise UnreadableError("its magic number is computed, not written. The file is hostile")
    protocol = run(source, magic.end, limits=limits)
    if type(protocol.root) is not int or protocol.root != 1001:
        raise UnreadableError("its protocol number is not 1001. The file is damaged")
    system = run(source, protocol.end, limits=limits)
    if type(system.root) is not Pairs:
        raise UnreadableError("its system information is not a dict. The file is damaged")
    obj = run(source, system.end, limits=limits)
    keys = run(source, obj.end, limits=limits)
    if type(keys.root) is not list or not all(type(key) is str for key in keys.root):
        raise UnreadableError("its list of storages is not a list of strings. The file is damaged")
    storages, inner = _Storages(source, keys.end, obj, keys.root), Inner(nested)
    with within("the object"):
        tree, sources = resolve(obj.root, storages.load, inner)
    mentioned = inner.beside(name for part in (magic, protocol, system, obj, keys) for name in part.globals)
    return Checkpoint(NAME, tree, mentioned, "torch 0.1.10 to 1.5", sources=sources)


class _Storages:
    """Where each storage lies: a prefix sum over the list of keys, checked against the pickle."""

    def __init__(self, source: Source, at: int, obj: Pickled, keys: list[str]) -> None:
        announced: dict[str, StorageId] = {}
        for node in obj.persistent:
            pid = node.pid
            if type(pid) is tuple and pid[:1] == ("storage",):
                found = parse_storage_id(pid)
                first = announced.setdefault(str(found.key), found)
                if first.nbytes != found.nbytes or first.itemsize != found.itemsize:
                    raise UnreadableError(f"storage {found.key} is announced in two sizes. The file is damaged")
                if first.dtype is not found.dtype:  # torch.save refuses to write it, torch.load takes the first.
                    raise UnreadableError(f"storage {found.key} is announced as two dtypes. The file is damaged")
        self.known: dict[str, Storage] = {}
        for key in keys:
            if key in self.known:
                raise UnreadableError(f"storage {key} is listed twice. The file is damaged")
            if key not in announced:
                raise UnreadableError(f"storage {key} is listed but no tensor uses it. The file is damaged")
            nbytes = announced[key].nbytes
            find = partial(_checked, source, at, key, announced[key].numel)
            if is_far(source):  # The lengths are all over the file: each is looked at when its storage is read.
                late = LateSource(source, f"storage {key}", nbytes, (at, at + 8 + nbytes), find)
                self.known[key] = Storage(late, 0, nbytes, key)
            else:
                self.known[key] = Storage(source, find(), nbytes, key)
            at += 8 + nbytes
        if at != source.nbytes:
            raise UnreadableError(
                f"{source.nbytes - at} bytes follow its last storage: a second checkpoint, or damage. "
                "Cut the file after byte " + str(at)
            )

    def load(self, pid: Node) -> Value:
        found = parse_storage_id(pid)
        key = str(found.key)
        storage = self.known.get(key)
        if storage is None:
            raise UnreadableError(f"storage {key} is not in the file. It is damaged")
        return found.typed(storage)


def _checked(source: Source, at: int, key: str, count: int) -> int:
    """Where the bytes of a storage begin whose length is at `at`; UnreadableError if that is not `count` elements."""
    raw = read_bytes(source, at, 8)
    # Old big-endian writers left this one number in their own order.
    if count not in (int.from_bytes(raw, "little"), int.from_bytes(raw, "big")):
        raise UnreadableError(
            f"storage {key} has {int.from_bytes(raw, 'little')} elements, {count} were announced. The file is damaged"
        )
    return at + 8
