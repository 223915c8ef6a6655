"""The records of a zip archive, and proof that no other reader would see different ones.

Strategy: the central directory says what there is; every local header must repeat it,
and the records must tile the file from its first byte to the directory, so there is no
room for a second archive, a hidden record, or a prefix. ``zipfile`` and torch's own reader
each accept archives that the other reads differently; what two could read differently
is refused here. Layout: PKWARE's APPNOTE.TXT, section 4. At a server each header is a request:
there the room between records must fit, and a record's own header is held against the directory when it is read.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ..crc32 import crc32
from ..errors import UnreadableError, UnsupportedError
from ..inflated import InflatedSource, Scratch, credit, packed_bytes
from ..late import LateSource
from ..limits import Limits
from ..source import SliceSource, Source, is_far, read
from ..tensor import Storage
from .zipfields import as_read, unicode_path, zip64

_EOCD = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_EOCD64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_SIGNED = struct.Struct("<4s3I")
_LEAST_AHEAD, _MOST_AHEAD = 512, 1 << 18  # Bytes read for local headers.
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x20 | 0x40 | 0x2000  # Encryption, patch data, strong encryption, masked headers.
_DESCRIPTOR = 0x8
_IS_DIRECTORY = 0x10  # MS-DOS's attribute, by which torch's reader gives nothing back.
_METHODS = {12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 9: "deflate64", 1: "shrink", 6: "implode"}


class Record(NamedTuple):
    """One member: its payload is `packed` bytes at `offset` of `source`, `nbytes` once unpacked."""

    name: str
    offset: int
    packed: int
    nbytes: int
    crc32: int
    deflated: bool
    source: Source


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
            limits=self.limits,
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
        if storage.crc32 is not None and crc32(data) != storage.crc32:
            raise UnreadableError(f"record {name}: its checksum is wrong. The file is damaged")
        return data.decode("utf-8", "replace").strip()


def read_directory(source: Source, limits: Limits) -> ZipDirectory:
    """The archive's records. UnreadableError when it is damaged or could be read in two ways."""
    count, start, end = _find_directory(source)
    if count > limits.zip_members:
        raise UnreadableError(f"it has {count} records, more than Limits.zip_members")
    if end - start > credit(source, limits):
        raise UnreadableError(f"its zip directory has {end - start} bytes (Limits.inflate_slack)")
    if count * _CENTRAL.size > end - start:
        raise UnreadableError("its zip directory is too short for the records it counts. The file is damaged")
    records: dict[str, Record] = {}
    folded: set[str] = set()
    expected = 0
    room = limits.inflate_ratio * packed_bytes(source)
    entries = sorted(_entries(read(source, start, end - start), count), key=lambda e: e.header)
    check = _LocalHeaders(source, start).check
    ends = [*(entry.header for entry in entries[1:]), start] if is_far(source) else []
    for number, entry in enumerate(entries):
        if entry.header != expected:
            what = "overlaps the one before" if entry.header < expected else "leaves bytes that belong to nothing"
            raise UnreadableError(f"record {entry.name}: {what}. The zip archive is damaged or forged")
        record, expected = _unchecked(source, entry, ends[number]) if ends else check(entry)
        if record.deflated and record.nbytes > limits.inflate_ratio * max(record.packed, 1):
            raise UnreadableError(
                f"record {entry.name}: {record.packed} bytes cannot unpack to {record.nbytes} (Limits.inflate_ratio)"
            )
        room -= record.nbytes if record.deflated else 0
        if room < 0:
            raise UnreadableError(
                f"record {entry.name}: compressed data inside compressed data multiplies beyond reason. It is a bomb"
            )
        same = as_read(record.name)
        if same in folded:
            raise UnreadableError(f"record {entry.name} is there twice. Readers differ in which one they take")
        folded.add(same)
        records[record.name] = record
    if expected != start:
        raise UnreadableError("there are bytes between its records and its zip directory. It is damaged or forged")
    checksums = any(record.crc32 for record in records.values())
    return ZipDirectory(source, records, checksums, limits, Scratch())


def _unchecked(source: Source, entry: _Entry, following: int) -> tuple[Record, int]:
    """The record as the directory has it, and where it must end: its header is read when its payload is."""
    room = following - entry.header - _LOCAL.size - len(entry.raw_name) - entry.packed
    payload = LateSource(
        source, entry.name, entry.packed, (entry.header, following), partial(_offset, source, entry, following)
    )
    record = Record(entry.name, 0, entry.packed, entry.nbytes, entry.crc32, entry.method == _DEFLATED, payload)
    fits = 0 <= room <= 0xFFFF + 24  # An extra field and a data descriptor.
    return record, following if fits else following - room


def _offset(source: Source, entry: _Entry, following: int) -> int:
    """Where the payload of a record begins that must end where the `following` one begins."""
    record, end = _LocalHeaders(source, following).check(entry)
    if end != following:
        raise UnreadableError(f"record {entry.name}: does not end where the next begins. It is damaged or forged")
    return record.offset


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
    _check_only_end(tail[:at], start - (source.nbytes - tail_size), len(tail))
    return count, start, end


