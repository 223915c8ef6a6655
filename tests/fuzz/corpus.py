"""Where a fuzzer begins: small sound files of each kind, and the small hostile ones."""

from __future__ import annotations

import sys
from pathlib import Path

from ..hostile import cases
from ..hostile.pickling import pickled

_LARGEST = 6000
_BOMBS = (
    "bomb-unpacked",
    "bomb-gone-gzip",
    "bomb-deflated",
    "share",
    "script-classes",
    "script-spaces",
)  # Slow to build.
_CLASSES = {
    "pickle": ("exec", "malformed", "storage", "name", "bomb"),
    "zip": ("zip", "storage", "name", "script", "exec-in"),
    "legacy": ("storage-legacy", "exec-refused-legacy", "container-fine"),
    "tar": ("storage-tar", "container-tar", "container-fine"),
    "gzip": ("container-gzip", "container-fine"),
    "safetensors": ("st",),
    "bare": ("exec-refused-bare", "container-pickle", "malformed"),
}


def seeds(target: str) -> list[bytes]:
    """The seed files of a target, without repetitions, the smallest first."""
    found = set()
    for case in cases.CASES:
        wanted = target == "whole" or case.name.startswith(_CLASSES[target])
        if wanted and not case.name.startswith(_BOMBS):
            data = case.build()
            if target in ("pickle", "bare"):
                data = _inner_pickle(data)
            if 0 < len(data) < _LARGEST:
                found.add(data)
    return sorted(found, key=lambda data: (len(data), data))


def _inner_pickle(data: bytes) -> bytes:
    """The pickle of an honest archive made by the cases: it lies right after the first header."""
    head = b"archive/data.pkl"
    at = data.find(head)
    if not data.startswith(b"PK") or at < 0:
        return data if data[:1] == b"\x80" else pickled(b"N")
    return data[at + len(head) :].partition(b"PK\3\4")[0]


def write(target: str, folder: Path) -> None:
    """The seed files of a target, one to a file, as libFuzzer wants them."""
    for number, data in enumerate(seeds(target)):
        (folder / f"seed{number:05}").write_bytes(data)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
