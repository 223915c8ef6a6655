"""``torch.save``'s zip archive, to the byte what torch 2.13 writes of the same state dict.

Records under one folder, stored, in this order: ``data.pkl``, ``.format_version``,
``.storage_alignment``, ``byteorder``, ``data/<n>`` for each storage, ``version``,
``.data/serialization_id``. Each is a local header padded by an extra field "FB" so that the
payload begins at a multiple of 64; the payload; a data descriptor with its CRC-32, unless it
is empty. The central directory follows, and always a zip64 end. Sources: ``_save`` in
``torch/serialization.py``, ``getPadding`` in ``caffe2/serialize/inline_container.cc``,
``mz_zip_writer_add_mem_ex_v2`` in ``third_party/miniz``. Only the serialization id differs:
torch's is made of hashes of its C++ library.

Every place is known before a tensor is read. Checksums are known only after it, so the
descriptors are written with the tensors, and the directory last (`TorchZipLayout.finish`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..checkpoint import Encoding
from ..crc32 import crc32
from ..errors import UnsupportedError
from ..pickles.compose import NATIVE, SavedTensor, WholeTensor, state_dict
from ..plan import Plan
from ..recipes import KEY, to_text
from ..stream import Placed, Tail

NAME = "pt"
SUFFIX = ".pt"
HAS_METADATA = False

_ROOT = "archive"  # As torch calls it when it saves to a file object: the output's own name changes no byte.
_ALIGNMENT = 64
_BEFORE = ((".format_version", b"1"), (".storage_alignment", b"%d" % _ALIGNMENT), ("byteorder", b"little"))
_VERSION = b"3\n"  # kMinProducedFileFormatVersion
_ID_DIGITS = 40

_LOCAL = struct.Struct("<4s5H3I2H")
_DESCRIPTOR = struct.Struct("<4s3I")
_DESCRIPTOR64 = struct.Struct("<4sI2Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_EXTRA = struct.Struct("<2H")
_ZIP64, _PADDING = 0x0001, int.from_bytes(b"FB", "little")
_UTF8, _CRC_FOLLOWS = 0x0800, 0x0008
_FULL, _FULL_COUNT = 0xFFFFFFFF, 0xFFFF  # What a field says whose value is in the zip64 one.


class _Record(NamedTuple):
    """One member: its local header begins at byte `header`, its `nbytes` bytes at `payload`."""

    name: bytes
    header: int
    payload: int
    nbytes: int

    @staticmethod
    def at(header: int, name: str, nbytes: int) -> _Record:
        """The record whose header begins there."""
        raw = f"{_ROOT}/{name}".encode()
        least = header + _LOCAL.size + len(raw) + _EXTRA.size
        if nbytes >= _FULL or header >= _FULL:
            least += _EXTRA.size + 16 * (nbytes >= _FULL) + 8 * (header >= _FULL)
        return _Record(raw, header, least + -least % _ALIGNMENT, nbytes)

    @property
    def is_zip64(self) -> bool:
        return self.nbytes >= _FULL or self.header >= _FULL

    @property
    def flags(self) -> int:
        return _UTF8 | _CRC_FOLLOWS if self.nbytes else _UTF8

    @property
    def end(self) -> int:
        """The byte after its descriptor, where the next record begins."""
        tail = self.tail
        return self.payload + self.nbytes + (tail.nbytes if tail else 0)

    @property
    def tail(self) -> Tail | None:
        """The data descriptor."""
        if not self.nbytes:
            return None
        return _TAIL64 if self.is_zip64 else _TAIL

    def head(self) -> bytes:
        """The local header: torch leaves its checksum and sizes 0, the descriptor has them."""
        zip64 = self._zip64(packed=0) if self.is_zip64 else b""
        extra = self.payload - self.header - _LOCAL.size - len(self.name)
        padding = extra - len(zip64) - _EXTRA.size
        fields = _LOCAL.pack(b"PK\3\4", 0, self.flags, 0, 0, 0, 0, 0, 0, len(self.name), extra)
        return b"".join((fields, self.name, zip64, _EXTRA.pack(_PADDING, padding), b"Z" * padding))

    def entry(self, crc32: int) -> bytes:
        """What the central directory says of it."""
        extra = self._zip64(packed=self.nbytes) if self.is_zip64 else b""
        size, header = min(self.nbytes, _FULL), min(self.header, _FULL)
        fields = _CENTRAL.pack(
            b"PK\1\2", 0, 0, self.flags, 0, 0, 0, crc32, size, size, len(self.name), len(extra), 0, 0, 0, 0, header
        )
        return fields + self.name + extra

    def _zip64(self, *, packed: int) -> bytes:
        """The extra field that holds what 32 bits cannot; torch's local headers have no packed size yet."""
        values: tuple[int, ...] = (self.nbytes, packed) if self.nbytes >= _FULL else ()
        values += (self.header,) if self.header >= _FULL else ()
        return _EXTRA.pack(_ZIP64, 8 * len(values)) + struct.pack(f"<{len(values)}Q", *values)

    def whole(self, data: bytes) -> bytes:
        """Header, payload and descriptor of a record whose bytes are known."""
        return self.head() + data + (self.tail.make(crc32(data), len(data)) if self.tail else b"")


def _descriptor(crc32: int, nbytes: int) -> bytes:
    return _DESCRIPTOR.pack(b"PK\7\b", crc32, nbytes, nbytes)


def _descriptor64(crc32: int, nbytes: int) -> bytes:
    return _DESCRIPTOR64.pack(b"PK\7\b", crc32, nbytes, nbytes)


