"""Of a training checkpoint: the weights as a clean .pt and as safetensors, the rest that is plain data as JSON.

    python examples/clean_checkpoint.py last.ckpt released/

Leaves optimizer and schedulers behind, takes module. and _orig_mod. off the names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sdconvert


def clean(source: Path, directory: Path, key: str | None = None) -> list[Path]:
    """The three files, in `directory`. ChoiceError when there are several state dicts and no `key` is given."""
    directory.mkdir(parents=True, exist_ok=True)
    names = sdconvert.Names(strip_prefix="auto")
    weights, pickled, extras = (directory / f"{source.stem}{end}" for end in (".safetensors", ".pt", ".json"))
    report = sdconvert.convert(source, weights, key=key, names=names, extras=extras)
    sdconvert.convert(weights, pickled)
    print(f"{report.source_bytes:,} bytes of checkpoint, {report.nbytes:,} bytes of weights")
    for skipped in report.skipped:
        print(f"  left out: {skipped.name} ({skipped.why})")
    return [weights, pickled, extras]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        clean(Path(sys.argv[1]), Path(sys.argv[2]))
    except sdconvert.ChoiceError as error:
        print("several state dicts:", *(f"{one.key} ({one.tensors} tensors)" for one in error.candidates), sep="\n  ")
        raise SystemExit(1) from None
    except sdconvert.SdconvertError as error:
        raise SystemExit(f"error: {error}") from None
