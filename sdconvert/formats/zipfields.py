"""What the fixed fields of a zip record do not say: numbers of 64 bits, a second name, and which names are the same."""

from __future__ import annotations

import struct

from ..errors import UnreadableError

_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_ODD = ("\0", "\\", "//", "/.")


def as_read(name: str) -> str:
    """The name by which the most forgiving reader finds a record: torch's takes no notice of case, ``zipfile`` stops at
    a NUL and reads a backslash as a slash on Windows, and whoever unpacks the archive follows dots.

    UnreadableError for a name that leads out of the directory that it would be unpacked into: for reading it is only
    a key, but nobody means well with it.
    """
    if any(odd in name for odd in _ODD) or name[:1] in ("/", ".") or name[-1:] == "/":
        parts: list[str] = []
        path = name.partition("\0")[0].replace("\\", "/")
        for part in path.split("/"):
            if path[:1] == "/" or (part == ".." and not parts):
                raise UnreadableError(f"member {name} leads out of the archive. It is hostile")
            if part == "..":
                parts.pop()
            elif part not in ("", ".", ".."):
                parts.append(part)
        name = "/".join(parts)
    return name.casefold()


def _fields(extra: bytes, kind: int) -> list[bytes]:
    """The extra fields of one kind; the last of all may be cut."""
    at, found = 0, []
    while at + 4 <= len(extra):
        is_kind, size = struct.unpack_from("<2H", extra, at)
        if is_kind == kind:
            found.append(extra[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def unicode_path(extra: bytes) -> bytes | None:
    """Another name of the record, which some readers take (APPNOTE 4.6.9)."""
    found = _fields(extra, _UNICODE_PATH) if b"up" in extra else []  # 0x7075, little-endian; nearly none has it.
    return found[0][5:] if found else None


def zip64(extra: bytes, values: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """`values` (size, packed size, header offset) with those that are full taken from the zip64 extra field."""
    fields = _fields(extra, _ZIP64)
    if len(fields) > 1:
        raise UnreadableError(f"record {name}: it has two zip64 fields. The file is damaged or forged")
    wanted = sum(value == 0xFFFFFFFF for value in values)
    if not fields:
        if wanted:
            raise UnreadableError(f"record {name}: its zip64 field is missing or short. The file is damaged")
        return values
    count = len(fields[0]) // 8
    large = struct.unpack_from(f"<{count}Q", fields[0])
    # Some readers take all numbers that are there, others as many as are wanted.
    if count != wanted and (wanted or large != values[:count]):
        raise UnreadableError(f"record {name}: its zip64 field is not what its sizes need. The file is damaged")
    left = iter(large)
    size, packed, header = (next(left) if value == 0xFFFFFFFF else value for value in values)
    return size, packed, header
