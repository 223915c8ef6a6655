"""A mutator that knows what is in a file, so that what it changes is not stopped at the door.

A file is read as what it is (a zip, a tar, gzip, a stream of pickles, JSON, safetensors, or files in a `framing`), a
part of it that a reader looks at is changed, and all around it, lengths, checksums and offsets, is written anew. A
pickle is changed by opcodes: other arguments, whole values in place of one (`values`), opcodes put in, taken out or
taken from elsewhere.
"""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from ..hostile import pickling as p
from ..hostile import zips
from ..hostile.legacy import tar
from . import framing, mutate
from .values import NUMBERS, WORDS, Values

_TYPES_OF_NUMBER = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"}
_TYPES_OF_TEXT = {"BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"}
_LOOSE = tuple(bytes([code]) for code in b"()NtRb012aeulsd]}\x85\x86\x87\x88\x89\x81\x92\x93\x94\x8f\x90\x91Qo")
_JSON: tuple[object, ...] = (
    *NUMBERS,
    1e300,
    -0.5,
    True,
    None,
    "",
    "w",
    "F32",
    "I64",
    "../x",
    "é\x1b",
    [],
    {},
    [0, 16],
    [[]],
    {"w": "w"},
)
Opcodes = tuple[tuple[str, bytes], ...]
"""The opcodes of a pickle, each with its argument; without frames, whose lengths would have to be right."""


class Mutator:
    """Changes seeds, mostly those that are `sound`; parts of pickles are taken from all of them."""

    def __init__(self, seeds: Sequence[bytes], sound: Sequence[bytes], chance: random.Random) -> None:
        from sdconvert.pickles.rebuild import REBUILD

        self.seeds, self.sound, self.chance = seeds, sound or seeds, chance
        self.values = Values(chance, tuple(REBUILD))
        self.pool: list[Opcodes] = []

    def next(self) -> bytes:
        """A seed, rather a large one, with one to three things changed."""
        among = self.sound if self.chance.random() < 0.8 else self.seeds
        data = max(self.chance.choice(among), self.chance.choice(among), key=len)
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            data = self.changed(data)
        return data or b"\x80"

    def changed(self, data: bytes, depth: int = 0) -> bytes:
        """`data` with one thing in it changed."""
        if self.chance.random() < 0.04:
            return self._bytes(data)
        if depth < 4:
            for change in (self._framed, self._zip, self._gzip, self._tar, self._safetensors, self._json):
                if (found := change(data, depth)) is not None:
                    return found
        return self._pickles(data)

    def _bytes(self, data: bytes) -> bytes:
        return mutate.mutated([data or b"\x80"], self.chance)

    def _framed(self, data: bytes, depth: int) -> bytes | None:
        """Of a framing, one file; it stays as it is whether its zips are repaired."""
        raw = data.startswith(framing.RAW)
        if not raw and not data.startswith(framing.REPAIRED):
            return None
        files = self._members(framing.unpack(data, repair=False), depth)
        sign = framing.RAW if raw else framing.REPAIRED
        return b"".join(sign + name.encode() + b"\n" + content for name, content in files.items())

    def _zip(self, data: bytes, depth: int) -> bytes | None:
        if (files := _zipped(data)) is None:
            return None
        method = 8 if self.chance.random() < 0.1 else 0
        changed = self._members(files, depth)
        return zips.Archive([zips.Member(name, content, method) for name, content in changed.items()]).build()

    def _tar(self, data: bytes, depth: int) -> bytes | None:
        files = _tarred(data)
        return None if files is None else tar(self._members(files, depth).items())

    def _members(self, files: Mapping[str, bytes], depth: int) -> dict[str, bytes]:
        """One member changed, or, now and then, gone, exchanged with another, or under another name."""
        files, chance = dict(files), self.chance
        if not files:
            return {"w": b""}
        # A storage is only bytes, what is told of it is elsewhere; a version or a byte order tells little.
        told = [name for name, data in files.items() if len(data) > 8 and not data.startswith(zips.FLOATS[:4])]
        name = chance.choice(told if told and chance.random() < 0.95 else [*files])
        match chance.randrange(30):
            case 0:
                del files[name]
            case 1:
                files[chance.choice((*files, *WORDS))] = files[name]
            case 2:
                files[name] = chance.choice(self.seeds)
            case _:
                files[name] = self.changed(files[name], depth + 1)
        # tarfile gives bytes that are no text as half characters, which no writer takes.
        return {name.encode("utf-8", "replace").decode(): content for name, content in files.items()}

    def _gzip(self, data: bytes, depth: int) -> bytes | None:
        inner = _unpacked(data)
        return None if inner is None else gzip.compress(self.changed(inner, depth + 1), 1, mtime=0)

    def _safetensors(self, data: bytes, _: int) -> bytes | None:
        nbytes = int.from_bytes(data[:8], "little")
        if not 2 <= nbytes <= len(data) - 8 or (header := self._json(data[8 : 8 + nbytes], 0)) is None:
            return None
        return struct.pack("<Q", len(header)) + header + data[8 + nbytes :]

    def _json(self, data: bytes, _: int) -> bytes | None:
        if data[:1] not in (b"{", b"["):
            return None
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return json.dumps(self._other(value), ensure_ascii=self.chance.random() < 0.9).encode("utf-8", "replace")

    def _other(self, value: object, depth: int = 0) -> object:
        """JSON with one thing in it changed, at any depth."""
        chance = self.chance
        if not isinstance(value, dict | list) or not value or (depth and chance.random() < 0.1):
            like = [one for one in _JSON if type(one) is type(value)] if chance.random() < 0.5 else None
            return chance.choice(like or (*_JSON, [value]))
        if isinstance(value, list):
            at = chance.randrange(len(value))
            items = list(value)
            items[at : at + 1] = chance.choice(([], [items[at], items[at]], *[[self._other(items[at], depth + 1)]] * 6))
            return items
        key, pairs = chance.choice([*value]), dict(value)
        match chance.randrange(8):
            case 0:
                del pairs[key]
            case 1:
                pairs[chance.choice((*WORDS, *value))] = pairs[key]
            case _:
                pairs[key] = self._other(pairs[key], depth + 1)
        return pairs

    def _pickles(self, data: bytes) -> bytes:
        """Of pickles one after the other, one; what follows them stays. What is no pickle is changed by bytes."""
        streams, rest = _parsed(data)
        if not streams:
            return self._bytes(data)
        parts = [b"".join(code for _, code in one) for one in streams]
        # The largest is mostly the one with the tensors.
        largest = max(range(len(parts)), key=lambda at: len(parts[at]))
        at = largest if self.chance.random() < 0.7 else self.chance.randrange(len(parts))
        self._remember(streams[at])
        parts[at] = self._opcodes(streams[at])
        return b"".join(parts) + (self._bytes(rest) if rest and self.chance.random() < 0.05 else rest)

    def _remember(self, codes: Opcodes) -> None:
        if len(self.pool) < 200:
            self.pool.append(codes)

    def _opcodes(self, codes: Opcodes) -> bytes:
        chance, parts = self.chance, [code for _, code in codes]
        at = chance.randrange(len(codes))
        match chance.randrange(16):
            case 0:
                del parts[at : at + chance.randint(1, 3)]
            case 1:
                parts.insert(at, chance.choice(_LOOSE))
            case 2:
                parts.insert(at, p.get(chance.randrange(8)) if chance.random() < 0.5 else p.put(chance.randrange(8)))
            case 3:
                other = chance.choice(self.pool)
                start = chance.randrange(len(other))
                parts[at:at] = [code for _, code in other[start : start + chance.randint(1, 12)]]
            case 4:
                parts[at:at] = parts[(start := chance.randrange(len(parts))) : start + chance.randint(1, 12)]
            case 5:
                parts.insert(at, self.values.value() + chance.choice((p.POP, b"", b"\x86")))
            case 6:
                parts[-1:] = [self.values.value(), chance.choice((b"\x86", p.BUILD, p.POP, b"0" * 2)), p.STOP]
            case 7:
                parts[:-1] = [self.values.value()]
            case _:
                self._argument(codes, parts)
        return b"".join(parts)

    def _argument(self, codes: Opcodes, parts: list[bytes]) -> None:
        """One argument becomes another: a number, a text, a global; or a whole value stands in its place."""
        chance = self.chance
        wanted = chance.choice((_TYPES_OF_NUMBER, _TYPES_OF_TEXT, {"GLOBAL"}, _TYPES_OF_NUMBER | _TYPES_OF_TEXT))
        places = [at for at, (name, _) in enumerate(codes) if name in wanted]
        if not places:
            return
        at = chance.choice(places)
        others: Mapping[str, Callable[[], bytes]] = {
            **dict.fromkeys(_TYPES_OF_NUMBER, lambda: p.integer(chance.choice(NUMBERS))),
            **dict.fromkeys(_TYPES_OF_TEXT, lambda: p.text(chance.choice(WORDS))),
            "GLOBAL": lambda: p.name(chance.choice(self.values.names)),
        }
        parts[at] = others[codes[at][0]]() if chance.random() < 0.7 else self.values.value()


