"""The CRC-32 that all containers use, and that of strings joined."""

from __future__ import annotations

import subprocess
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st

from sdconvert.crc32 import combine, crc32

starts = st.integers(0, 2**32 - 1)


@given(st.binary(max_size=5000), starts)
def test_it_is_what_zlib_gives(data: bytes, start: int) -> None:
    assert crc32(data) == zlib.crc32(data)
    assert crc32(memoryview(bytearray(data)), start) == zlib.crc32(data, start)


def test_large_data_too() -> None:
    data = bytes(range(251)) * 40_000
    assert crc32(data) == zlib.crc32(data)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_strings_joined(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_one_byte_doubled_to_64_mebibytes() -> None:
    nbytes, crc = 1, zlib.crc32(b"\x5a")
    while nbytes < 64 << 20:
        nbytes, crc = 2 * nbytes, combine(crc, crc, nbytes)
    assert crc == zlib.crc32(b"\x5a" * nbytes)


def test_without_zlib_ng_zlib_does_it() -> None:
    code = "import sys; sys.modules['zlib_ng'] = None; from sdconvert.crc32 import crc32; print(crc32.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "zlib\n"
