"""Streams as torch wrote them before 1.6, tars as it wrote them before 0.1.10, and nested ones."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from .pickling import dict_of, integer, list_of, name, persistent, pickled, tuple_of
from .zips import FLOATS

MAGIC = 0x1950A86A20F9469CFC6C
Stored = tuple[str, int, bytes]
"""(key, elements as announced in the stream, bytes)."""
ONE: tuple[Stored, ...] = (("0", 4, FLOATS),)


def stream(
    root: bytes,
    stored: Iterable[Stored] = ONE,
    *,
    magic: bytes | None = None,
    version: bytes | None = None,
    system: bytes | None = None,
    keys: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A legacy stream around the pickle fragment `root`."""
    stored = tuple(stored)
    return b"".join(
        (
            pickled(integer(MAGIC)) if magic is None else magic,
            pickled(integer(1001)) if version is None else version,
            pickled(dict_of(("little_endian", True))) if system is None else system,
            pickled(root),
            pickled(list_of(*[key for key, _, _ in stored])) if keys is None else keys,
            *(struct.pack("<q", count) + data for _, count, data in stored),
            tail,
        )
    )


def old_storage(key: object = "0", numel: object = 4, view: object = None, kind: str = "torch.FloatStorage") -> bytes:
    """The six-part persistent id of a storage."""
    return persistent("storage", name(kind), key, "cpu", numel, view)


def tar_header(
    member: bytes,
    size: int = 0,
    kind: bytes = b"0",
    *,
    field: bytes | None = None,
    link: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One 512-byte header, its checksum right unless one is given."""
    head = bytearray(512)
    head[: len(member)] = member
    head[100:124] = b"0000644\0" * 3
    head[124:136] = b"%011o\0" % size if field is None else field
    head[136:148] = b"00000000000\0"
    head[156:157] = kind
    head[157 : 157 + len(link)] = link
    head[257:265] = b"ustar\x0000"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head) if checksum is None else checksum
    return bytes(head)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def tar_member(member: str, data: bytes) -> bytes:
    return tar_header(member.encode(), len(data)) + padded(data)


def tar(members: Iterable[tuple[str, bytes]], *, before: bytes = b"", tail: bytes = bytes(1024)) -> bytes:
    """An archive of regular files; `before` is put in front of them."""
    return before + b"".join(tar_member(member, data) for member, data in members) + tail


def tar_storages(
    key: object = 1, *, count: object = 1, numel: int = 4, views: object = (), data: bytes = FLOATS
) -> bytes:
    """The ``storages`` member with one storage."""
    entry = tuple_of(key, "cpu", name("torch.FloatStorage"))
    listed = list_of(*views) if isinstance(views, tuple) else views
    assert isinstance(listed, bytes)
    number = integer(count) if isinstance(count, int) else count
    assert isinstance(number, bytes)
    return pickled(number) + pickled(entry) + struct.pack("<q", numel) + data + pickled(listed)


def tar_tensors(
    key: object = 2,
    of: object = 1,
    *,
    ndim: int = 1,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
) -> bytes:
    """The ``tensors`` member with one tensor."""
    entry = tuple_of(key, of, name("torch.FloatTensor"))
    numbers = struct.pack(f"<{len(size) + len(stride) + 1}q", *size, *stride, offset)
    return pickled(integer(1)) + pickled(entry) + struct.pack("<i4x", ndim) + numbers


def old_tar(
    storages: bytes | None = None, tensors: bytes | None = None, root: bytes | None = None, **more: bytes
) -> bytes:
    """A whole checkpoint of early 2017: {'w': tensor 2}."""
    root = pickled(dict_of(("w", integer(2) + b"Q"))) if root is None else root
    storages = tar_storages() if storages is None else storages
    tensors = tar_tensors() if tensors is None else tensors
    members = [("sys_info", pickled(dict_of())), ("storages", storages), ("tensors", tensors), ("pickle", root)]
    return tar([*members, *((key, value) for key, value in more.items())])
