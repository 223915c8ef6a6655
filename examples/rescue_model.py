"""Weights of a whole pickled model whose class is gone, as safetensors; then back into a class of your own.

    python examples/rescue_model.py examples/charlm.pt charlm.safetensors

The first half needs no torch. Nothing in the file is run.
"""

from __future__ import annotations

import sys

import sdconvert


def rescue(source: str, output: str) -> sdconvert.Report:
    """Look before, convert, and say which classes the file wanted."""
    found = sdconvert.inspect(source)
    if found.dangerous_globals:
        print("careful with this file elsewhere, it names", ", ".join(found.dangerous_globals))
    report = sdconvert.convert(source, output)
    print(f"{report.tensors} tensors, {report.nbytes:,} bytes; classes that were not needed:", *report.unknown_globals)
    assert sdconvert.verify(source, output).equal
    return report


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        rescue(sys.argv[1], sys.argv[2])
    except sdconvert.SdconvertError as error:
        raise SystemExit(f"error: {error}") from None