_TAIL = Tail(_DESCRIPTOR.size, _descriptor)
_TAIL64 = Tail(_DESCRIPTOR64.size, _descriptor64)


@dataclass(frozen=True)
class TorchZipLayout:
    """A zip archive, decided to the byte but for what depends on the tensors' bytes."""

    nbytes: int
    fixed: tuple[tuple[int, bytes], ...]
    placed: tuple[Placed, ...]
    records: tuple[_Record, ...]
    """All of them in their order, the serialization id last."""
    known: Mapping[int, int]
    """The CRC-32 of the records before the tensors, by the place of their payload."""

    def finish(self, crcs: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
        """The records after the tensors, the directory and its end, in one piece.

        `crcs` are the tensors' CRC-32 by place. The serialization id is 20 digits made of the
        records' names and 20 made of their checksums, so it depends on the content alone.
        """
        *before, version, identity = self.records
        by_place = {**self.known, **crcs}
        checksums = [by_place.get(record.payload, 0) for record in before] + [crc32(_VERSION)]
        names = crc32(b"".join(record.name for record in (*before, version)))
        digits = b"%020d%020d" % (names, crc32(struct.pack(f"<{len(checksums)}I", *checksums)))
        checksums.append(crc32(digits))
        directory = b"".join(record.entry(crc) for record, crc in zip(self.records, checksums, strict=True))
        end = _end(len(self.records), len(directory), identity.end)
        yield version.header, version.whole(_VERSION) + identity.whole(digits) + directory + end


def names(plan: Plan) -> list[str]:
    whole = {
        part: name
        for name, one in plan.encoded.items()
        if one.recipe["encoding"] in NATIVE
        for part in one.parts.values()
    }
    return list(dict.fromkeys(whole.get(name, name) for name in plan.names))


def encoded(plan: Plan) -> Mapping[str, Encoding]:
    """The tensors that are written as parts, with a recipe in ``_metadata``; torch has calls for the others."""
    return {name: one for name, one in plan.encoded.items() if one.recipe["encoding"] not in NATIVE}


def _wholes(plan: Plan, by_name: Mapping[str, SavedTensor]) -> list[SavedTensor | WholeTensor]:
    """What is in the state dict: encoded tensors that torch can rebuild by itself in place of their parts."""
    result: list[SavedTensor | WholeTensor] = []
    whole = {part: name for name, one in plan.encoded.items() for part in one.parts.values()}
    integers: dict[str, str] = {}
    for name, tensor in by_name.items():
        owner = whole.get(name)
        one = plan.encoded[owner] if owner is not None else None
        if owner is None or one is None or one.recipe["encoding"] not in NATIVE:
            result.append(tensor)
        elif name == next(iter(one.parts.values())):
            result.append(WholeTensor(owner, one.recipe, {role: by_name[part] for role, part in one.parts.items()}))
            if one.recipe["encoding"] == "quantized":
                integers.setdefault(tensor.key, owner)
    # A storage has one type in a pickle, which readers remember by its key.
    for one_of in result:
        if isinstance(one_of, SavedTensor) and one_of.key in integers:
            other = integers[one_of.key]
            raise UnsupportedError(
                f"{one_of.name} has the same memory as the quantized tensor {other}, which a .pt file cannot say. "
                f"--exclude {one_of.name} leaves it out"
            )
    return result


def lay_out(plan: Plan, metadata: Mapping[str, str]) -> TorchZipLayout:
    """Where everything goes. UnsupportedError for memory that quantized and plain tensors share.

    `metadata` is not written: a state dict has no place for it.
    """
    keys = {entry.name: str(number) for number, entry in enumerate(plan.entries)}
    saved = {entry.name: (entry.dtype, entry.tensor.shape) for entry in plan.entries}
    kept = [(name, plan.aliases.get(name, name)) for name in plan.names]
    by_name = {name: SavedTensor(name, keys[first], *saved[first]) for name, first in kept}
    parts = encoded(plan)
    text = {KEY: to_text(parts, by_name)} if parts else {}
    pickle = state_dict(_wholes(plan, by_name), text)
    records: list[_Record] = []
    known: dict[int, int] = {}
    front, at = [], 0
    for name, data in (("data.pkl", pickle), *_BEFORE):
        record = _Record.at(at, name, len(data))
        records.append(record)
        known[record.payload] = crc32(data)
        front.append(record.whole(data))
        at = record.end
    placed = []
    for number, entry in enumerate(plan.entries):
        record = _Record.at(at, f"data/{number}", entry.nbytes)
        records.append(record)
        placed.append(Placed(entry, record.payload, record.head(), record.tail))
        at = record.end
    for name, size in (("version", len(_VERSION)), (".data/serialization_id", _ID_DIGITS)):
        records.append(_Record.at(at, name, size))
        at = records[-1].end
    directory = sum(len(record.entry(0)) for record in records)
    nbytes = at + directory + len(_end(len(records), directory, at))
    return TorchZipLayout(nbytes, ((0, b"".join(front)),), tuple(placed), tuple(records), known)


def _end(count: int, nbytes: int, start: int) -> bytes:
    """The end of the archive: `count` directory entries, `nbytes` bytes from byte `start` on."""
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, 0x031E, 45, 0, 0, count, count, nbytes, start)
    locator = _LOCATOR.pack(b"PK\6\7", 0, start + nbytes, 1)
    small = min(count, _FULL_COUNT)
    end = _END.pack(b"PK\5\6", 0, 0, small, small, min(nbytes, _FULL), min(start, _FULL), 0)
    return end64 + locator + end
