"""All the cases, class by class."""

from __future__ import annotations

from . import (
    bombs,
    containers,
    execution,
    growth,
    indexes,
    json_bombs,
    malformed,
    naming,
    safetensors_files,
    scripts,
    shares,
    storages,
    zip_lies,
)
from .case import Case

CLASSES: dict[str, tuple[Case, ...]] = {
    "code execution": tuple(execution.CASES),
    "resource bombs": (*bombs.CASES, *growth.CASES, *shares.CASES),
    "malformed pickles": tuple(malformed.CASES),
    "storage lies": tuple(storages.CASES),
    "zip lies": tuple(zip_lies.CASES),
    "wrong containers": (*containers.CASES, *scripts.CASES),
    "safetensors input": (*safetensors_files.CASES, *json_bombs.CASES),
    "index files": tuple(indexes.CASES),
    "names": tuple(naming.CASES),
}
"""The tenth class, outputs and faults, is in ``test_places.py`` and ``tests/test_faults.py``."""

CASES: tuple[Case, ...] = tuple(case for cases in CLASSES.values() for case in cases)
