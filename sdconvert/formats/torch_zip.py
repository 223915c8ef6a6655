"""torch.save since 1.6: a zip archive with ``data.pkl`` and one record for each storage.

Everything lies under one folder, whose name torch takes from the file's first name:
``<root>/data.pkl`` (the object), ``<root>/data/<key>`` (storages), ``<root>/byteorder``,
``<root>/version`` or ``<root>/.data/version``. Source: ``_save`` and ``_load`` in
``torch/serialization.py``, ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..errors import UnreadableError, UnsupportedError
from ..limits import Limits
from ..source import Source
from . import torch_export, torch_package, torchscript, torchscript_legacy
from .archive import ZipFiles, read_files
from .protocol import Nested, ZipFormat
from .torch_archive import read_archive
from .zipdir import ZipDirectory, read_directory

NAME = "torch-zip"

KINDS: tuple[ZipFormat, ...] = (torch_export, torchscript_legacy, torch_package)


def sniff(head: bytes, source: Source) -> bool:
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    directory = read_directory(source, limits)
    root = _root(directory)
    if not root:
        return _without_pickle(directory, nested, limits)
    if torchscript.accepts(directory.records, root):
        return torchscript.read(directory, root, nested, limits)
    return read_archive(directory, root, nested, limits)


def _without_pickle(directory: ZipDirectory, nested: Nested, limits: Limits) -> Checkpoint:
    """What a zip archive without ``<root>/data.pkl`` holds."""
    for kind in KINDS:
        root = kind.root_of(directory.records.keys())
        if root is not None:
            return kind.read(directory, root, nested, limits)
    error = _foreign(directory)
    if error is not None:
        raise error
    return read_files("zip", ZipFiles(directory), nested)


def _root(directory: ZipDirectory) -> str:
    """The folder that holds ``data.pkl``, with its slash; "" when there is none."""
    names = directory.records
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) > 1:
        raise UnreadableError("it holds several checkpoints side by side. Unpack the one you want")
    return roots[0] if roots else ""


def _foreign(directory: ZipDirectory) -> UnreadableError | UnsupportedError | None:
    """The error that says what a zip archive without ``<root>/data.pkl`` is, if it is known to be no checkpoint."""
    names = list(directory.records)
    ends = tuple(names)

    def has(suffix: str) -> bool:
        return any(name.endswith(suffix) for name in ends)

    if "data.pkl" in directory.records:
        return UnreadableError("its records are not in a folder, as torch's are. Zip the folder, not what is in it")
    if "config.json" in names and has("model.weights.h5"):
        return UnsupportedError("it is a Keras model. Keras can save its weights itself")
    if names and all(name.endswith(".npy") for name in names):
        return UnsupportedError("it is a numpy archive (.npz), not a torch checkpoint")
    return None
