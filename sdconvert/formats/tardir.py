"""The regular files of a tar archive, by name, as ranges.

512-byte headers with octal numbers and a checksum (POSIX ustar, and v7 before it); ``x`` and
``g`` headers (pax) and ``L`` and ``K`` (GNU long names) say things about the next one. Nothing is
extracted. Python's ``tarfile`` is not used: it recurses and backtracks on hostile headers.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnreadableError
from ..source import SliceSource, Source, read
from .zipfields import as_read

_BLOCK = 512
_LONGEST = 64 << 10  # Bytes of one pax header or long name.
_MEMBERS = 10_000


def is_header(block: bytes) -> bool:
    """Whether `block` is a tar header: its checksum, an octal number, counts its own field as spaces."""
    field = block[148:156].strip(b" \0")
    if len(block) < _BLOCK or not block[:1].strip(b"\0") or not _is_octal(field):
        return False
    return int(field, 8) == sum(block[:_BLOCK]) - sum(block[148:156]) + 8 * 0x20


def read_members(source: Source) -> dict[str, Source]:
    """The archive's regular files. UnreadableError for anything that is not a plain file or directory."""
    files: dict[str, Source] = {}
    found: set[str] = set()
    at = 0
    about: dict[str, str] = {}
    for _ in range(_MEMBERS):
        block = read(source, at, _BLOCK) if at + _BLOCK <= source.nbytes else b""
        if not block.strip(b"\0"):
            _check_end(source, at)
            return files
        if not is_header(block):
            raise UnreadableError(f"its tar header at byte {at} is damaged")
        size = _size(block[124:136], at)
        kind = block[156:157]
        if kind in (b"x", b"g", b"L", b"K"):
            said = _about_next(source, at + _BLOCK, size, kind)
            if kind == b"g" and said:
                raise UnreadableError("a pax header names all files of its tar archive. Readers differ in obeying it")
            about |= said
            at += _BLOCK + -(-size // _BLOCK) * _BLOCK
            continue
        name = _name(block, about)
        size = int(about.get("size", size))
        same = as_read(name)
        if kind in (b"0", b"\0"):
            if same in found:
                raise UnreadableError(f"tar member {name} is there twice. Readers differ in which one they take")
            found.add(same)
            files[name] = SliceSource(source, at + _BLOCK, size, name)
        elif kind != b"5" or size:
            raise UnreadableError(f"tar member {name} is not a regular file. No checkpoint has one")
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
        about = {}
    raise UnreadableError(f"it is a tar archive of more than {_MEMBERS} files, not a checkpoint")


def _is_octal(field: bytes) -> bool:
    return bool(field) and not field.strip(b"01234567")


def _size(field: bytes, at: int) -> int:
    """Octal, or where 8 GiB are too many for that, base 256 after a byte of 0x80 (GNU tar)."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    return _octal(field, at)


def _octal(field: bytes, at: int) -> int:
    digits = field.strip(b" \0")
    if not _is_octal(digits):
        raise UnreadableError(f"the size in its tar header at byte {at} is not a number that old torch wrote")
    return int(digits, 8)


def _name(block: bytes, about: Mapping[str, str]) -> str:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    whole = (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")
    return about.get("path", whole).removeprefix("./")


def _about_next(source: Source, at: int, size: int, kind: bytes) -> dict[str, str]:
    """What a pax or GNU header says of the file that follows: its ``path`` and ``size``."""
    if size > _LONGEST:
        raise UnreadableError(f"its tar header of {size} bytes at byte {at} is too long")
    data = read(source, at, size)
    if kind == b"L":
        return {"path": data.rstrip(b"\0").decode("utf-8", "replace")}
    found: dict[str, str] = {}
    while kind in (b"x", b"g") and data.strip(b"\0"):  # Records of the form "LENGTH KEY=VALUE\n".
        digits, _, _ = data[:20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(data):
            raise UnreadableError(f"its pax header at byte {at} is damaged")
        record, data = data[len(digits) + 1 : int(digits) - 1], data[int(digits) :]
        key, _, value = record.partition(b"=")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise UnreadableError(f"its pax header at byte {at} gives a size that is no number")
        if key in (b"size", b"path"):
            found[key.decode()] = value.decode("utf-8", "replace")
    return found


def _check_end(source: Source, at: int) -> None:
    """UnreadableError unless only zeros follow."""
    while at < source.nbytes:
        part = read(source, at, min(1 << 18, source.nbytes - at))
        if part.strip(b"\0"):
            raise UnreadableError("data follows the end of its tar archive. It is damaged or forged")
        at += len(part)
