"""torch.save since 1.6: a zip archive with ``data.pkl`` and one record for each storage.

Everything lies under one folder, whose name torch takes from the file's first name:
``<root>/data.pkl`` (the object), ``<root>/data/<key>`` (storages), ``<root>/byteorder``,
``<root>/version`` or ``<root>/.data/version``. Source: ``_save`` and ``_load`` in
``torch/serialization.py``, ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import zlib

from ..checkpoint import Checkpoint, Value
from ..errors import UnreadableError, UnsupportedError, within
from ..limits import Limits
from ..pickles.machine import run
from ..pickles.nodes import Node
from ..pickles.rebuild import resolve
from ..source import SliceSource, Source
from ..tensor import Storage
from .protocol import Nested
from .storages import parse_storage_id
from .zipdir import ZipDirectory, read_directory

NAME = "torch-zip"
_STEP = 1 << 18


def sniff(head: bytes, source: Source) -> bool:
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    directory = read_directory(source, limits)
    root = _root(directory)
    pickle = directory.storage(f"{root}data.pkl")
    warnings = []
    if not directory.checksums:
        warnings.append("the file has no checksums (CRC 0 everywhere), so its bytes could not be checked against them")
    storages = _Storages(directory, root)
    with within("data.pkl"):
        check_crc(pickle)
        span = SliceSource(pickle.source, pickle.offset, pickle.nbytes, "data.pkl")
        pickled = run(span, limits=limits)
        if pickled.end != span.nbytes:
            raise UnreadableError(f"{span.nbytes - pickled.end} bytes follow its end. The file is damaged or forged")
        tree, sources = resolve(pickled.root, storages.load, lambda inner: nested(inner).root)
    version = next(
        (directory.text(root + n) for n in ("version", ".data/version") if root + n in directory.records), ""
    )
    return Checkpoint(
        NAME, tree, pickled.globals, f"zip format {version}" if version else "", tuple(warnings), sources=sources
    )


def check_crc(storage: Storage) -> None:
    """UnreadableError if the bytes are not those that the checksum was made of."""
    if storage.crc32 is None:
        return
    crc, at = 0, 0
    buffer = memoryview(bytearray(min(_STEP, storage.nbytes)))
    while at < storage.nbytes:
        part = buffer[: min(_STEP, storage.nbytes - at)]
        storage.source.readinto(storage.offset + at, part)
        crc = zlib.crc32(part, crc)
        at += len(part)
    if crc != storage.crc32:
        raise UnreadableError(f"checksum {crc:08x}, expected {storage.crc32:08x}. The file is damaged")


def _root(directory: ZipDirectory) -> str:
    """The folder that holds ``data.pkl``, with its slash; an error that names what the archive is instead."""
    names = directory.records
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) > 1:
        raise UnreadableError("it holds several checkpoints side by side. Unpack the one you want")
    if not roots:
        raise _other(directory)
    root = roots[0]
    if f"{root}constants.pkl" in names or any(name.startswith(f"{root}code/") for name in names):
        raise UnsupportedError(
            "it is a TorchScript archive, which is not read yet. "
            "With torch: torch.save(torch.jit.load(FILE).state_dict(), NEW), then convert NEW"
        )
    return root


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


class _Storages:
    """Storages by key, made on first use and the same object ever after."""

    def __init__(self, directory: ZipDirectory, root: str) -> None:
        self.directory, self.prefix = directory, f"{root}data/"
        order = directory.text(f"{root}byteorder") if f"{root}byteorder" in directory.records else "little"
        if order not in ("little", "big"):
            raise UnreadableError(f"byteorder: it is {order!r}, neither little nor big. The file is damaged")
        self.big_endian = order == "big"
        self.known: dict[str, Storage] = {}

    def load(self, pid: Node) -> Value:
        found = parse_storage_id(pid)
        key = str(found.key)
        storage = self.known.get(key)
        if storage is None:
            name = f"{self.prefix}{key}"
            if name not in self.directory.records:
                raise UnreadableError(f"storage {key} is not in the archive. The file is damaged")
            storage = self.known[key] = self.directory.storage(name, big_endian=self.big_endian)
        if storage.nbytes != found.nbytes:
            raise UnreadableError(
                f"storage {key} is announced with {found.nbytes} bytes and has {storage.nbytes}. The file is damaged"
            )
        return found.typed(storage)
