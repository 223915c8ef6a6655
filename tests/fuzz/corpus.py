"""Where a fuzzer begins: the small files of ``tests/hostile``, sound ones and hostile ones, and what torch writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from ..hostile import cases
from ..hostile.pickling import pickled
from . import layouts

_LARGEST = 6000
# Large, and slow to build.
_BOMBS = (
    "bomb-unpacked",
    "bomb-gone-gzip",
    "bomb-deflated",
    "growth",
    "share",
    "script-classes",
    "script-spaces",
    "json-bomb",
)
# The seeds of targets that are not a container of their own, by the beginnings of cases' names.
BY_NAME: Mapping[str, tuple[str, ...]] = {
    "machine": ("exec", "malformed", "storage", "name", "bomb"),
    "torchscript": ("script", "container-odd-jit"),
    "whole": ("",),
}
# The function of `written` that gives what torch writes of a target.
WRITTEN: Mapping[str, str] = {
    "machine": "zips",
    "torch-zip": "zips",
    "torch-legacy": "legacy",
    "pickle": "pickles",
    "torchscript": "scripts",
    "gzip": "gzipped",
}


@lru_cache(1)
def _small() -> tuple[tuple[str, bytes], ...]:
    built = ((case.name, case.build()) for case in cases.CASES if not case.name.startswith(_BOMBS))
    return tuple((name, data) for name, data in built if 0 < len(data) < _LARGEST)


def seeds(target: str) -> list[bytes]:
    """The seed files of a target, without repetitions, the smallest first."""
    if target in layouts.LAYOUTS:
        found = set(layouts.seeds(target))
    elif target not in BY_NAME:
        found = set(_recognised(target))
    else:
        found = {data for name, data in _small() if name.startswith(BY_NAME[target])}
    found |= set(_written(target))
    if target == "machine":
        found = {_inner_pickle(data) for data in found}
    return sorted(found, key=lambda data: (len(data), data))


def _written(target: str) -> Iterator[bytes]:
    """What torch writes of it; torch is not imported for the others."""
    if target in WRITTEN:
        from . import written

        yield from (data for data in getattr(written, WRITTEN[target])() if len(data) < _LARGEST)


def _recognised(container: str) -> Iterator[bytes]:
    """The files that a container takes for its own, whatever it says of them then; of archives, the pickle too."""
    from sdconvert.formats import FORMATS
    from sdconvert.source import MemorySource

    for name, data in _small():
        options = (data, _inner_pickle(data)) if name.startswith(BY_NAME["machine"]) else (data,)
        for option in options:
            source = MemorySource(option)
            first = next((one for one in FORMATS if one.sniff(option[:512], source)), None)
            if first is not None and container == first.NAME:
                yield option


def _inner_pickle(data: bytes) -> bytes:
    """The pickle of an honest archive made by the cases: it lies right after the first header; of torch's, wherever."""
    head = b"archive/data.pkl"
    at = data.find(head)
    if not data.startswith(b"PK") or at < 0:
        return data if data[:1] == b"\x80" else pickled(b"N")
    if (fine := data.find(b"\x80\2", at, at + 128)) >= 0:  # After what aligns it.
        at = fine - len(head)
    return data[at + len(head) :].partition(b"PK\3\4")[0].partition(b"PK\7\x08")[0] or b"."


def write(target: str, folder: Path) -> None:
    """The seed files of a target, one to a file, as libFuzzer wants them."""
    for number, data in enumerate(seeds(target)):
        (folder / f"seed{number:05}").write_bytes(data)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
