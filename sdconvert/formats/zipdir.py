"""The records of a zip archive, and proof that no other reader would see different ones.

Strategy: the central directory says what there is; every local header must repeat it,
and the records must tile the file from its first byte to the directory, so there is no
room for a second archive, a hidden record, or a prefix. ``zipfile`` and torch's own reader
each accept archives that the other reads differently; what two could read differently
is refused here. Layout: PKWARE's APPNOTE.TXT, section 4.

At a server each header is a request: there the room between records must fit, and the header of
each is compared when its payload is first read.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UnreadableError, UnsupportedError
from ..inflated import InflatedSource, Scratch, credit
from ..limits import Limits
from ..source import SliceSource, Source, is_far, read
from ..tensor import Storage
from .zipheaders import (
    DEFLATED,
    ENCRYPTED,
    LOCAL,
    STORED,
    Entry,
    FarPayload,
    LocalHeaders,
    Record,
    misplaced,
    zip64_values,
)

_EOCD = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_EOCD64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_METHODS = {12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 9: "deflate64", 1: "shrink", 6: "implode"}


@dataclass(frozen=True)
class ZipDirectory:
    """The records of an archive by name, in the order of its central directory.

    `checksums` is False when every record claims CRC 0, which is how torch says that it
    computed none (``torch.serialization.set_crc32_options(False)``).
    """

    source: Source
    records: Mapping[str, Record]
    checksums: bool
    limits: Limits
    scratch: Scratch

    def storage(self, name: str, *, big_endian: bool = False) -> Storage:
        """The payload of a record, unpacked on first use if it is deflated."""
        record = self.records[name]
        if not record.deflated:
            crc = record.crc32 if self.checksums else None
            return Storage(record.source, record.offset, record.nbytes, name, crc, big_endian)
        packed = SliceSource(record.source, record.offset, record.packed, name)
        inflated = InflatedSource(
            packed,
            self.scratch,
            wbits=-15,
            nbytes=record.nbytes,
            most=self.limits.inflate_bytes,
            name=name,
            crc32=record.crc32 if self.checksums else None,
        )
        return Storage(inflated, 0, record.nbytes, name, None, big_endian)

    def text(self, name: str) -> str:
        """A short record, such as ``version``, as text without white space around it."""
        storage = self.storage(name)
        if storage.nbytes > 256:
            raise UnreadableError(f"{name}: {storage.nbytes} bytes are too many for it")
        data = read(storage.source, storage.offset, storage.nbytes)
        if storage.crc32 is not None and zlib.crc32(data) != storage.crc32:
            raise UnreadableError(f"record {name}: its checksum is wrong. The file is damaged")
        return data.decode("utf-8", "replace").strip()


def read_directory(source: Source, limits: Limits) -> ZipDirectory:
    """The archive's records. UnreadableError when it is damaged or could be read in two ways."""
    count, start, end = _find_directory(source)
    if count > limits.zip_members:
        raise UnreadableError(f"it has {count} records, more than Limits.zip_members")
    if end - start > credit(source):
        raise UnreadableError(f"its zip directory of {end - start} bytes is far larger than the file")
    if count * _CENTRAL.size > end - start:
        raise UnreadableError("its zip directory is too short for the records it counts. The file is damaged")
    records: dict[str, Record] = {}
    folded: set[str] = set()
    entries = sorted(_entries(read(source, start, end - start), count), key=lambda e: e.header)
    for record in (_far_records if is_far(source) else _near_records)(source, entries, start):
        if record.deflated and record.nbytes > limits.inflate_ratio * max(record.packed, 1):
            raise UnreadableError(f"record {record.name}: {record.packed} bytes cannot unpack to {record.nbytes}")
        if record.name.casefold() in folded:
            raise UnreadableError(f"record {record.name} is there twice. Readers differ in which one they take")
        folded.add(record.name.casefold())
        records[record.name] = record
    checksums = any(record.crc32 for record in records.values())
    return ZipDirectory(source, records, checksums, limits, Scratch())


def _near_records(source: Source, entries: Sequence[Entry], start: int) -> Iterator[Record]:
    """The records, each held against its own header and against the one before it."""
    expected = 0
    headers = LocalHeaders(source, start)
    for entry in entries:
        if entry.header != expected:
            raise misplaced(entry, expected - entry.header)
        record, expected = headers.check(entry)
        yield record
    if expected != start:
        raise UnreadableError("there are bytes between its records and its zip directory. It is damaged or forged")


