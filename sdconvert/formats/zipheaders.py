"""The header before each record of a zip archive, held against what the directory at its end says."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import UnreadableError
from ..source import SliceSource, Source, read

LOCAL = struct.Struct("<4s5H3I2H")
STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1 | 0x20 | 0x40 | 0x2000  # Encryption, patch data, strong encryption, masked headers.
_DESCRIPTOR = 0x8
_SIGNED = struct.Struct("<4s3I")
_LEAST_AHEAD, _MOST_AHEAD = 512, 1 << 18  # Bytes read for local headers.


class Record(NamedTuple):
    """One member: its payload is `packed` bytes at `offset` of `source`, `nbytes` once unpacked."""

    name: str
    source: Source
    offset: int
    packed: int
    nbytes: int
    crc32: int
    deflated: bool


class Entry(NamedTuple):
    """A central directory entry, zip64 resolved."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc32: int
    packed: int
    nbytes: int
    header: int


def zip64_values(extra: bytes, values: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """`values` (size, packed size, header offset) with those that are full taken from the zip64 extra field."""
    at, fields = 0, None
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            if fields is not None:
                raise UnreadableError(f"record {name}: it has two zip64 fields. The file is damaged or forged")
            fields = extra[at + 4 : at + 4 + size]
        at += 4 + size
    wanted = sum(value == 0xFFFFFFFF for value in values)
    if fields is None or len(fields) < 8 * wanted:
        raise UnreadableError(f"record {name}: its zip64 field is missing or short. The file is damaged")
    large = iter(struct.unpack_from(f"<{wanted}Q", fields))
    size, packed, header = (next(large) if value == 0xFFFFFFFF else value for value in values)
    return size, packed, header


def misplaced(entry: Entry, overlap: int) -> UnreadableError:
    """The error for a record that reaches `overlap` bytes into its neighbour, or ends so many before it."""
    what = "overlaps its neighbour" if overlap > 0 else "leaves bytes that belong to nothing"
    return UnreadableError(f"record {entry.name}: {what}. The zip archive is damaged or forged")


class LocalHeaders:
    """Reads the header before each payload, many at a time where they lie close together."""

    def __init__(self, source: Source, end: int) -> None:
        self.source, self.end = source, end
        self.window, self.start, self.step = b"", 0, _LEAST_AHEAD

    def get(self, offset: int, count: int) -> bytes:
        if offset + count > self.end:
            raise UnreadableError("a record reaches into the zip directory. The file is damaged or forged")
        begin = offset - self.start
        if begin < 0 or begin + count > len(self.window):
            # Where headers lie close together, more of them are read at once; a large payload is skipped.
            near = 0 <= begin <= 2 * len(self.window)
            self.step = min(2 * self.step, _MOST_AHEAD) if near else _LEAST_AHEAD
            self.window = read(self.source, offset, min(max(self.step, count), self.end - offset))
            self.start, begin = offset, 0
        return self.window[begin : begin + count]

    def check(self, entry: Entry) -> tuple[Record, int]:
        """The record, and the offset just after it; UnreadableError if its own header says otherwise."""
        at = entry.header - self.start
        if at < 0 or at + LOCAL.size > len(self.window):
            self.get(entry.header, LOCAL.size)
            at = 0
        magic, _, flags, method, _, _, crc, packed, nbytes, name_size, extra_size = LOCAL.unpack_from(self.window, at)
        if magic != b"PK\x03\x04":
            raise UnreadableError(f"record {entry.name}: it does not start where the zip directory says")
        if name_size != len(entry.raw_name):
            raise self.differing(entry, "name")
        rest = self.get(entry.header + LOCAL.size, name_size + extra_size)
        if rest[:name_size] != entry.raw_name:
            raise self.differing(entry, "name")
        if method != entry.method:
            raise self.differing(entry, "compression")
        if flags & ENCRYPTED or (flags ^ entry.flags) & _DESCRIPTOR:
            raise self.differing(entry, "flags")
        at = name_size
        while at + 4 <= len(rest):  # torch pads with one such field, named FB.
            at += 4 + rest[at + 2] + 256 * rest[at + 3]
            if at > len(rest):
                raise self.differing(entry, "the length of an extra field")
        offset = entry.header + LOCAL.size + name_size + extra_size
        end = offset + entry.packed
        said: tuple[int, ...] = (nbytes, packed)
        if 0xFFFFFFFF in said:
            said = zip64_values(rest[name_size:], (nbytes, packed, 0), entry.name)[:2]
        known = (entry.nbytes, entry.packed)
        later = bool(flags & _DESCRIPTOR)
        if said != known and not (later and said == (0, 0)):
            raise self.differing(entry, "size")
        if crc != entry.crc32 and not (later and crc == 0):
            raise self.differing(entry, "checksum")
        if later:
            end += self.descriptor(entry, end)
        return Record(entry.name, self.source, offset, entry.packed, entry.nbytes, entry.crc32, method == DEFLATED), end

    def descriptor(self, entry: Entry, at: int) -> int:
        """The length of the data descriptor at `at`: with or without its signature, 4 or 8 bytes a size."""
        room = self.get(at, min(24, self.end - at))
        if max(entry.packed, entry.nbytes) < 0xFFFFFFFF and room.startswith(
            _SIGNED.pack(b"PK\x07\x08", entry.crc32, entry.packed, entry.nbytes)
        ):
            return _SIGNED.size  # As torch writes nearly all of them.
        for form in ("<4s3I", "<4sI2Q", "<3I", "<I2Q"):
            size = struct.calcsize(form)
            if size > len(room):
                continue
            fields = struct.unpack_from(form, room)
            signed = fields[0] == b"PK\x07\x08"
            if signed == ("4s" in form) and fields[signed:] == (entry.crc32, entry.packed, entry.nbytes):
                return size
        raise self.differing(entry, "data descriptor")

    def differing(self, entry: Entry, what: str) -> UnreadableError:
        return UnreadableError(
            f"record {entry.name}: its own header and the zip directory differ in {what}. It is damaged or forged"
        )


class FarPayload:
    """The payload of a record whose own header is read, and held against the directory, when this is first read."""

    far = True

    def __init__(self, source: Source, entry: Entry, following: int) -> None:
        self.name, self.nbytes = entry.name, entry.packed
        self._source, self._entry, self._following = source, entry, following
        self._offset: int | None = None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if offset < 0 or end > self.nbytes:
            raise UnreadableError(f"record {self.name}: byte {end} is beyond its {self.nbytes} bytes")
        if self._offset is None:  # Threads may do it twice, with the same result.
            record, end = LocalHeaders(self._source, self._following).check(self._entry)
            if end != self._following:
                raise misplaced(self._entry, end - self._following)
            self._offset = record.offset
        self._source.readinto(self._offset + offset, buffer)

    def expect(self, begin: int, end: int) -> None:
        """Some of it will be read: for that, its header too."""
        if isinstance(self._source, SliceSource):
            base, start = self._source.base, self._source.offset
        else:
            base, start = self._source, 0
        base.expect(start + self._entry.header, start + self._following)  # type: ignore[attr-defined]
