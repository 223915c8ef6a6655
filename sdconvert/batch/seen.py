"""Which outputs have had a source already: 12 bytes in memory for each of a table's places, a third of them free."""

from __future__ import annotations

from array import array
from hashlib import blake2b


class Outputs:
    """Outputs, and the source of each, by hashes of 64 and 32 bits.

    Two of a million outputs have one hash with a probability of 3 in 10^8; one job would then be refused.
    """

    def __init__(self) -> None:
        self._count = 0
        self._outputs, self._sources = self._table(1 << 10)

    def source_of(self, output: str, source: str) -> bool | None:
        """None for an output that is new, and now is of `source`; else whether it is of this `source` already."""
        if 3 * self._count >= 2 * len(self._outputs):
            self._grow()
        key, mark = _hash(output, 8) or 1, _hash(source, 4)  # 0 is a free place.
        place = self._place(key)
        if self._outputs[place] == key:
            return self._sources[place] == mark
        self._outputs[place], self._sources[place] = key, mark
        self._count += 1
        return None

    def _place(self, key: int) -> int:
        last = len(self._outputs) - 1
        place = key & last
        while self._outputs[place] not in (0, key):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        old = zip(self._outputs, self._sources, strict=True)
        self._outputs, self._sources = self._table(2 * len(self._outputs))
        for key, mark in old:
            if key:
                place = self._place(key)
                self._outputs[place], self._sources[place] = key, mark

    @staticmethod
    def _table(places: int) -> tuple[array[int], array[int]]:
        return array("Q", bytes(8 * places)), array("I", bytes(4 * places))


def _hash(text: str, nbytes: int) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=nbytes).digest(), "big")
