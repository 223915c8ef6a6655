"""A fuzzer in plain Python, for where atheris is not, and blind changes of bytes; `structure` has those that see."""

from __future__ import annotations

import random
import resource
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .holding import SECONDS, timed

if TYPE_CHECKING:  # The package must not be imported before it is instrumented.
    from .targets import Target

_MEMORY = 512 << 20
_NUMBERS = tuple(
    struct.pack(form, value)
    for form, values in (
        ("<B", (0, 1, 0x7F, 0x80, 0xFF)),
        ("<H", (0, 0xFFFF, 0x7FFF)),
        ("<I", (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)),
        ("<Q", (0, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)),
    )
    for value in values
)
_OPCODES = b"()NtRb0123aeulsdq]}\x85\x86\x87\x88\x89\x81\x92\x93\x94\x8f\x90\x91QPo."
_MAGICS = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08", b"\x1f\x8b\x08", b"\x80\x04\x95")
_TEXTS = (b"ctorch._utils\n_rebuild_tensor_v2\n", b'"__metadata__"', b'"data_offsets"', b"\xed\xa0\x80")
_PIECES = (*(bytes([op]) for op in _OPCODES), *_MAGICS, *_TEXTS)


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """A seed with one to six small things done to it."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0:
                if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
            case 1:
                number = chance.choice(_NUMBERS)
                data[at : at + len(number)] = number
            case 2:
                data[at:at] = chance.choice(_PIECES)
            case 3:
                del data[at : at + chance.randint(1, 16)]
            case 4:
                length = chance.randint(1, 64)
                data[at:at] = data[(start := chance.randrange(len(data) + 1)) : start + length]
            case 5:
                other = chance.choice(seeds)
                start = chance.randrange(len(other) + 1)
                data[at : at + chance.randint(0, 64)] = other[start : start + chance.randint(1, 128)]
            case 6:
                del data[at:]
        if not data:
            data = bytearray(b"\x80")
    return repaired(bytes(data)) if data.startswith(b"PK") and chance.random() < 0.7 else bytes(data)


def repaired(data: bytes) -> bytes:
    """A zip with the checksums, sizes and offsets put right where that is easy, so that what is inside is reached."""
    out, entries, at = bytearray(), [], 0
    while (at := data.find(b"PK\3\4", at)) >= 0 and at + 30 <= len(data):
        name_size, extra_size = struct.unpack_from("<2H", data, at + 26)
        start = at + 30 + name_size + extra_size
        ends = [end for end in (data.find(b"PK\3\4", start), data.find(b"PK\1\2", start)) if end >= 0]
        payload, name = data[start : min(ends, default=len(data))], data[at + 30 : at + 30 + name_size]
        for size in (16, 24):  # A descriptor, as torch writes them, belongs to the header and not to the data.
            if payload[-size:].startswith(b"PK\7\x08"):
                payload = payload[:-size]
        fields = (0, 0, 0, 0, zlib.crc32(payload), len(payload), len(payload), len(name))
        entries.append(struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 20, *fields, 0, 0, 0, 0, 0, len(out)) + name)
        out += struct.pack("<4s5H3I2H", b"PK\3\4", 20, *fields, 0) + name + payload
        at = max(start, at + 4)
    directory = b"".join(entries)
    return (
        bytes(out)
        + directory
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), len(out), 0)
    )


@dataclass(frozen=True)
class Done:
    """What a run tried."""

    inputs: int
    converted: int
    """Of them, those whose weights came out: the others were refused somewhere on the way."""


def fuzz(
    target: Target,
    draw: Callable[[], bytes],
    *,
    seconds: float = 1e9,
    runs: int = 1 << 62,
    slow: float = SECONDS,
) -> Done:
    """Tries what `draw` gives; whatever the target raises goes through, with the input as a note.

    An input may take `slow` seconds of the processor, so that a busy machine is no hang, and may not
    make this process larger by 512 MB.
    """
    done, converted, until = 0, 0, time.monotonic() + seconds
    held, largest = timed(target, slow), _memory() + _MEMORY
    while done < runs and time.monotonic() < until:
        data = draw()
        try:
            converted += held(data)
            assert _memory() < largest, "too much memory"
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                error.args = (*error.args, f"input {done}: {data.hex()}")
            raise
        done += 1
    return Done(done, converted)


def _memory() -> int:
    """The largest size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