@lru_cache(4096)
def _parsed(data: bytes) -> tuple[tuple[Opcodes, ...], bytes]:
    """The pickles at the beginning, and what follows the last."""
    streams: list[Opcodes] = []
    at = 0
    while at < len(data) and len(streams) < 8:
        found = _one(data, at)
        if found is None:
            break
        codes, at = found
        streams.append(codes)
    return tuple(streams), data[at:]


def _one(data: bytes, start: int) -> tuple[Opcodes, int] | None:
    stream = io.BytesIO(data)
    stream.seek(start)
    found = []
    try:
        for opcode, _, at in pickletools.genops(stream):
            assert at is not None
            found.append((opcode.name, at))
    except Exception:  # pickletools tells of damage by many kinds of errors, and none of them is of interest.
        return None
    ends = [at for _, at in found[1:]] + [stream.tell()]
    return tuple(
        (name, data[at:end]) for (name, at), end in zip(found, ends, strict=True) if name != "FRAME"
    ), stream.tell()


@lru_cache(4096)
def _zipped(data: bytes) -> Mapping[str, bytes] | None:
    if not data.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return {info.filename: file.read(info) for info in file.infolist() if info.file_size < 1 << 20}
    except Exception:  # zipfile tells of damage by many kinds of errors, too.
        return None


@lru_cache(1024)
def _tarred(data: bytes) -> Mapping[str, bytes] | None:
    if data[257:262] != b"ustar" and len(data) % 512:
        return None
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as file:
            opened = ((info.name, file.extractfile(info)) for info in file if info.isreg())
            return {name: content.read() for name, content in opened if content is not None} or None
    except Exception:
        return None


@lru_cache(1024)
def _unpacked(data: bytes) -> bytes | None:
    if not data.startswith(b"\x1f\x8b"):
        return None
    try:
        return zlib.decompressobj(31).decompress(data, 1 << 16)
    except zlib.error:
        return None
