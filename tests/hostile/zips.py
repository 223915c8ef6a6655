"""A zip writer that can lie in every field, and torch archives made with it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .pickling import pickled


@dataclass(frozen=True)
class Member:
    """A record. `None` means the truth; `local` and `central` replace fields by name in one of its two headers."""

    name: str
    data: bytes
    method: int = 0
    raw: bytes | None = None
    """The payload as it lies in the file, in place of `data` packed."""
    flags: int = 0
    local: Mapping[str, object] = field(default_factory=dict)
    central: Mapping[str, object] = field(default_factory=dict)
    descriptor: bytes | None = None
    gap: bytes = b""
    """Bytes before the local header."""

    def payload(self) -> bytes:
        if self.raw is not None:
            return self.raw
        return deflated(self.data) if self.method == 8 else self.data


def deflated(data: bytes, level: int = 9) -> bytes:
    engine = zlib.compressobj(level, zlib.DEFLATED, -15)
    return engine.compress(data) + engine.flush()


@dataclass(frozen=True)
class Archive:
    """A whole archive; `end` replaces fields of the end record, `end64` those of the zip64 one."""

    members: Iterable[Member]
    prefix: bytes = b""
    before_directory: bytes = b""
    after_directory: bytes = b""
    tail: bytes = b""
    comment: bytes = b""
    end: Mapping[str, int] = field(default_factory=dict)
    end64: Mapping[str, int] | None = None
    """Given (even empty), a zip64 end record and locator are written too."""

    def build(self) -> bytes:
        out = bytearray(self.prefix)
        directory = bytearray()
        count = 0
        for member in self.members:
            out += member.gap
            at = len(out)
            payload = member.payload()
            truth: dict[str, object] = {
                "name": member.name.encode("utf-8", "surrogatepass"),
                "flags": member.flags,
                "method": member.method,
                "crc": zlib.crc32(member.data),
                "packed": len(payload),
                "nbytes": len(member.data),
                "extra": b"",
                "header": at,
                "made_by": 0,
                "version": 20,
                "time": 0,
                "date": 0,
                "attributes": 0,
                "disk": 0,
                "comment": b"",
            }
            out += _local({**truth, **member.local}) + payload + (member.descriptor or b"")
            directory += _central({**truth, **member.central})
            count += 1
        out += self.before_directory
        start = len(out)
        out += directory + self.after_directory
        return bytes(out + self._end(count, start, len(directory)) + self.tail)

    def _end(self, count: int, start: int, size: int) -> bytes:
        truth = {"disk": 0, "start_disk": 0, "here": count, "count": count, "size": size, "start": start}
        parts = b""
        if self.end64 is not None:
            record_at = start + size + len(self.after_directory)
            large = {**truth, "length": 44, "record_at": record_at, "disks": 1, **self.end64}
            parts += struct.pack(
                "<4sQ2H2I4Q",
                b"PK\6\6",
                large["length"],
                45,
                45,
                large["disk"],
                large["start_disk"],
                large["here"],
                large["count"],
                large["size"],
                large["start"],
            )
            parts += struct.pack("<4sIQI", b"PK\6\7", 0, large["record_at"], large["disks"])
        end = {**truth, "comment": len(self.comment), **self.end}
        parts += struct.pack(
            "<4s4H2IH",
            b"PK\5\6",
            end["disk"],
            end["start_disk"],
            end["here"],
            end["count"],
            end["size"],
            end["start"],
            end["comment"],
        )
        return parts + self.comment


def _local(f: Mapping[str, object]) -> bytes:
    name, extra = f["name"], f["extra"]
    assert isinstance(name, bytes)
    assert isinstance(extra, bytes)
    head = struct.pack(
        "<4s5H3I2H",
        b"PK\3\4",
        f["version"],
        f["flags"],
        f["method"],
        f["time"],
        f["date"],
        f["crc"],
        f["packed"],
        f["nbytes"],
        len(name),
        len(extra),
    )
    return head + name + extra


def _central(f: Mapping[str, object]) -> bytes:
    name, extra, comment = f["name"], f["extra"], f["comment"]
    assert isinstance(name, bytes)
    assert isinstance(extra, bytes)
    assert isinstance(comment, bytes)
    head = struct.pack(
        "<4s6H3I5H2I",
        b"PK\1\2",
        f["made_by"],
        f["version"],
        f["flags"],
        f["method"],
        f["time"],
        f["date"],
        f["crc"],
        f["packed"],
        f["nbytes"],
        len(name),
        len(extra),
        len(comment),
        f["disk"],
        0,
        f["attributes"],
        f["header"],
    )
    return head + name + extra + comment


FLOATS = struct.pack("<4f", 1.0, -2.0, 3.5, 0.25)


def members(root: bytes, storages: Mapping[str, bytes] | None = None, *, folder: str = "archive") -> list[Member]:
    """The records of a torch archive around the pickle `root`."""
    storages = {"0": FLOATS} if storages is None else storages
    data = [Member(f"{folder}/data/{key}", value) for key, value in storages.items()]
    return [
        Member(f"{folder}/data.pkl", root),
        Member(f"{folder}/byteorder", b"little"),
        *data,
        Member(f"{folder}/version", b"3\n"),
    ]


def torch_zip(*fragments: bytes, storages: Mapping[str, bytes] | None = None, proto: int = 2) -> bytes:
    """An honest torch archive around what may be a dishonest pickle."""
    return Archive(members(pickled(*fragments, proto=proto), storages)).build()


def deflated_zip(*fragments: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """The same with every record deflated."""
    packed = [Member(one.name, one.data, method=8) for one in members(pickled(*fragments), storages)]
    return Archive(packed).build()
