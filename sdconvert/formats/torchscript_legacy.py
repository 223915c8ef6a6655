"""TorchScript of torch 1.0 to 1.2: ``<root>/model.json`` and ``<root>/tensors/<n>``.

The JSON is protobuf's ``ModelDef``: modules with the numbers of their parameters, and a table
of tensors, each a view of a record. In 1.0 a buffer is a parameter that is marked as one; in 1.1 and 1.2 it is
any attribute that is a tensor (``OrderedBufferDict`` in their ``torch/jit/__init__.py``), whose value is a number
of the table in ``attributes.pkl``.
Protobuf writes 64-bit numbers as strings, and leaves out what has its default value. Sources:
``caffe2/proto/torch.proto``, ``torch/csrc/jit/export.cpp`` and ``import.cpp`` of those versions, of
which ``import_legacy.cpp`` is the last; torch itself does not read these files any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..checkpoint import Checkpoint, Dict, LostTensor, Object, TensorRef, Value
from ..dtypes import BY_NAME
from ..errors import UnreadableError, UnsupportedError, within
from ..limits import Limits
from ..pickles.machine import run
from ..pickles.nodes import Call, Global, Node
from ..source import SliceSource
from ..tensor import Storage, contiguous_strides, strided
from .json_record import read_json
from .protocol import Nested
from .torch_archive import check_crc
from .zipdir import ZipDirectory

NAME = "torchscript"

_MODEL = "model.json"
_NEWEST = 5  # `import_legacy.cpp` asserts as much.
_DEPTH = 200
_DIGITS = 20  # Of a number of 64 bits, with its sign.
# ``TensorProto.DataType`` of caffe2.proto, by name and by number.
_DTYPES = {
    ("FLOAT", 1): "float32",
    ("INT32", 2): "int32",
    ("BYTE", 3): "uint8",
    ("BOOL", 5): "bool",
    ("UINT8", 6): "uint8",
    ("INT8", 7): "int8",
    ("UINT16", 8): "uint16",
    ("INT16", 9): "int16",
    ("INT64", 10): "int64",
    ("FLOAT16", 12): "float16",
    ("DOUBLE", 13): "float64",
}
_BY_DATA_TYPE: Mapping[object, str] = {key: name for keys, name in _DTYPES.items() for key in keys}


def root_of(names: Collection[str]) -> str | None:
    """The folder of the model, with its slash; None when it has no ``model.json`` with tensors beside it."""
    beside = {tuple(name.split("/", 2)[:2]) for name in names}
    for name in names:
        folder, _, rest = name.partition("/")
        if rest == _MODEL and any((folder, other) in beside for other in ("tensors", "code", "libs")):
            return f"{folder}/"
    return None


def read(directory: ZipDirectory, root: str, nested: Nested, limits: Limits) -> Checkpoint:
    """The model as modules, in the form in which eager ones are pickled."""
    model = read_json(directory, f"{root}{_MODEL}", limits)
    with within(_MODEL):
        version = _number(_get(model, "protoVersion", "1"), "protoVersion")
        if version > _NEWEST:
            raise UnsupportedError(f"its version {version} is newer than any that torch wrote")
        tensors = _tensors(directory, root, _list(model, "tensors"))
    globals_: tuple[Global, ...] = ()
    attributes: list[Value] = []
    if f"{root}attributes.pkl" in directory.records:
        with within("attributes.pkl"):
            attributes, globals_ = _attributes(directory, f"{root}attributes.pkl", tensors, limits)
    with within(_MODEL):
        builder = _Builder(tensors, attributes, version)
        main = builder.module(_object(model, "mainModule"), "", 0)
    producer = _get(model, "producerVersion", "")
    made_by = f"TorchScript version {version}" + (f" of {producer}" if type(producer) is str and producer else "")
    return Checkpoint(NAME, main, globals_, made_by, tuple(builder.warnings), kind="torchscript")


def _tensors(directory: ZipDirectory, root: str, table: list[Any]) -> list[Value]:
    storages: dict[str, Storage] = {}
    tensors: list[Value] = []
    for number, entry in enumerate(table):
        with within(f"tensor {number}"):
            if type(entry) is not dict:
                raise UnreadableError("it is not an object. The file is damaged")
            key = _get(_object(entry, "data"), "key", "")
            if type(key) is not str or f"{root}{key}" not in directory.records:
                raise UnreadableError(f"its record {str(key)[:100]} is not in the archive. The file is damaged")
            if key not in storages:
                storages[key] = directory.storage(f"{root}{key}")
            tensors.append(_tensor(entry, storages[key]))
    return tensors


def _tensor(entry: Mapping[str, Any], storage: Storage) -> TensorRef | LostTensor:
    """``TensorDef``: dims, offset, strides (in elements), dataType."""
    kind = _get(entry, "dataType", "UNDEFINED")
    name = _BY_DATA_TYPE.get(kind) if type(kind) in (str, int) else None
    if name is None:
        raise UnreadableError(f"its dataType {str(kind)[:50]} is not one of torch's. The file is damaged")
    if _get(entry, "isQuantized", False) is True:
        return LostTensor("quantized")
    dims, strides = (tuple(_number(n, key) for n in _list(entry, key)) for key in ("dims", "strides"))
    offset = _number(_get(entry, "offset", "0"), "offset")
    if not strides:
        strides = contiguous_strides(dims)
    return strided(BY_NAME[name], dims, storage, offset, strides)


def _attributes(
    directory: ZipDirectory, name: str, tensors: list[Value], limits: Limits
) -> tuple[list[Value], tuple[Global, ...]]:
    """The values in ``attributes.pkl``: tensors as such, None for everything else."""
    storage = directory.storage(name)
    check_crc(storage)
    pickled = run(SliceSource(storage.source, storage.offset, storage.nbytes, name), limits=limits)
    values = pickled.root
    if type(values) is Call and len(values.args) == 1:  # Version 2 wrapped its list in a class of its own.
        values = values.args[0]
    if type(values) not in (tuple, list):
        raise UnreadableError("it is not a list of values. The file is damaged")
    return [_tensor_of(value, tensors) for value in values], pickled.globals


def _tensor_of(node: Node, tensors: list[Value]) -> Value:
    """The tensor that ``torch.jit._pickle.build_tensor_from_id`` names by its number in the table."""
    if type(node) is not Call or type(node.func) is not Global or len(node.args) != 1:
        return None
    number = node.args[0]
    if node.func.name not in ("build_tensor_from_id", "TensorID") or type(number) is not int:
        return None
    if not 0 <= number < len(tensors):
        raise UnreadableError(f"tensor {number} is not in the table. The file is damaged")
    return tensors[number]


class _Builder:
    """Modules from ``ModuleDef``s."""

    def __init__(self, tensors: list[Value], attributes: list[Value], version: int) -> None:
        self.tensors, self.attributes, self.version = tensors, attributes, version
        self.warnings: list[str] = []

    def module(self, definition: Mapping[str, Any], path: str, depth: int) -> Object:
        if depth > _DEPTH:
            raise UnreadableError("its modules are nested beyond reason. The file is damaged or hostile")
        parameters: list[tuple[Value, Value]] = []
        buffers: list[tuple[Value, Value]] = []
        for entry in _list(definition, "parameters"):
            name = self.name(entry, path)
            with within(f"{path}{name}"):
                number = _number(_get(entry, "tensorId", "0"), "tensorId")
                if number >= len(self.tensors):
                    raise UnreadableError(f"tensor {number} is not in the table. The file is damaged")
            (buffers if _get(entry, "isBuffer", False) is True else parameters).append((name, self.tensors[number]))
        known = {name for name, _ in (*parameters, *buffers)}
        for entry in _list(definition, "attributes"):
            name = self.name(entry, path)
            number = _number(_get(entry, "id", "0"), "id", least=-1)
            if number >= len(self.attributes):
                raise UnreadableError(f"{path}{name}: attribute {number} is not in attributes.pkl. The file is damaged")
            value = self.attributes[number] if number >= 0 else None
            if type(value) in (TensorRef, LostTensor) and name not in known:
                buffers.append((name, value))
        if _get(definition, "getStateAttributeId", None) is not None:
            self.warnings.append(f"{path[:-1] or 'the model'}: it packs its own state, which is not read")
        children = []
        for entry in _list(definition, "submodules"):
            name = self.name(entry, path)
            children.append((name, self.module(entry, f"{path}{name}.", depth + 1)))
        for names in ([*parameters, *buffers], children):
            if len({name for name, _ in names}) != len(names):
                raise UnreadableError(f"{path[:-1] or 'the model'}: a name is there twice. The file is damaged")
        parts = [("_parameters", Dict(parameters)), ("_buffers", Dict(buffers)), ("_modules", Dict(list(children)))]
        return Object("torch.jit.ScriptModule", state=Dict([*parts]))

    def name(self, entry: Any, path: str) -> str:
        name = _get(entry, "name", "") if type(entry) is dict else None
        if type(name) is not str:
            raise UnreadableError(f"{path[:-1] or 'the model'}: a part of it has no name. The file is damaged")
        return name


def _get(entry: Mapping[str, Any], key: str, default: Any) -> Any:
    """A field by its JSON name, or as protobuf's own files spell it."""
    if key in entry:
        return entry[key]
    return entry.get("".join(f"_{c.lower()}" if c.isupper() else c for c in key), default)


def _list(entry: Mapping[str, Any], key: str) -> list[Any]:
    value = _get(entry, key, [])
    if type(value) is not list:
        raise UnreadableError(f"{key} is not a list. The file is damaged")
    return value


def _object(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = _get(entry, key, {})
    if type(value) is not dict:
        raise UnreadableError(f"{key} is not an object. The file is damaged")
    return value


def _number(value: Any, what: str, least: int = 0) -> int:
    """A 64-bit number: protobuf writes it as a string."""
    if type(value) is str and len(value) <= _DIGITS and value.isascii() and value.removeprefix("-").isdigit():
        value = int(value)
    if type(value) is not int or not least <= value < 1 << 63:
        raise UnreadableError(f"{what} is not a whole number of {least} or more. The file is damaged")
    return value
