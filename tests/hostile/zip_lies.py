"""Class 5: zip archives that two readers would read differently, or none should."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace

from .case import Case, Tensor, converts, either, rejects, rejects_saying
from .pickling import NONE, dict_of, pickled, tensor
from .zips import FLOATS, Archive, Member, deflated, members

W: dict[str, Tensor] = {"w": ("F32", (4,), FLOATS)}
OTHER = struct.pack("<4f", 9.0, 9.0, 9.0, 9.0)
ROOT = pickled(dict_of(("w", tensor())))
GOOD = members(ROOT)
PKL, DATA = "archive/data.pkl", "archive/data/0"


def archive(*more: Member, **about: object) -> bytes:
    return Archive([*GOOD, *more], **about).build()  # type: ignore[arg-type]


def changed(which: str, **about: object) -> bytes:
    """The good archive with one record replaced in part."""
    return Archive([replace(m, **about) if m.name == which else m for m in GOOD]).build()  # type: ignore[arg-type]


def field(which: str, where: str, **values: object) -> bytes:
    return changed(which, **{where: values})


def patched(at: int, value: bytes, data: bytes | None = None) -> bytes:
    data = archive() if data is None else data
    at %= len(data)
    return data[:at] + value + data[at + len(value) :]


def flipped() -> bytes:
    data = archive()
    at = data.index(FLOATS)
    return patched(at, bytes([data[at] ^ 1]))


def zero_crc(also: Mapping[str, int] | None = None) -> bytes:
    crcs = {m.name: 0 for m in GOOD} | dict(also or {})
    return Archive([replace(m, local={"crc": crcs[m.name]}, central={"crc": crcs[m.name]}) for m in GOOD]).build()


def described(**about: object) -> bytes:
    """The storage with a data descriptor, as torch writes it."""
    real = struct.pack("<4s3I", b"PK\7\x08", zlib.crc32(FLOATS), len(FLOATS), len(FLOATS))
    fields = {"flags": 8, "local": {"crc": 0, "packed": 0, "nbytes": 0}, "descriptor": real, **about}
    return changed(DATA, **fields)


def packed(data: bytes = FLOATS, raw: bytes | None = None, **sizes: int) -> bytes:
    return changed(DATA, data=data, method=8, raw=raw, local=sizes, central=sizes)


def zip64(**values: int) -> bytes:
    return archive(end64=values)


def small64(extra: bytes, where: str = "central", **fields: int) -> bytes:
    return field(DATA, where, extra=extra, **fields)


_FULL = 0xFFFFFFFF
_EXTRA = struct.pack("<2H3Q", 1, 24, 16, 16, 0)
_NAMES = {
    "dots": "archive/../evil",
    "drive": "C:\\x",
    "backslash": "archive\\data\\1",
    "null": "archive/data/1\0",
    "newline": "archive/a\nb",
    "escape": "archive/\x1b[2J",
    "bidi": "archive/\u202e",
}
# Each is what some reader takes for the storage that is there already.
_TWINS = {
    "null": f"{DATA}\0",
    "null-more": f"{DATA}\0.bak",
    "backslash": DATA.replace("/", "\\"),
    "slashes": "archive//data/0",
    "dot": "archive/./data/0",
    "dot-first": f"./{DATA}",
    "dots": "archive/x/../data/0",
}
_OUTSIDE = {
    "absolute": "/etc/cron.d/x",
    "absolute-twin": f"/{DATA}",
    "upwards": "../evil",
    "upwards-twin": f"../{DATA}",
    "deep": "archive/../../evil",
    "backslash": "archive\\..\\..\\evil",
    "backslash-root": "\\evil",
    "before-null": "../evil\0",
}
_METHODS = (1, 6, 9, 12, 14, 93, 95, 99)
_CUTS = (3, 10, 29, 100, 200, 400, -1, -10, -22, -23, -60)


def _unicode_path(path: bytes) -> bytes:
    return struct.pack("<2HBL", 0x7075, 5 + len(path), 1, zlib.crc32(DATA.encode())) + path


def overlap(header: str) -> bytes:
    """Central entries whose payloads are shared, nested or quoted."""
    good = Archive(GOOD)
    if header == "same-header":
        return Archive([*GOOD, Member("archive/data/1", FLOATS, central={"header": 0})]).build()
    data = good.build()
    at = data.index(FLOATS)
    inner = archive(Member("archive/data/1", FLOATS, central={"header": at}))
    return inner if header == "into-payload" else archive(Member("archive/data/1", FLOATS, central={"header": 1}))


def quoted() -> bytes:
    """A record whose payload holds another record with its header, and both are listed."""
    inside = Archive([Member("archive/data/1", OTHER)]).build()[: 30 + 14 + 16]
    outer = Member("archive/data/2", inside)
    at = len(b"".join(struct.pack("30x") + m.name.encode() + m.data for m in GOOD)) + 30 + len(outer.name)
    return archive(outer, Member("archive/data/1", OTHER, raw=b"", central={"header": at, "packed": 16}))


def directory_bytes() -> int:
    """Of the good archive, from its first entry to the end record."""
    return archive().index(b"PK\5\6") - archive().index(b"PK\1\2")


def entry_cut() -> bytes:
    """The comment of the first entry reaches to 10 bytes before the end of the directory, where no entry fits."""
    comment = directory_bytes() - 46 - len(PKL) - 10
    return patched(archive().index(b"PK\1\2") + 32, struct.pack("<H", comment))


CASES: list[Case] = [
    *rejects_saying(
        "zip-twice",
        {
            "is there twice": {
                "storage-after": lambda: archive(Member(DATA, OTHER)),
                "storage-before": lambda: Archive([Member(DATA, OTHER), *GOOD]).build(),
                "pickle-after": lambda: archive(Member(PKL, pickled(NONE))),
                "pickle-before": lambda: Archive([Member(PKL, pickled(NONE)), *GOOD]).build(),
                "same-bytes": lambda: archive(Member(DATA, FLOATS)),
                "unused": lambda: archive(Member("archive/z", b""), Member("archive/z", b"")),
                "case-storage": lambda: archive(Member("archive/DATA/0", OTHER)),
                "case-pickle": lambda: archive(Member("archive/Data.pkl", pickled(NONE))),
                "case-folder": lambda: archive(Member("ARCHIVE/data/0", OTHER)),
                **{key: lambda n=n: archive(Member(n, OTHER)) for key, n in _TWINS.items()},  # type: ignore[misc]
                "directory": lambda: archive(Member(f"{DATA}/", b"")),
            },
            "its zip directory is not where it says": {
                "two-archives": lambda: archive() + archive(),
                "archive-in-comment": lambda: archive(comment=archive()),
                "end-in-comment": lambda: archive(comment=b"PK\5\6" + bytes(18)),
                "archive-as-prefix-of-tail": lambda: archive(tail=archive()),
            },
            "it holds several checkpoints": {
                "two-roots": lambda: Archive([*GOOD, *members(ROOT, folder="other")]).build(),
            },
        },
    ),
    *rejects_saying(
        "zip-local",
        {
            "differ in name": {
                "name": lambda: field(DATA, "local", name=b"archive/data/1"),
                "name-case": lambda: field(DATA, "local", name=b"archive/DATA/0"),
                "name-shorter": lambda: field(DATA, "local", name=b"archive/data"),
                "pickle-name": lambda: field(PKL, "local", name=b"archive/data.pk1"),
                "unicode-path": lambda: field(DATA, "local", extra=_unicode_path(b"archive/data/1")),
                "unicode-path-after-padding": lambda: field(
                    DATA, "local", extra=b"FB\2\0up" + _unicode_path(b"archive/data/1")
                ),
            },
            "differ in compression": {
                "method": lambda: field(DATA, "local", method=8),
            },
            "differ in checksum": {
                "crc": lambda: field(DATA, "local", crc=1),
                "crc-zero": lambda: field(DATA, "local", crc=0),
            },
            "differ in size": {
                "packed": lambda: field(DATA, "local", packed=15),
                "nbytes": lambda: field(DATA, "local", nbytes=17),
                "sizes-zero": lambda: field(DATA, "local", nbytes=0, packed=0),
            },
            "differ in flags": {
                "flags-encrypted": lambda: field(DATA, "local", flags=1),
                "flags-descriptor": lambda: field(DATA, "local", flags=8),
                "flags-utf8": lambda: field(DATA, "local", flags=0x800),
                "flags-level": lambda: field(DATA, "local", flags=6),
            },
            "differ in time or version": {
                "time": lambda: field(DATA, "local", time=1),
                "date": lambda: field(DATA, "local", date=1),
                "version": lambda: field(DATA, "local", version=45),
            },
            "differ in the length of an extra field": {
                "extra-cut": lambda: field(DATA, "local", extra=b"\1\0\xff\xff"),
            },
            "not a checkpoint that is known": {
                "magic": lambda: patched(0, b"PK\3\5"),
            },
            "it does not start where the zip directory says": {
                "magic-of-second": lambda: patched(archive().index(b"PK\3\4", 4), b"PK\3\5"),
            },
        },
    ),
    *rejects_saying(
        "zip-central",
        {
            "differ in checksum": {
                "crc": lambda: field(DATA, "central", crc=1),
            },
            "record archive/data/0: checksum": {
                "crc-both": lambda: changed(DATA, local={"crc": 1}, central={"crc": 1}),
                "crc-zero-one": lambda: changed(DATA, local={"crc": 0}, central={"crc": 0}),
                "flipped-bit": flipped,
            },
            "data.pkl: checksum": {
                "crc-pickle": lambda: changed(PKL, local={"crc": 1}, central={"crc": 1}),
            },
            "record archive/byteorder: its checksum": {
                "crc-zero-but-one": lambda: zero_crc({DATA: 5}),
            },
            "record archive/version: its checksum": {
                "crc-version": lambda: changed("archive/version", local={"crc": 1}, central={"crc": 1}),
            },
            "sizes contradict each other": {
                "nbytes": lambda: field(DATA, "central", nbytes=17),
                "packed": lambda: field(DATA, "central", packed=17),
            },
            "in another file": {
                "disk": lambda: field(DATA, "central", disk=1),
            },
            "differ in size": {
                "both-sizes": lambda: field(DATA, "central", packed=17, nbytes=17),
            },
            "overlaps the one before": {
                "size-past-end": lambda: changed(
                    DATA, local={"packed": 1 << 30, "nbytes": 1 << 30}, central={"packed": 1 << 30, "nbytes": 1 << 30}
                ),
            },
            "leaves bytes that belong to nothing": {
                "header-past-end": lambda: field(DATA, "central", header=1 << 30),
                "header-in-directory": lambda: field(DATA, "central", header=500),
            },
            "it is encrypted": {
                "encrypted": lambda: changed(DATA, flags=1),
                "patched": lambda: changed(DATA, flags=0x20),
                "strong": lambda: changed(DATA, flags=0x40),
                "masked": lambda: changed(DATA, flags=0x2000),
                "encrypted-pickle": lambda: changed(PKL, flags=1),
            },
            "a symbolic link or a device": {
                "symlink": lambda: field(DATA, "central", made_by=0x0314, attributes=0o120777 << 16),
                "symlink-of-macos": lambda: field(DATA, "central", made_by=0x1314, attributes=0o120777 << 16),
                "symlink-of-dos": lambda: field(DATA, "central", attributes=0o120777 << 16),
                "fifo": lambda: field(DATA, "central", made_by=0x0314, attributes=0o010777 << 16),
                "block-device": lambda: field(DATA, "central", made_by=0x0314, attributes=0o060777 << 16),
                "symlink-unused": lambda: archive(
                    Member("archive/l", b"/etc/passwd", central={"made_by": 0x0314, "attributes": 0o120777 << 16})
                ),
            },
            "a directory that holds bytes": {
                "directory": lambda: field(DATA, "central", made_by=0x0314, attributes=0o040777 << 16),
                "directory-of-dos": lambda: field(DATA, "central", attributes=0x10),
                "directory-with-bytes": lambda: archive(Member("archive/x/", b"bytes")),
            },
            "differ in flags": {
                "flags-utf8": lambda: field(DATA, "central", flags=0x800),
            },
            "it has two names": {
                "unicode-path": lambda: field(DATA, "central", extra=_unicode_path(b"archive/data/1")),
            },
            "its zip directory is damaged": {
                "magic": lambda: patched(archive().index(b"PK\1\2"), b"PK\1\3"),
            },
            "name is not UTF-8": {
                "name-not-utf8": lambda: changed(
                    DATA, local={"name": b"archive/\xff"}, central={"name": b"archive/\xff"}
                ),
            },
            "its zip directory ends too early": {
                "comment-too-long": lambda: patched(archive().index(b"PK\1\2") + 32, b"\xff\xff"),
                "entry-cut": entry_cut,
            },
            "too many for it": {
                "version-long": lambda: changed("archive/version", data=b"3" + b" " * 300),
            },
        },
    ),
    *rejects("zip-method", {str(m): lambda m=m: changed(DATA, method=m, raw=FLOATS) for m in _METHODS}),  # type: ignore[misc]
    *rejects("zip-cut", {str(n): lambda n=n: archive()[:n] for n in _CUTS}),  # type: ignore[misc]
    *rejects_saying(
        "zip-bytes",
        {
            "is a script": {
                "prefix": lambda: archive(prefix=b"#!/bin/sh\n"),
            },
            "leaves bytes that belong to nothing": {
                "prefix-zip": lambda: archive(prefix=b"PK\3\4junk"),
                "gap": lambda: changed(DATA, gap=bytes(16)),
                "gap-hidden-record": lambda: changed(DATA, gap=Archive([Member(DATA, OTHER)]).build()[:60]),
            },
            "its zip directory is not where it says": {
                "prefix-adjusted": lambda: b"PK\3\4" + archive(),
                "after-directory": lambda: archive(after_directory=b"hidden"),
            },
            "bytes between its records": {
                "before-directory": lambda: archive(before_directory=b"hidden"),
            },
            "bytes follow its zip directory": {
                "tail-byte": lambda: archive(tail=b"\0"),
                "tail-elf": lambda: archive(tail=b"\x7fELF" + bytes(100)),
            },
            "its zip directory is missing": {
                "tail-100k": lambda: archive(tail=bytes(100_000)),
            },
            "begins with zeros only": {
                "hole": lambda: patched(0, bytes(512)),
            },
            "overlaps the one before": {
                "overlap-same": lambda: overlap("same-header"),
                "overlap-payload": lambda: overlap("into-payload"),
                "overlap-odd": lambda: overlap("odd"),
                "overlap-quoted": quoted,
            },
        },
    ),
    *rejects_saying(
        "zip-end",
        {
            "too short for the records it counts": {
                "count-more": lambda: archive(end={"count": 9, "here": 9}),
                "count-huge": lambda: archive(end={"count": 0xFFFE, "here": 0xFFFE}),
            },
            "more than the records it counts": {
                "count-less": lambda: archive(end={"count": 3, "here": 3}),
                "count-zero": lambda: archive(end={"count": 0, "here": 0}),
                "directory-longer": lambda: archive(after_directory=b"hidden", end={"size": directory_bytes() + 6}),
            },
            "one part of a zip archive": {
                "count-here": lambda: archive(end={"here": 3}),
                "disk": lambda: archive(end={"disk": 1}),
                "start-disk": lambda: archive(end={"start_disk": 1}),
            },
            "its zip directory is not where it says": {
                "size": lambda: archive(end={"size": 10}),
                "start": lambda: archive(end={"start": 0}),
                "start-past-end": lambda: archive(end={"start": 1 << 31}),
                "zip64-promised": lambda: archive(end={"count": 0xFFFF, "here": 0xFFFF, "size": _FULL, "start": _FULL}),
            },
            "bytes follow its zip directory": {
                "comment-longer": lambda: archive(end={"comment": 5}),
                "comment-shorter": lambda: archive(comment=b"hello", end={"comment": 2}),
            },
            "around other files": {
                "empty-archive": lambda: Archive([]).build(),
            },
        },
    ),
    *rejects_saying(
        "zip-64",
        {
            "its two zip directories disagree": {
                "count": lambda: zip64(count=99, here=99),
                "size": lambda: zip64(size=1),
                "start": lambda: zip64(start=1),
                "count-2-63": lambda: zip64(count=1 << 63, here=1 << 63),
            },
            "its zip64 record is not one": {
                "length": lambda: zip64(length=45),
                "length-huge": lambda: zip64(length=1 << 62),
                "disk": lambda: zip64(disk=1),
            },
            "its zip64 locator points elsewhere": {
                "record-at": lambda: zip64(record_at=0),
                "record-at-past-end": lambda: zip64(record_at=1 << 62),
                "disks": lambda: zip64(disks=3),
            },
            "differ in size": {
                "extra-missing": lambda: small64(b"", nbytes=_FULL, packed=_FULL),
                "extra-lies": lambda: small64(struct.pack("<2H2Q", 1, 16, 17, 17), nbytes=_FULL, packed=_FULL),
                "extra-2-63": lambda: small64(
                    struct.pack("<2H2Q", 1, 16, 1 << 63, 1 << 63), nbytes=_FULL, packed=_FULL
                ),
                "extra-length": lambda: small64(b"\1\0\xff\xff" + bytes(16), nbytes=_FULL, packed=_FULL),
                "local-lies": lambda: small64(struct.pack("<2H2Q", 1, 16, 17, 17), "local", nbytes=_FULL, packed=_FULL),
            },
            "its zip64 field is not what": {
                "extra-short": lambda: small64(struct.pack("<2HQ", 1, 8, 16), nbytes=_FULL, packed=_FULL),
                "extra-idle-lies": lambda: small64(struct.pack("<2H2Q", 1, 16, 17, 17)),
                "local-idle-lies": lambda: small64(struct.pack("<2H2Q", 1, 16, 17, 17), "local"),
                "extra-longer": lambda: small64(_EXTRA, nbytes=_FULL, packed=_FULL),
                "local-longer": lambda: small64(_EXTRA, "local", nbytes=_FULL, packed=_FULL),
                "extra-out-of-order": lambda: small64(_EXTRA, header=_FULL),
            },
            "overlaps the one before": {
                "extra-header": lambda: small64(_EXTRA, nbytes=_FULL, packed=_FULL, header=_FULL),
            },
            "two zip64 fields": {
                "extra-twice": lambda: small64(_EXTRA + _EXTRA, nbytes=_FULL, packed=_FULL),
            },
        },
    ),
    *rejects_saying(
        "zip-descriptor",
        {
            "differ in data descriptor": {
                "crc": lambda: described(descriptor=struct.pack("<4s3I", b"PK\7\x08", 1, 16, 16)),
                "size": lambda: described(descriptor=struct.pack("<4s3I", b"PK\7\x08", zlib.crc32(FLOATS), 17, 17)),
                "missing": lambda: described(descriptor=b""),
                "signature": lambda: described(descriptor=struct.pack("<4s3I", b"PK\7\7", zlib.crc32(FLOATS), 16, 16)),
                "cut": lambda: described(descriptor=b"PK\7\x08"),
            },
            "differ in size": {
                "local-lies": lambda: described(local={"crc": 7, "packed": 3, "nbytes": 3}),
            },
        },
    ),
    *rejects_saying(
        "zip-deflate",
        {
            "its compressed data is damaged": {
                "garbage": lambda: packed(raw=b"\xff" * 20),
                "zlib-header": lambda: packed(raw=zlib.compress(FLOATS)),
                "stored-as-deflated": lambda: packed(raw=FLOATS),
                "pickle-garbage": lambda: changed(PKL, method=8, raw=b"\xff" * 20),
            },
            "its compressed data ends too early": {
                "empty": lambda: packed(raw=b""),
                "cut": lambda: packed(raw=deflated(FLOATS)[:-1]),
            },
            "data follows its compressed stream": {
                "tail": lambda: packed(raw=deflated(FLOATS) + b"tail"),
                "two-streams": lambda: packed(raw=deflated(FLOATS[:8]) + deflated(FLOATS[8:])),
            },
            "unpacks to more than": {
                "longer": lambda: packed(raw=deflated(FLOATS * 2)),
            },
            "archive/data/0: checksum": {
                "shorter": lambda: packed(raw=deflated(FLOATS[:8])),
                "bad-crc": lambda: packed(crc=1),
            },
            "cannot unpack to": {
                "ratio": lambda: packed(nbytes=1 << 31),
            },
        },
    ),
    *rejects(
        "zip-root",
        {
            "none": lambda: Archive([Member("data.pkl", ROOT), Member("data/0", FLOATS)]).build(),
            "no-pickle": lambda: Archive([m for m in GOOD if m.name != PKL]).build(),
            "nested": lambda: Archive([Member("a/b/data.pkl", ROOT), Member("a/b/data/0", FLOATS)]).build(),
            "npz": lambda: Archive([Member("a.npy", b"\x93NUMPY")]).build(),
            "only-evil": lambda: Archive([Member("archive/evil.py", b"import os")]).build(),
        },
    ),
    *rejects_saying(
        "zip-outside",
        {"leads out of the archive": {key: lambda n=n: archive(Member(n, b"x")) for key, n in _OUTSIDE.items()}},
    ),
    *either("zip-name", {key: lambda n=n: archive(Member(n, b"x")) for key, n in _NAMES.items()}),  # type: ignore[misc]
    *either(
        "zip-odd",
        {
            "comment-65535": lambda: archive(comment=b"c" * 65535),
            "comment-escape": lambda: archive(comment=b"\x1b[2J"),
            "record-comment": lambda: field(DATA, "central", comment=b"hello"),
            "zip-in-record": lambda: archive(Member("archive/inner.zip", archive())),
            "name-65k": lambda: archive(Member("a" * 65_000, b"")),
            "directory-entry": lambda: archive(Member("archive/data/", b"")),
            "empty-name": lambda: archive(Member("", b"")),
            "all-deflated-crc-zero": lambda: Archive(
                [replace(m, method=8, local={"crc": 0}, central={"crc": 0}) for m in GOOD]
            ).build(),
        },
    ),
    *converts(
        "zip-fine",
        {
            "plain": archive,
            "zip64": zip64,
            "described": described,
            "deflated": packed,
            "comment": lambda: archive(comment=b"hi"),
            "zip64-extra": lambda: small64(struct.pack("<2H2Q", 1, 16, 16, 16), nbytes=_FULL, packed=_FULL),
            "zip64-extra-idle": lambda: small64(struct.pack("<2H2Q", 1, 16, 16, 16)),
            "unicode-path": lambda: field(DATA, "central", extra=_unicode_path(DATA.encode())),
            "unicode-path-local": lambda: field(DATA, "local", extra=_unicode_path(DATA.encode())),
            "padding-like-a-path": lambda: field(DATA, "local", extra=b"FB\4\0upup"),
            "regular-file": lambda: field(DATA, "central", made_by=0x0314, attributes=0o100644 << 16),
            "directory-entry": lambda: archive(
                Member("archive/data/", b"", central={"made_by": 0x0314, "attributes": (0o040755 << 16) | 0x10})
            ),
            "utf8-flag": lambda: changed(DATA, flags=0x800),
        },
        W,
    ),
    # Records that the output does not need, an optimizer's for instance, are not read.
    *converts(
        "zip-unread",
        {
            "crc": lambda: archive(Member("archive/data/9", b"x", local={"crc": 1}, central={"crc": 1})),
            "crc-other": lambda: archive(Member("archive/x", b"x", local={"crc": 1}, central={"crc": 1})),
        },
        W,
    ),
    *converts("zip-no-checksums", {"all": zero_crc}, W, says="checksum"),
]
