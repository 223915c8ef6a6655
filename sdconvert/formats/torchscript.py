"""TorchScript: torch.jit.save and libtorch's C++ ``save`` since torch 1.4, mobile ``.ptl`` files too.

A zip like torch.save's, with the classes' source beside it. ``data.pkl`` holds instances of
``__torch__.<path>.<Class>`` with all their attributes in one dict; which of them are parameters
and buffers stands in ``code/__torch__/<path>.py``, in the class's ``__parameters__`` and
``__buffers__``; a child is an attribute whose own class is a ``Module``. The source is only searched
for those lines. Facts: ``torch/csrc/jit/serialization/python_print.cpp`` writes them,
``import_source.cpp`` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..checkpoint import Checkpoint, Dict, Object, Value
from ..errors import UnreadableError, UnsupportedError, within
from ..inflated import credit
from ..limits import Limits
from ..source import read as read_bytes
from .protocol import Nested
from .torch_archive import archive_version, read_archive
from .zipdir import ZipDirectory

NAME = "torchscript"

_CLASS = re.compile(r"^class (\w+)\((\w+)\):$", re.MULTILINE)
_LIST = re.compile(r"^  (__parameters__|__buffers__) = \[(.*?)\]$", re.MULTILINE)
_STRING = re.compile(r'"([^"\\]*)"')  # An attribute's name needs no escapes.
_PATIENCE = 2_000_000
_MOST = 64 << 20  # Bytes of source for one class; generated code of large models has a few MB.


def accepts(names: Iterable[str], root: str) -> bool:
    """Whether the records of a torch archive are TorchScript's (torch's own test, and older archives)."""
    code = f"{root}code/"
    return any(name == f"{root}constants.pkl" or name.startswith(code) for name in names)


def read(directory: ZipDirectory, root: str, nested: Nested, limits: Limits) -> Checkpoint:
    """The checkpoint of a TorchScript archive. UnsupportedError when it was frozen and has no names any more."""
    checkpoint = read_archive(directory, root, nested, limits)
    classes = _Classes(directory, root)
    tree = _as_modules(checkpoint.root, classes)
    if tree is not checkpoint.root and not classes.weights and _has_constants(directory, root):
        raise UnsupportedError(
            "it is a frozen TorchScript archive: its weights are unnamed constants of its code, and there is no "
            "state dict. Convert the model as it was before torch.jit.freeze or optimize_for_mobile"
        )
    version = archive_version(directory, root)  # Of torch, only that it is 1.4 or later is known.
    made_by = f"archive version {version}" if version else ""
    return replace(checkpoint, container=NAME, root=tree, kind="torchscript", version=made_by)


@dataclass(frozen=True)
class _Class:
    """What the source of a class says: the names of its parameters and buffers, if it is a module."""

    is_module: bool
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


class _Classes:
    """The classes of an archive by qualified name, read on first use. `weights` counts what they declare."""

    def __init__(self, directory: ZipDirectory, root: str) -> None:
        self.directory, self.root = directory, root
        self.files: dict[str, dict[str, _Class]] = {}
        self.weights = 0

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
            if storage.nbytes > min(_MOST, credit(storage.source)):
                raise UnreadableError(f"{storage.nbytes} bytes of source are too many for a model")
            text = read_bytes(storage.source, storage.offset, storage.nbytes).decode("utf-8", "replace")
        found: dict[str, _Class] = {}
        starts = [*_CLASS.finditer(text)]
        ends = [start.start() for start in starts[1:]] + [len(text)]
        for start, end in zip(starts, ends, strict=False):  # No class at all leaves one end over.
            lists = {match[1]: tuple(_STRING.findall(match[2])) for match in _LIST.finditer(text, start.end(), end)}
            found[start[1]] = _Class(
                start[2] == "Module", lists.get("__parameters__", ()), lists.get("__buffers__", ())
            )
        return found


def _as_modules(root: Value, classes: _Classes) -> Value:
    """The tree with every scripted module in the form in which eager ones are pickled.

    So the rule for state dicts stays in one place. A module is made once, however often it is
    referred to, and filled later, as a cycle may lead back to it.
    """
    made: dict[int, Value] = {}
    todo: list[tuple[Object, Object, _Class]] = []

    def convert(value: Value) -> Value:
        if type(value) is not Object or type(value.state) is not Dict:
            return value
        if id(value) not in made:
            known = classes.get(value.type_name)
            if known is None or not known.is_module:
                return value
            made[id(value)] = module = Object(value.type_name, state=Dict())
            todo.append((value, module, known))
        return made[id(value)]

    result = convert(root)
    left = _PATIENCE  # Instances may share their attributes and their class.
    while todo:
        value, module, known = todo.pop()
        own = value.state.by_name()
        left -= len(own) + len(known.parameters) + len(known.buffers)
        if left < 0:
            raise UnreadableError(f"its modules have more than {_PATIENCE} attributes. The file is hostile")
        children = []
        for name, child in own.items():
            converted = convert(child)
            if converted is not child:
                children.append((name, converted))
        classes.weights += len(known.parameters) + len(known.buffers)
        module.state.pairs += [
            ("_parameters", Dict([(name, own.get(name)) for name in known.parameters])),
            ("_buffers", Dict([(name, own.get(name)) for name in known.buffers])),
            ("_modules", Dict(children)),
        ]
    return result


def _has_constants(directory: ZipDirectory, root: str) -> bool:
    return any(name.startswith(f"{root}constants/") for name in directory.records)
