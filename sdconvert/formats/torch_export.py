"""torch.export.save since torch 2.1 (``.pt2``), in the three layouts that it has had.

To 2.7 a zip without a folder: ``serialized_exported_program.json`` and the state dict as a
torch.save of a plain dict, in ``serialized_state_dict.pt`` (2.1 and 2.2 called it ``.json``),
the constants likewise. 2.8: a folder with ``archive_format``, ``models/<model>.json``, and
the same dicts in ``data/weights/<model>.pt`` and ``data/constants/<model>.pt``. Since 2.9:
``data/weights/<model>_weights_config.json`` says of each name in which record its bytes are,
and how they are seen (dtype, sizes, strides, offset); names that share a record are tied.
Constants are plain tensors and buffers that are not persistent: not in the state dict.
AOTInductor puts compiled code in such an archive; its weights are in the library, unless they
were packaged beside it. Source: ``torch/export/__init__.py``, ``torch/export/pt2_archive/_package.py``,
``torch/_export/serde/schema.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..checkpoint import Aside, Checkpoint, Dict, LostTensor, TensorRef, Value
from ..dtypes import BY_NAME, DType
from ..errors import UnreadableError, UnsupportedError, within
from ..limits import Limits
from ..pickles.nodes import Global
from ..source import SliceSource
from ..tensor import Storage, strided
from .json_record import read_json
from .protocol import Nested
from .torch_archive import byte_order, check_nested
from .zipdir import ZipDirectory

NAME = "torch-export"

_PROGRAM = "serialized_exported_program.json"
_FORMAT = "archive_format"
_CONSTANTS = "constants (plain tensors and buffers that are not persistent)"
# ``ScalarType`` of the schema. It has numbers of its own, which are not those of torch's C++.
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
_STRIDED = 7  # Of ``Layout``; the others are sparse ones.


def root_of(names: Collection[str]) -> str | None:
    """The folder that the program lies in, with its slash; "" when it lies in none, None when there is no program."""
    for name in names:
        if name in (_PROGRAM, _FORMAT):
            return ""
        if name.endswith(f"/{_FORMAT}") and name.count("/") == 1:
            return name.removesuffix(_FORMAT)
    return None


def read(directory: ZipDirectory, root: str, nested: Nested, limits: Limits) -> Checkpoint:
    """The state dict of the program, or of each of several; their constants aside."""
    return _Program(directory, root, nested, limits).read()


class _Program:
    """What is known while one archive is read: `globals` are those of the pickles inside it."""

    def __init__(self, directory: ZipDirectory, root: str, nested: Nested, limits: Limits) -> None:
        self.directory, self.root, self.nested, self.limits = directory, root, nested, limits
        self.big_endian = byte_order(directory, root) == "big"
        self.globals: dict[str, Global] = {}
        self.loaded: dict[str, Value] = {}

    def read(self) -> Checkpoint:
        if _PROGRAM in self.directory.records and not self.root:
            states = {"model": self.whole("serialized_state_dict.pt", "serialized_state_dict.json")}
            constants = {"model": self.whole("serialized_constants.pt", "serialized_constants.json", needed=False)}
            version = "torch.export before 2.8"
        else:
            names = self.inside("models/", ".json")
            states = {name: self.state("weights", name) for name in names} or self.compiled()
            constants = {name: self.state("constants", name) for name in names}
            version = "torch.export"
        alone = len(states) == 1
        kept = {name: value for name, value in constants.items() if value.pairs}
        aside = next(iter(kept.values())) if alone and kept else Dict(list(kept.items()))
        return Checkpoint(
            NAME,
            next(iter(states.values())) if alone else Dict(list(states.items())),
            tuple(self.globals.values()),
            version,
            kind="exported" if alone else "",
            members=not alone,
            aside={"constants": Aside(aside, _CONSTANTS)} if kept else {},
        )

    def inside(self, folder: str, ending: str) -> list[str]:
        """What stands between `folder` and `ending` in the names of records."""
        start = self.root + folder
        found = [name for name in self.directory.records if name.startswith(start) and name.endswith(ending)]
        return [name.removeprefix(start).removesuffix(ending) for name in found]

    def whole(self, *names: str, needed: bool = True) -> Dict:
        """The dict that was saved by torch.save in the first of these records that is there."""
        for name in names:
            if self.root + name in self.directory.records:
                value = self.load(self.root + name)
                if type(value) is not Dict:
                    raise UnreadableError(f"{name}: it holds no dict. The file is damaged")
                return _marked(value.pairs)
        if needed:
            raise UnreadableError(f"{names[0]}: is not in the archive. The file is damaged")
        return Dict()

    def load(self, record: str) -> Value:
        """The object that was saved by torch.save in a record; an empty one holds an empty dict."""
        storage = self.directory.storage(record)
        if record not in self.loaded and storage.nbytes:
            with within(record):
                check_nested(storage)
                inside = self.nested(SliceSource(storage.source, storage.offset, storage.nbytes, record))
            self.globals |= {name.full: name for name in inside.globals}
            self.loaded[record] = inside.root
        return self.loaded[record] if storage.nbytes else Dict()

    def state(self, what: str, model: str) -> Dict:
        """The ``weights`` or ``constants`` of a model."""
        legacy = f"data/{what}/{model}.pt"
        if self.root + legacy in self.directory.records:
            return self.whole(legacy)
        config = f"{self.root}data/{what}/{model}_{what}_config.json"
        entries = read_json(self.directory, config, self.limits).get("config")
        with within(config):
            if type(entries) is not dict:
                raise UnreadableError("it has no config. The file is damaged")
            storages: dict[str, Storage] = {}
            pairs: list[tuple[Value, Value]] = []
            for name, entry in entries.items():
                with within(name):
                    pairs.append((name, self.entry(f"data/{what}/", entry, storages)))
        return _marked(pairs)

    def entry(self, folder: str, entry: Any, storages: dict[str, Storage]) -> Value:
        path = entry.get("path_name") if type(entry) is dict else None
        if type(path) is not str or f"{self.root}{folder}{path}" not in self.directory.records:
            raise UnreadableError("its record is not in the archive. The file is damaged")
        record = f"{self.root}{folder}{path}"
        if entry.get("use_pickle") is True:  # A tensor subclass, or an object that is not a tensor.
            if entry.get("tensor_meta") is None and folder != "data/weights/":
                return None
            return self.load(record)
        if path not in storages:
            storages[path] = self.directory.storage(record, big_endian=self.big_endian)
        return _tensor(storages[path], entry.get("tensor_meta"))

    def compiled(self) -> dict[str, Dict]:
        """The weights that AOTInductor packaged beside its code (``package_constants_on_disk``)."""
        folder = "data/aotinductor/"
        states: dict[str, Dict] = {}
        for model in self.inside(folder, "/weights_config.json"):
            config = f"{self.root}{folder}{model}/weights_config.json"
            bases: dict[str, Value] = {}
            pairs: list[tuple[Value, Value]] = []
            for name, entry in read_json(self.directory, config, self.limits).items():
                with within(config), within(name):
                    pairs.append((name, self.compiled_entry(entry, bases)))
            states[model] = _marked(pairs)
        if not states:
            raise UnsupportedError(
                "it holds compiled code (AOTInductor) and no weights outside of it. Convert the model that was compiled"
                if any(name.startswith(self.root + folder) for name in self.directory.records)
                else "it is a .pt2 archive without a program in it, and without weights"
            )
        return states

    def compiled_entry(self, entry: Any, bases: dict[str, Value]) -> TensorRef:
        """(record, shape, strides, offset) of one tensor; the record is a torch.save of what it is a view of."""
        if type(entry) is not list or len(entry) != 4 or type(entry[0]) is not str:
            raise UnreadableError("it is not described by a record, a shape, strides and an offset. It is damaged")
        path, shape, strides, offset = entry
        record = f"{self.root}data/weights/{path}"
        if record not in self.directory.records or type(shape) is not list or type(strides) is not list:
            raise UnreadableError("its record is not in the archive. The file is damaged")
        if path not in bases:
            bases[path] = self.load(record)
        base = bases[path]
        if type(base) is not TensorRef or len(base.pieces) != 1 or type(offset) is not int:
            raise UnreadableError("its record holds no plain tensor. The file is damaged")
        return strided(base.dtype, tuple(shape), base.pieces[0].storage, offset, tuple(strides))


def _marked(pairs: list[tuple[Value, Value]]) -> Dict:
    """A dict that is a state dict as a whole, marked as those of ``state_dict()`` are."""
    return Dict(pairs, attributes=Dict([("_metadata", Dict())]))


def _tensor(storage: Storage, meta: Any) -> TensorRef | LostTensor:
    """What ``TensorMeta`` of the schema describes."""
    if type(meta) is not dict or type(meta.get("sizes")) is not list or type(meta.get("strides")) is not list:
        raise UnreadableError("its tensor_meta is missing or damaged")
    code = meta.get("dtype")
    dtype: DType | None = BY_NAME[_DTYPES[code]] if type(code) is int and code in _DTYPES else None
    if dtype is None:
        raise UnreadableError(f"its dtype {str(code)[:50]} is not one of torch.export's. It is damaged, or newer")
    if meta.get("layout") != _STRIDED:
        return LostTensor(f"of layout {str(meta.get('layout'))[:50]} (sparse)")
    sizes, strides = (tuple(map(_whole, meta[key])) for key in ("sizes", "strides"))
    return strided(dtype, sizes, storage, _whole(meta.get("storage_offset")), strides)


def _whole(number: Any) -> int:
    """A ``SymInt`` that is a number; a weight's size is never symbolic."""
    value = number.get("as_int") if type(number) is dict else None
    if type(value) is not int:
        raise UnreadableError("a size, stride or offset of it is not a number. The file is damaged")
    return value
