"""torch.package: a zip with pickled objects, the Python source of their classes, and ``.data/<key>.storage``.

A package may hold any number of pickles, under names that its author chose; each is a member
of its own. None of its Python is run: modules are read as any pickled model is. Source:
``torch/package/package_exporter.py`` and ``package_importer.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from ..checkpoint import Checkpoint, Dict, Value
from ..errors import UnsupportedError, within
from ..inflated import credit
from ..limits import Limits
from ..pickles.nodes import Global
from ..source import read as read_bytes
from .protocol import Nested
from .torch_archive import ArchiveStorages, read_pickle
from .zipdir import ZipDirectory

NAME = "torch-package"

_MARKS = (".data/extern_modules", ".data/python_version")
_SCRIPTED = ".data/ts_code/"
_LONGEST = 1 << 20  # Bytes of a module's source that is looked at.


def root_of(names: Collection[str]) -> str | None:
    """The folder of the package, with its slash; None when this is not one."""
    for name in names:
        for mark in _MARKS:
            if name.endswith(f"/{mark}") and name.count("/") == 2:
                return name.removesuffix(mark)
    return None


def read(directory: ZipDirectory, root: str, nested: Nested, limits: Limits) -> Checkpoint:
    """Every pickle in the package, by its name."""
    data = f"{root}.data/"
    names = [name for name in directory.records if name.endswith(".pkl") and name.startswith(root)]
    names = [name for name in names if not name.startswith(data)]
    if not names:
        raise UnsupportedError("it is a torch.package without a pickled object in it")
    if any(name.startswith(f"{root}{_SCRIPTED}") for name in directory.records):
        raise UnsupportedError("it is a torch.package with TorchScript modules. Save them with torch.jit.save")
    storages = ArchiveStorages(directory, root, folder=".data/", ending=".storage")
    members: list[tuple[Value, Value]] = []
    seen: dict[str, Global] = {}
    sources: dict[str, str] = {}
    for name in names:
        tree, inside, pickled = read_pickle(directory, name, storages.load, nested, limits)
        members.append((name.removeprefix(root), tree))
        seen |= {one.full: one for one in pickled.globals}
        sources |= inside
    sources |= dict(_sources(directory, root, seen.values()))
    return Checkpoint(NAME, Dict(members), tuple(seen.values()), sources=sources, members=True)


def _sources(directory: ZipDirectory, root: str, names: Collection[Global]) -> Iterator[tuple[str, str]]:
    """The source of classes that the package carries, by their names."""
    classes: dict[str, dict[str, str]] = {}
    for name in names:
        path = root + name.module.replace(".", "/")
        record = next((r for r in (f"{path}.py", f"{path}/__init__.py") if r in directory.records), None)
        if record is None:
            continue
        if record not in classes:
            storage = directory.storage(record)
            with within(record):
                few = storage.nbytes <= min(_LONGEST, credit(storage.source, directory.limits))
                data = read_bytes(storage.source, storage.offset, storage.nbytes) if few else b""
            parts = re.split(r"^class (\w+)", data.decode("utf-8", "replace"), flags=re.MULTILINE)
            classes[record] = dict(zip(parts[1::2], parts[2::2], strict=True))
        if name.name in classes[record]:
            yield name.full, classes[record][name.name]