def _far_records(source: Source, entries: Sequence[Entry], start: int) -> Iterator[Record]:
    """The records as the directory has them, if the room between them is what their headers need."""
    ends = [*(entry.header for entry in entries), start]
    if ends.pop(0) != 0:
        raise UnreadableError("bytes that belong to nothing come before its records. It is damaged or forged")
    for entry, following in zip(entries, ends, strict=True):
        room = following - entry.header - LOCAL.size - len(entry.raw_name) - entry.packed
        if not 0 <= room <= 0xFFFF + 24:  # An extra field and a data descriptor.
            raise misplaced(entry, -room)
        payload = FarPayload(source, entry, following)
        yield Record(entry.name, payload, 0, entry.packed, entry.nbytes, entry.crc32, entry.method == DEFLATED)


def _find_directory(source: Source) -> tuple[int, int, int]:
    """(records, start, end) of the central directory, agreed on by every place that says so."""
    tail_size = min(source.nbytes, _EOCD.size + 0xFFFF)
    tail = read(source, source.nbytes - tail_size, tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _EOCD.size:
        raise UnreadableError("its zip directory is missing. The file was cut short; download or copy it again")
    _, disk, start_disk, count_here, count, size, start, comment = _EOCD.unpack_from(tail, at)
    if at + _EOCD.size + comment != len(tail):
        raise UnreadableError("bytes follow its zip directory. The file is damaged, or two were joined")
    if tail.find(b"PK\x05\x06") != at:
        raise UnreadableError("it has more than one end of a zip directory. It is damaged or forged")
    end = source.nbytes - tail_size + at
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size :][:4] == b"PK\x06\x07":
        _, record_disk, record_at, disks = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        end -= _LOCATOR.size
        if record_at + _EOCD64.size != end or record_disk or disks > 1:
            raise UnreadableError("its zip64 locator points elsewhere. The file is damaged or forged")
        record = _EOCD64.unpack(read(source, record_at, _EOCD64.size))
        magic, length, _, _, disk64, start_disk64, count_here64, count64, size64, start64 = record
        if magic != b"PK\x06\x06" or length != _EOCD64.size - 12 or disk64 or start_disk64:
            raise UnreadableError("its zip64 record is not one. The file is damaged or forged")
        for small, large, most in (
            (count_here, count_here64, 0xFFFF),
            (count, count64, 0xFFFF),
            (size, size64, 0xFFFFFFFF),
            (start, start64, 0xFFFFFFFF),
        ):
            if small not in (large, most):
                raise UnreadableError("its two zip directories disagree. The file is damaged or forged")
        count_here, count, size, start, end = count_here64, count64, size64, start64, record_at
    if disk or start_disk or count_here != count:
        raise UnreadableError("it is one part of a zip archive in several files. Join the parts first")
    if start + size != end:
        raise UnreadableError("its zip directory is not where it says. The file is damaged or bytes were put before it")
    return count, start, end


def _entries(directory: bytes, count: int) -> Iterator[Entry]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise UnreadableError("its zip directory ends too early. The file is damaged")
        (
            magic, made_by, _, flags, method, _, _, crc, packed, nbytes,
            name_size, extra_size, comment_size, disk, _, attributes, header,
        ) = _CENTRAL.unpack_from(directory, at)  # fmt: skip
        if magic != b"PK\x01\x02":
            raise UnreadableError("its zip directory is damaged")
        at += _CENTRAL.size
        raw_name = directory[at : at + name_size]
        extra = directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if at > len(directory):
            raise UnreadableError("its zip directory ends too early. The file is damaged")
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            raise UnreadableError("a record's name is not UTF-8. The file is damaged, or not torch's") from None
        if flags & ENCRYPTED:
            raise UnsupportedError(f"record {name}: it is encrypted. Decrypt the archive first")
        if method not in (STORED, DEFLATED):
            what = _METHODS.get(method, f"method {method}")
            raise UnsupportedError(f"record {name}: it is compressed with {what}. Repack it without compression")
        if made_by >> 8 == 3 and stat.S_ISLNK(attributes >> 16):
            raise UnreadableError(f"record {name}: it is a symbolic link. No checkpoint has one")
        if extra and 0xFFFFFFFF in (nbytes, packed, header):
            nbytes, packed, header = zip64_values(extra, (nbytes, packed, header), name)
        if disk or (method == STORED and packed != nbytes):
            raise UnreadableError(f"record {name}: its sizes contradict each other. The file is damaged or forged")
        yield Entry(name, raw_name, flags, method, crc, packed, nbytes, header)
    if at != len(directory):
        raise UnreadableError("its zip directory holds more than the records it counts. It is damaged or forged")
