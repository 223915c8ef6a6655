"""The corpus: real checkpoints of strangers, beside the repository, and what must become of each."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

_BESIDE = Path(__file__).parents[2] / "shared" / "corpus"
CORPUS = Path(os.environ.get("SDCONVERT_CORPUS") or _BESIDE)


@dataclass(frozen=True)
class Sample:
    """One file of the manifest: `tensors` maps names to dtype, shape and SHA-256 of the contiguous bytes."""

    path: Path
    expect: str
    tensors: dict[str, tuple[str, tuple[int, ...], str]]
    sha256: str

    def __str__(self) -> str:
        return str(self.path.relative_to(CORPUS))


def samples() -> list[Sample]:
    """Every file of the manifest; none where there is no corpus."""
    manifest = CORPUS / "manifest.json"
    if not manifest.is_file():
        return []
    return [
        Sample(
            CORPUS / entry["repo"].replace("/", "+") / entry["path"],
            entry["expect"],
            {name: (dtype, tuple(shape), digest) for name, (dtype, shape, digest) in entry["tensors"].items()},
            entry["sha256"],
        )
        for entry in json.loads(manifest.read_text())
    ]