def _check_only_end(tail: bytes, start: int, end: int) -> None:
    """UnreadableError if `tail`, what is before the end of the directory, has another that a reader could take.

    A zip inside a record has one too: below `start`, where the directory begins, and not with a comment
    that reaches to the `end` of the file. Readers look for the last one, which ends the file.
    """
    at = tail.find(b"PK\x05\x06")
    while at >= 0:
        comment = int.from_bytes(tail[at + _EOCD.size - 2 : at + _EOCD.size], "little")
        if at + _EOCD.size > start or at + _EOCD.size + comment == end:
            raise UnreadableError("it has more than one end of a zip directory. It is damaged or forged")
        at = tail.find(b"PK\x05\x06", at + 1)


class _Entry(NamedTuple):
    """A central directory entry, zip64 resolved."""

    name: str
    raw_name: bytes
    version: int
    flags: int
    method: int
    time: tuple[int, int]
    crc32: int
    packed: int
    nbytes: int
    header: int


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise UnreadableError("its zip directory ends too early. The file is damaged")
        (
            magic, _, version, flags, method, time, date, crc, packed, nbytes,
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
        if flags & _ENCRYPTED:
            raise UnsupportedError(f"record {name}: it is encrypted. Decrypt the archive first")
        if method not in (_STORED, _DEFLATED):
            what = _METHODS.get(method, f"method {method}")
            raise UnsupportedError(f"record {name}: it is compressed with {what}. Repack it without compression")
        kind = stat.S_IFMT(attributes >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnreadableError(f"record {name}: it is a symbolic link or a device. No checkpoint has one")
        # Java writes its directories deflated: two bytes that are the end of nothing.
        is_directory = kind == stat.S_IFDIR or attributes & _IS_DIRECTORY or name[-1:] == "/"
        if is_directory and (nbytes or packed > (2 if method else 0)):
            raise UnreadableError(f"record {name}: it is a directory that holds bytes. Readers differ in reading it")
        if extra:
            nbytes, packed, header = zip64(extra, (nbytes, packed, header), name)
            if unicode_path(extra) not in (None, raw_name):
                raise UnreadableError(f"record {name}: it has two names. The file is forged")
        if disk or (method == _STORED and packed != nbytes):
            what = "it is said to be in another file" if disk else "its sizes contradict each other"
            raise UnreadableError(f"record {name}: {what}. The file is damaged or forged")
        yield _Entry(name, raw_name, version, flags, method, (time, date), crc, packed, nbytes, header)
    if at != len(directory):
        raise UnreadableError("its zip directory holds more than the records it counts. It is damaged or forged")


class _LocalHeaders:
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

    def check(self, entry: _Entry) -> tuple[Record, int]:
        """The record, and the offset just after it; UnreadableError if its own header says otherwise."""
        at = entry.header - self.start
        if at < 0 or at + _LOCAL.size > len(self.window):
            self.get(entry.header, _LOCAL.size)
            at = 0
        fields = _LOCAL.unpack_from(self.window, at)
        magic, version, flags, method, time, date, crc, packed, nbytes, name_size, extra_size = fields
        if magic != b"PK\x03\x04":
            raise UnreadableError(f"record {entry.name}: it does not start where the zip directory says")
        if name_size != len(entry.raw_name):
            raise self.differing(entry, "name")
        rest = self.get(entry.header + _LOCAL.size, name_size + extra_size)
        if rest[:name_size] != entry.raw_name or unicode_path(rest[name_size:]) not in (None, entry.raw_name):
            raise self.differing(entry, "name")
        if method != entry.method:
            raise self.differing(entry, "compression")
        if flags != entry.flags:
            raise self.differing(entry, "flags")
        if (time, date) != entry.time or version > entry.version:  # A directory with a zip64 field needs more.
            raise self.differing(entry, "time or version")
        at = name_size
        while at + 4 <= len(rest):  # torch pads with one such field, named FB.
            at += 4 + rest[at + 2] + 256 * rest[at + 3]
            if at > len(rest):
                raise self.differing(entry, "the length of an extra field")
        offset = entry.header + _LOCAL.size + name_size + extra_size
        end = offset + entry.packed
        said: tuple[int, ...] = (nbytes, packed)
        known = (entry.nbytes, entry.packed)
        later = bool(flags & _DESCRIPTOR)
        if 0xFFFFFFFF in said or (extra_size and not later):  # Before a descriptor torch leaves a part of it empty.
            said = zip64(rest[name_size:], (nbytes, packed, 0), entry.name)[:2]
        if said != known and not (later and said == (0, 0)):
            raise self.differing(entry, "size")
        if crc != entry.crc32 and not (later and crc == 0):
            raise self.differing(entry, "checksum")
        if later:
            end += self.descriptor(entry, end)
        deflated = method == _DEFLATED
        return Record(entry.name, offset, entry.packed, entry.nbytes, entry.crc32, deflated, self.source), end

    def descriptor(self, entry: _Entry, at: int) -> int:
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

    def differing(self, entry: _Entry, what: str) -> UnreadableError:
        return UnreadableError(
            f"record {entry.name}: its own header and the zip directory differ in {what}. It is damaged or forged"
        )
