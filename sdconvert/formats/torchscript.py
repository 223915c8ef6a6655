"""TorchScript: torch.jit.save and libtorch's C++ ``save`` since torch 1.3, mobile ``.ptl`` files too.

A zip like torch.save's, with the classes' source beside it. ``data.pkl`` holds instances of
``__torch__.<path>.<Class>`` with all their attributes in one dict; which of them are parameters
and buffers stands in ``code/__torch__/<path>.py``, in the class's ``__parameters__`` and
``__buffers__``; a child is an attribute whose own class is a ``Module``. The source is only searched
for those lines. Facts: ``torch/csrc/jit/serialization/python_print.cpp`` writes them,
``import_source.cpp`` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import Aside, Checkpoint, Dict, EncodedTensor, LostTensor, Object, TensorRef, Value
from ..errors import UnreadableError, within
from ..inflated import credit
from ..limits import Limits
from ..pickles.nodes import Global
from ..source import read as read_bytes
from .protocol import Nested
from .torch_archive import ArchiveStorages, archive_version, read_archive, read_pickle
from .zipdir import ZipDirectory

NAME = "torchscript"

_Path = tuple[Any, ...]  # () for the root, (path of the parent, name) for a child: long paths cost nothing.

_CLASS = re.compile(r"^class (\w+)\((\w+)\):$", re.MULTILINE)
_LIST = re.compile(r"^  (__parameters__|__buffers__) = \[(.*?)\]$", re.MULTILINE)
_STRING = re.compile(r'"([^"\\]*)"')  # An attribute's name needs no escapes.
_UNSAID = (
    "the torch that wrote it (1.3 to 1.5) did not say which tensors are buffers: all attributes that are tensors were "
    "taken, as that torch did; today's leaves them all out"
)
_PACKED = "__torch__.torch.classes."
_SHOWN = 5
_TENSORS = (TensorRef, LostTensor, EncodedTensor)
_SPELLED = 16 << 20  # Characters of the names of modules that pack their weights.
_PATIENCE = 2_000_000
_MOST = 64 << 20  # Bytes of source for one class; generated code of large models has a few MB.


def accepts(names: Iterable[str], root: str) -> bool:
    """Whether the records of a torch archive are TorchScript's (torch's own test, and older archives)."""
    code = f"{root}code/"
    return any(name == f"{root}constants.pkl" or name.startswith(code) for name in names)


def read(directory: ZipDirectory, root: str, nested: Nested, limits: Limits) -> Checkpoint:
    """The checkpoint of a TorchScript archive: what ``state_dict()`` gives, and what it does not give, aside.

    A module that was frozen (``torch.jit.freeze``, ``optimize_for_mobile``) has no names any more: all
    that it has are constants. Quantized modules pack their weights into objects of C++ classes.
    """
    checkpoint = read_archive(directory, root, nested, limits, one_dtype=False)
    classes = _Classes(directory, root)
    tree, states = _as_modules(checkpoint.root, classes)
    values, globals_ = _constants(directory, root, nested, limits)
    constants = Dict([(name, value) for name, value in values if type(value) in _TENSORS])
    # optimize_for_mobile makes what it packed a constant.
    states += [(((), f"CONSTANTS.{name}"), value.state) for name, value in values if _is_packed(value)]
    packed = Dict(list(_with_tensors(states)))
    warnings = [_UNSAID] if classes.unsaid else []
    name = tree.type_name if type(tree) is Object else ""
    if name.startswith("__torch__.") and classes.get(name) is None:
        warnings.append(f"the code of {tree.type_name} is not in it, so every tensor was taken for a weight")
    aside: dict[str, Aside] = {}
    if constants.pairs:
        frozen = tree is not checkpoint.root and not classes.weights
        what = "unnamed constants of its code, as it is a frozen TorchScript archive" if frozen else "constants of code"
        aside["constants"] = Aside(constants, what)
    if packed.pairs:
        shown = ", ".join(name for name, _ in packed.pairs[:_SHOWN]) + ", ..." * (len(packed.pairs) > _SHOWN)
        aside["packed"] = Aside(packed, f"weights packed for operators of C++ ({shown})")
    version = archive_version(directory, root)  # Of torch, only that it is 1.3 or later is known.
    return replace(
        checkpoint,
        container=NAME,
        root=tree,
        kind="torchscript",
        version=f"archive version {version}" if version else "",
        aside=aside,
        warnings=(*checkpoint.warnings, *warnings),
        globals=tuple({name.full: name for name in (*checkpoint.globals, *globals_)}.values()),
    )


def _constants(
    directory: ZipDirectory, root: str, nested: Nested, limits: Limits
) -> tuple[list[tuple[str, Value]], tuple[Global, ...]]:
    """The constants of the code, under the names that it has for them (``CONSTANTS.c0``)."""
    record = f"{root}constants.pkl"
    if record not in directory.records:
        return [], ()
    storages = ArchiveStorages(directory, root, folder="constants/")
    tree, _, pickled = read_pickle(directory, record, storages.load, nested, limits)
    values = tree if type(tree) is list else []
    return [(f"c{number}", value) for number, value in enumerate(values)], pickled.globals


@dataclass(frozen=True)
class _Class:
    """What the source of a class says: the names of its parameters and buffers, if it is a module.

    `buffers` is None where the source does not say it: before torch 1.6.
    """

    is_module: bool
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] | None


class _Classes:
    """The classes of an archive by qualified name, read on first use. `weights` counts what they declare."""

    def __init__(self, directory: ZipDirectory, root: str) -> None:
        self.directory, self.root = directory, root
        self.files: dict[str, dict[str, _Class]] = {}
        self.weights = 0
        self.unsaid = False

    def get(self, qualified: str) -> _Class | None:
        """The class ``__torch__.a.b.C`` of ``code/__torch__/a/b.py``; None when the archive does not have it."""
        module, _, name = qualified.rpartition(".")
        record = f"{self.root}code/{module.replace('.', '/')}.py"
        if record not in self.files:
            self.files[record] = self.parse(record) if record in self.directory.records else {}
        return self.files[record].get(name)

    def parse(self, record: str) -> dict[str, _Class]:
        with within(record):
            storage = self.directory.storage(record)
            if storage.nbytes > min(_MOST, credit(storage.source, self.directory.limits)):
                raise UnreadableError(f"{storage.nbytes} bytes of source are too many for a model")
            text = read_bytes(storage.source, storage.offset, storage.nbytes).decode("utf-8", "replace")
        found: dict[str, _Class] = {}
        starts = [*_CLASS.finditer(text)]
        ends = [start.start() for start in starts[1:]] + [len(text)]
        for start, end in zip(starts, ends, strict=False):  # No class at all leaves one end over.
            lists = {match[1]: tuple(_STRING.findall(match[2])) for match in _LIST.finditer(text, start.end(), end)}
            found[start[1]] = _Class(start[2] == "Module", lists.get("__parameters__", ()), lists.get("__buffers__"))
        return found


def _is_packed(value: Value) -> bool:
    """Whether a value is an object of a C++ class, whose state is what its ``__getstate__`` gave."""
    return type(value) is Object and value.type_name.startswith(_PACKED) and value.state is not None


def _as_modules(root: Value, classes: _Classes) -> tuple[Value, list[tuple[_Path, Value]]]:
    """The tree with every scripted module in the form in which eager ones are pickled, and what modules packed.

    So the rule for state dicts stays in one place. A module is made once, however often it is
    referred to, and filled later, as a cycle may lead back to it.
    """
    made: dict[int, Value] = {}
    todo: list[tuple[Object, Object, _Class, _Path]] = []
    packed: list[tuple[_Path, Value]] = []

    def convert(value: Value, path: _Path) -> Value:
        if type(value) is not Object:
            return value
        if id(value) not in made:
            known = classes.get(value.type_name)
            is_module = known is not None and known.is_module
            if type(value.state) is not Dict or not is_module:
                made[id(value)] = value
                # A module with a ``__getstate__`` of its own has what that gave; operators pack their weights so.
                if _is_packed(value) or (is_module and value.state is not None):
                    packed.append((path, value.state))
                return value
            assert known is not None
            made[id(value)] = module = Object(value.type_name, state=Dict())
            todo.append((value, module, known, path))
        return made[id(value)]

    result = convert(root, ())
    left = _PATIENCE  # Instances may share their attributes and their class.
    while todo:
        value, module, known, path = todo.pop()
        own = value.state.by_name()
        buffers = known.buffers
        if buffers is None:
            named = frozenset(known.parameters)
            buffers = tuple(n for n, v in own.items() if type(v) in _TENSORS and n not in named)
            classes.unsaid |= bool(buffers)
        left -= len(own) + len(known.parameters) + len(buffers)
        if left < 0:
            raise UnreadableError(f"its modules have more than {_PATIENCE} attributes. The file is hostile")
        children = []
        for name, child in own.items():
            converted = convert(child, (path, name))
            if converted is not child:
                children.append((name, converted))
        classes.weights += len(known.parameters) + len(buffers)
        module.state.pairs += [
            ("_parameters", Dict([(name, own.get(name)) for name in known.parameters])),
            ("_buffers", Dict([(name, own.get(name)) for name in buffers])),
            ("_modules", Dict(children)),
        ]
    return result, packed


def _with_tensors(packed: list[tuple[_Path, Value]]) -> Iterator[tuple[str, Value]]:
    """The packed states that hold tensors, in lists inside each other, under the dotted names of their modules."""
    left, spelled = _PATIENCE, 0  # States may share what is in them, and a name may be long.
    for path, state in packed:
        todo, seen = [state], {id(state)}
        while todo:
            value = todo.pop()
            left -= 1
            if left < 0:
                raise UnreadableError(f"its modules pack more than {_PATIENCE} values. The file is hostile")
            if type(value) in _TENSORS:
                names = []
                while path and spelled <= _SPELLED:
                    path, name = path
                    names.append(name)
                    spelled += len(name) + 1
                if path:
                    raise UnreadableError(f"its modules' names take more than {_SPELLED} characters. It is hostile")
                yield ".".join(reversed(names)), state
                break
            for child in value if type(value) is list else ():
                if id(child) not in seen:
                    seen.add(id(child))
                    todo.append(child)
