"""What the zip containers of torch share: ``<root>/data.pkl`` and a record for each of its storages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..checkpoint import Checkpoint, Value
from ..crc32 import crc32
from ..dtypes import DType
from ..errors import UnreadableError, within
from ..limits import Limits
from ..pickles.machine import Pickled, run
from ..pickles.nodes import Node
from ..pickles.rebuild import resolve
from ..pickles.resolver import LoadStorage
from ..source import SliceSource
from ..source import read as read_bytes
from ..tensor import Storage
from .protocol import Inner, Nested
from .storages import parse_storage_id
from .zipdir import ZipDirectory

_STEP = 1 << 18
_ZIP = b"PK\x03\x04"


def read_archive(
    directory: ZipDirectory, root: str, nested: Nested, limits: Limits, *, one_dtype: bool = True
) -> Checkpoint:
    """The object in ``data.pkl`` below the folder `root` (with its slash). `one_dtype` is `ArchiveStorages`'."""
    warnings = []
    if not directory.checksums:
        warnings.append("the file has no checksums (CRC 0 everywhere), so its bytes could not be checked against them")
    storages = ArchiveStorages(directory, root, one_dtype=one_dtype)
    tree, sources, pickled = read_pickle(directory, f"{root}data.pkl", storages.load, nested, limits)
    return Checkpoint("torch-zip", tree, pickled.globals, _made_by(directory, root), tuple(warnings), sources=sources)


def archive_version(directory: ZipDirectory, root: str) -> str:
    """What the archive says of its own version, "" where it does not. UnreadableError when that is damaged."""
    record = next((root + name for name in ("version", ".data/version") if root + name in directory.records), "")
    return directory.text(record) if record else ""


def _made_by(directory: ZipDirectory, root: str) -> str:
    """The versions of torch that write such an archive, as far as its records tell.

    ``byteorder`` came with 2.1 (torch's own notes on the file format, pytorch#118719), ``.format_version`` and
    ``.storage_alignment`` with 2.7 (pytorch#143879 and #147788), the zip archive itself with 1.6.
    """
    version = archive_version(directory, root)
    rest = f", archive version {version}" if version not in ("", "3") else ""
    for record, versions in ((".format_version", "2.7 or later"), ("byteorder", "2.1 to 2.6")):
        if root + record in directory.records:
            return f"torch {versions}{rest}"
    return f"torch 1.6 to 2.0{rest}"


def read_pickle(
    directory: ZipDirectory, record: str, load: LoadStorage, nested: Nested, limits: Limits
) -> tuple[Value, Mapping[str, str], Pickled]:
    """The object in a record, the source texts of classes that it carries, and the pickle itself, with the names
    that pickles inside it mention too."""
    storage = directory.storage(record)
    name = record.partition("/")[2] or record
    with within(name):
        check_crc(storage)
        span = SliceSource(storage.source, storage.offset, storage.nbytes, name)
        pickled = run(span, limits=limits)
        if pickled.end != span.nbytes:
            raise UnreadableError(f"{span.nbytes - pickled.end} bytes follow its end. The file is damaged or forged")
        inner = Inner(nested)
        tree, sources = resolve(pickled.root, load, inner)
    return tree, sources, replace(pickled, globals=inner.beside(pickled.globals))


def check_crc(storage: Storage) -> None:
    """UnreadableError if the bytes are not those that the checksum was made of."""
    if storage.crc32 is None:
        return
    crc, at = 0, 0
    buffer = memoryview(bytearray(min(_STEP, storage.nbytes)))
    while at < storage.nbytes:
        part = buffer[: min(_STEP, storage.nbytes - at)]
        storage.source.readinto(storage.offset + at, part)
        crc = crc32(part, crc)
        at += len(part)
    if crc != storage.crc32:
        raise UnreadableError(f"checksum {crc:08x}, expected {storage.crc32:08x}. The file is damaged")


def check_nested(storage: Storage) -> None:
    """`check_crc` of a checkpoint inside an archive, unless it is a zip: that has checksums of its own, which are
    checked while its weights are copied, so that its bytes are not read twice. What is deflated is checked while it
    is unpacked."""
    if storage.crc32 is not None and read_bytes(storage.source, storage.offset, min(4, storage.nbytes)) != _ZIP:
        check_crc(storage)


def byte_order(directory: ZipDirectory, root: str) -> str:
    """``little`` or ``big``, as the archive says; little when it does not. UnreadableError for anything else."""
    order = directory.text(f"{root}byteorder") if f"{root}byteorder" in directory.records else "little"
    if order not in ("little", "big"):
        raise UnreadableError(f"byteorder: it is {order!r}, neither little nor big. The file is damaged")
    return order


class ArchiveStorages:
    """Storages by key, made on first use and the same object ever after.

    With `one_dtype`, a key that is announced as two dtypes is an error: torch.save refuses to write it, and
    torch.load takes the first dtype for both. TorchScript writes such views, and reads each as its own.
    """

    def __init__(
        self, directory: ZipDirectory, root: str, *, folder: str = "data/", ending: str = "", one_dtype: bool = False
    ) -> None:
        self.dtypes: dict[str, DType | None] | None = {} if one_dtype else None
        self.directory, self.prefix, self.ending = directory, f"{root}{folder}", ending
        self.big_endian = byte_order(directory, root) == "big"
        self.known: dict[str, Storage] = {}

    def load(self, pid: Node) -> Value:
        found = parse_storage_id(pid)
        key = str(found.key)
        storage = self.known.get(key)
        if storage is None:
            name = f"{self.prefix}{key}{self.ending}"
            if name not in self.directory.records:
                raise UnreadableError(f"storage {key} is not in the archive. The file is damaged")
            storage = self.known[key] = self.directory.storage(name, big_endian=self.big_endian)
        if storage.nbytes != found.nbytes:
            raise UnreadableError(
                f"storage {key} is announced with {found.nbytes} bytes and has {storage.nbytes}. The file is damaged"
            )
        if self.dtypes is not None and self.dtypes.setdefault(key, found.dtype) is not found.dtype:
            raise UnreadableError(
                f"storage {key} is announced as two dtypes, of which readers take either. It is damaged"
            )
        return found.typed(storage)
