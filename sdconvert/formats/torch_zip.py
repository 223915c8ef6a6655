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
from . import torchscript
from .protocol import Nested
from .torch_archive import read_archive
from .zipdir import ZipDirectory, read_directory

NAME = "torch-zip"


def sniff(head: bytes, source: Source) -> bool:
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    directory = read_directory(source, limits)
    root = _root(directory)
    if torchscript.accepts(directory.records, root):
        return torchscript.read(directory, root, nested, limits)
    return read_archive(directory, root, nested, limits)


def _root(directory: ZipDirectory) -> str:
    """The folder that holds ``data.pkl``, with its slash; an error that names what the archive is instead."""
    names = directory.records
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) > 1:
        raise UnreadableError("it holds several checkpoints side by side. Unpack the one you want")
    if not roots:
        raise _other(directory)
    return roots[0]


def _other(directory: ZipDirectory) -> UnreadableError | UnsupportedError:
    """What a zip archive without ``<root>/data.pkl`` is."""
    names = list(directory.records)
    ends = tuple(names)

    def has(suffix: str) -> bool:
        return any(name.endswith(suffix) for name in ends)

    inside = [name for name in names if name.endswith((".pt", ".pth", ".ckpt", ".th", ".bin", ".safetensors"))]
    if "data.pkl" in directory.records:
        return UnreadableError("its records are not in a folder, as torch's are. Zip the folder, not what is in it")
    if has("archive_format") or has("serialized_exported_program.json"):
        return UnsupportedError("it is a torch.export program (.pt2), which is not read yet. Save its state_dict()")
    if has(".data/extern_modules"):
        return UnsupportedError("it is a torch.package, which is not read yet. Save the model's state_dict()")
    if has("model.json") and any("tensors/" in name for name in names):
        return UnsupportedError("it is a TorchScript archive of torch 1.0, which is not read yet")
    if "config.json" in names and has("model.weights.h5"):
        return UnsupportedError("it is a Keras model. Keras can save its weights itself")
    if names and all(name.endswith(".npy") for name in names):
        return UnsupportedError("it is a numpy archive (.npz), not a torch checkpoint")
    if inside:
        shown = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        return UnsupportedError(f"it is an archive around other files ({shown}). Unpack it and convert one of them")
    return UnreadableError("it is a zip archive, but no torch checkpoint: it has no <folder>/data.pkl")
