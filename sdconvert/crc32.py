"""CRC-32 of two strings joined, from their own: what lets threads share one checksum.

A CRC is a remainder of polynomials over GF(2), so appending n bytes multiplies the first
remainder by x**(8n); the powers are made by squaring, as zlib's ``crc32_combine`` does.
Bit 31 of a number is the coefficient of x**0.
"""

from __future__ import annotations

_POLYNOMIAL = 0xEDB88320


def _multiply(a: int, b: int) -> int:
    """a * b modulo the CRC polynomial."""
    product, mask = 0, 1 << 31
    while a:
        if a & mask:
            product ^= b
            a ^= mask
        mask >>= 1
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _squares() -> tuple[int, ...]:
    power, powers = 1 << 30, []
    for _ in range(64):
        powers.append(power)
        power = _multiply(power, power)
    return tuple(powers)


_X_POWERS = _squares()  # x**(2**i)


def combine(first: int, second: int, second_nbytes: int) -> int:
    """The CRC-32 of a string of CRC `first` followed by `second_nbytes` bytes of CRC `second`."""
    shift, bits, i = 1 << 31, second_nbytes, 3
    while bits:
        if bits & 1:
            shift = _multiply(_X_POWERS[i], shift)
        bits >>= 1
        i += 1
    return _multiply(shift, first) ^ second
