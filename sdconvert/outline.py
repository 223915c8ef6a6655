"""What an inspection looks like on a terminal: a summary, and a tree of modules in which alike ones are one line.

Every line fits the width it was asked for, and nothing in it acts on a terminal.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .errors import printable
from .report import human

if TYPE_CHECKING:
    from .inspection import Inspection, TensorFacts

_KINDS = {
    "module": "a whole pickled model",
    "wrapped": "a state dict inside a checkpoint",
    "state_dict": "a state dict",
    "tensor": "a single tensor",
    "torchscript": "a TorchScript model",
    "several": "several state dicts",
    "nothing": "no weights",
}
_LABEL = 12  # Columns before the text of a fact.
_SHOWN = 8  # Items of a list in the summary.
_LONGEST = 200  # Characters of one item there.
_LINES = 48  # The tree is shown as deep as it fits this many.
_SIBLINGS = 40  # Lines directly below one module.
_DEPTH = 32  # Modules inside modules; deeper names stay whole.
_MODULES = (4, 100_000)  # So many for each tensor, and so many more: names without common beginnings are split less.
_INDENT = 2
_GAP = 2  # Between the columns of the tree.
_SIDES = ("<", "<", "<", ">", ">")  # To which each of them is set.
_DISPENSABLE = (4, 2, 1)  # Those that a narrow terminal does without, in this order: size, dtype, shape.
_ENDS_IN_NUMBER = re.compile(r"(.*?)([0-9]{1,9})([^0-9]*)", re.DOTALL)


def summary(found: Inspection, width: int) -> Iterator[str]:
    """What is in the file, a fact to a line; long ones go on below themselves."""
    yield from textwrap.wrap(printable(found.source), width)
    for label, text in facts(found):
        yield from textwrap.wrap(
            printable(text),
            width,
            initial_indent=f"  {label:<{_LABEL - 2}}",
            subsequent_indent=" " * _LABEL,
            break_on_hyphens=False,
        )


def facts(found: Inspection) -> Iterator[tuple[str, str]]:
    """What is in the file, as (label, text), not wrapped and not made printable yet."""
    made = f" ({found.version})" if found.version else ""
    yield "file", f"{found.container}{made}, {human(found.source_bytes)}"
    yield "weights", _KINDS.get(found.kind, found.kind) + (f" at {found.key}" if found.key else "")
    own = len(found.tensors) - len(found.aliases)
    tied = f" and {len(found.aliases):,} tied" if found.aliases else ""
    yield "tensors", f"{own:,}{tied}, {found.elements:,} parameters, {human(found.nbytes)}"
    if found.dtypes:
        yield "dtypes", _listed([f"{one.dtype} {human(one.nbytes)} in {one.tensors:,}" for one in found.dtypes])
    if found.output_bytes is not None:
        yield "converted", f"{human(found.output_bytes)} as safetensors"
    if len(found.candidates) > 1:
        for one in found.candidates[: 2 * _SHOWN]:
            elements = "" if one.elements is None else f", {one.elements:,} parameters"
            yield "candidate", f"--key {one.key}: {one.tensors:,} tensors{elements}, {human(one.nbytes)}"
        if len(found.candidates) > 2 * _SHOWN:
            yield "", f"and {len(found.candidates) - 2 * _SHOWN:,} more"
    if found.aliases:
        yield "tied", _listed([f"{alias} = {kept}" for alias, kept in found.aliases.items()])
    if found.prefixes:
        yield "prefixes", f"names carry {' '.join(found.prefixes)} (--strip-prefix auto takes them off)"
    if found.skipped:
        yield "left out", _listed([f"{one.name} ({one.why})" for one in found.skipped])
    if found.dangerous_globals:
        yield (
            "danger",
            (
                f"the pickle names {_listed(list(found.dangerous_globals), 5 * _SHOWN)}: what else unpickles this file "
                "could be made to run them. Nothing was run here"
            ),
        )
    if harmless := [name for name in found.unknown_globals if name not in found.dangerous_globals]:
        yield "classes", f"named in the pickle, not needed, never run: {_listed(harmless)}"
    for warning in found.warnings:
        yield "warning", _clipped(warning, 2 * _LONGEST)
    for problem in found.problems:
        yield "problem", _clipped(problem, 2 * _LONGEST)


def listing(tensors: Sequence[TensorFacts]) -> list[str]:
    """Every tensor on its line, the name last, so that it is never cut."""
    if not tensors:
        return []
    rows = [(one.dtype, _shape(one), human(one.nbytes), printable(one.name)) for one in tensors]
    dtype, shape, size = (max(len(row[column]) for row in rows) for column in range(3))
    lines = []
    for one, row in zip(tensors, rows, strict=True):
        notes = "" if one.contiguous else "  (not contiguous)"
        notes += f"  = {printable(one.tied_to)}" if one.tied_to is not None else ""
        lines.append(f"{row[0]:<{dtype}}  {row[1]:<{shape}}  {row[2]:>{size}}  {row[3]}{notes}")
    return lines


def tree(tensors: Sequence[TensorFacts], width: int) -> list[str]:
    """The modules and their tensors, as deep as it fits a screen or so, alike siblings folded, in `width` columns."""
    root = _Module.of(tensors)
    lines = _rows(root, 1)
    for depth in range(2, _DEPTH):
        deeper = _rows(root, depth)
        if len(deeper) > _LINES or len(deeper) == len(lines):
            break
        lines = deeper
    return _aligned(lines, width)


class _Row(NamedTuple):
    """One line of the tree, in columns."""

    name: str
    what: str
    dtype: str
    elements: str
    size: str


class _Module:
    """What has one name: a tensor, or modules and tensors below it. Sums do not count ties. `nbytes` are bytes."""

    __slots__ = ("children", "dtype", "elements", "look", "nbytes", "tensor", "tensors")

    def __init__(self) -> None:
        self.children: dict[str, _Module] = {}
        self.tensor: TensorFacts | None = None
        self.tensors = self.elements = self.nbytes = 0
        self.dtype = ""  # "mixed" when there are several.
        self.look = 0
        """Equal for modules that have the same names, shapes and dtypes below them."""

    @classmethod
    def of(cls, tensors: Sequence[TensorFacts]) -> _Module:
        """The tree of all `tensors`, split at the dots of their names."""
        depth = _DEPTH
        while (root := cls._split(tensors, depth)) is None:
            depth //= 2
        root._sum_up({})
        return root

    @classmethod
    def _split(cls, tensors: Sequence[TensorFacts], depth: int) -> _Module | None:
        """The tree with at most `depth` splits of a name; None if it would be much larger than the file deserves."""
        left = _MODULES[0] * len(tensors) + _MODULES[1]
        root = cls()
        for one in tensors:
            node = root
            for part in one.name.split(".", depth):
                child = node.children.get(part)
                if child is None:
                    child = node.children[part] = cls()
                    left -= 1
                node = child
            if left < 0:
                return None
            node.tensor = one
        return root

    def _sum_up(self, looks: dict[object, int]) -> None:
        if self.tensor is not None:
            own = self.tensor.tied_to is None
            self.tensors, self.dtype = 1, self.tensor.dtype
            self.elements, self.nbytes = (self.tensor.elements, self.tensor.nbytes) if own else (0, 0)
        for child in self.children.values():
            child._sum_up(looks)
            self.tensors += child.tensors
            self.elements += child.elements
            self.nbytes += child.nbytes
            self.dtype = child.dtype if self.dtype in ("", child.dtype) else "mixed"
        mine = self.tensor and (self.tensor.dtype, self.tensor.shape, self.tensor.tied_to is None)
        look = (mine, tuple((name, child.look) for name, child in self.children.items()))
        self.look = looks.setdefault(look, len(looks))


class _Fold(NamedTuple):
    """Modules in a row that look the same and differ in one number of their names."""

    name: str
    modules: list[_Module]


def _folded(children: dict[str, _Module]) -> list[_Fold]:
    runs: list[tuple[tuple[object, ...], list[str], list[_Module]]] = []
    for name, child in children.items():
        parts = _ENDS_IN_NUMBER.fullmatch(name)
        alike = (parts[1], parts[3], child.look) if parts else (name,)
        if runs and runs[-1][0] == alike:
            runs[-1][1].append(name)
            runs[-1][2].append(child)
        else:
            runs.append((alike, [name], [child]))
    return [_Fold(_span(names), modules) for _, names, modules in runs]


def _span(names: list[str]) -> str:
    """``layer0-11`` for layer0 to layer11; names with gaps between them one by one, the middle left out."""
    found = [parts for parts in map(_ENDS_IN_NUMBER.fullmatch, names) if parts]
    if len(names) == 1 or len(found) < len(names):
        return names[0]
    numbers = [int(parts[2]) for parts in found]
    head, tail = found[0][1], found[0][3]
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{head}{numbers[0]}-{numbers[-1]}{tail}"
    middle = numbers if len(numbers) < 5 else [*numbers[:2], "...", numbers[-1]]
    return f"{head}{','.join(map(str, middle))}{tail}"


def _rows(root: _Module, depth: int) -> list[_Row]:
    """The lines of the tree down to `depth`; below a fold stands what one of its modules has."""
    rows: list[_Row] = []

    def add(node: _Module, level: int) -> None:
        folds = _folded(node.children)
        for name, modules in folds[:_SIBLINGS]:
            name, modules = _past_wrappers(name, modules)
            first = modules[0]
            indent = " " * _INDENT * level
            if first.tensor is not None:
                rows.append(_tensor_row(indent + name, first.tensor, len(modules)))
            if first.children:
                rows.append(_module_row(indent + name, modules))
                if level + 1 < depth:
                    add(first, level + 1)
        if len(folds) > _SIBLINGS:
            left = sum(len(fold.modules) for fold in folds[_SIBLINGS:])
            rows.append(_Row(f"{' ' * _INDENT * level}and {left:,} more; --tensors lists all", "", "", "", ""))

    add(root, 0)
    return rows


def _past_wrappers(name: str, modules: list[_Module]) -> tuple[str, list[_Module]]:
    """The first below `name` that is worth a line: a module around one thing, or one fold, says nothing by itself."""
    while modules[0].tensor is None and len(inside := _folded(modules[0].children)) == 1:
        if len(modules) > 1 and len(inside[0].modules) > 1:
            break
        name = f"{name}.{inside[0].name}"
        modules = [child for module in modules for child in module.children.values()]
    return name, modules


def _tensor_row(name: str, tensor: TensorFacts, count: int) -> _Row:
    times = f" x {count:,}" if count > 1 else ""
    if tensor.tied_to is not None:
        return _Row(name, _shape(tensor) + times, tensor.dtype, "tied", "")
    return _Row(
        name, _shape(tensor) + times, tensor.dtype, counted(count * tensor.elements), human(count * tensor.nbytes)
    )


def _module_row(name: str, modules: list[_Module]) -> _Row:
    first = modules[0]
    what = f"{first.tensors:,} tensor{'s' * (first.tensors != 1)}{' each' * (len(modules) > 1)}"
    elements, nbytes = sum(one.elements for one in modules), sum(one.nbytes for one in modules)
    return _Row(name, what, first.dtype, counted(elements), human(nbytes))


def _aligned(rows: list[_Row], width: int) -> list[str]:
    """The rows in columns, none wider than `width`: where there is no room for all, names stay and columns go."""
    rows = [_Row(printable(row.name), *row[1:]) for row in rows]
    table = [row for row in rows if row.what]  # The others say how much more there is.
    if not table:
        return [_clipped(row.name, width) for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_Row._fields))]
    shown = list(range(len(widths)))
    for column in _DISPENSABLE:
        if widths[0] <= width - sum(widths[at] + _GAP for at in shown[1:]):
            break
        shown.remove(column)
    widths[0] = min(widths[0], width - sum(widths[at] + _GAP for at in shown[1:]))
    lines = []
    for row in rows:
        if not row.what:
            lines.append(_clipped(row.name, width))
            continue
        cells = [_clipped(row[at], widths[at]) for at in shown]
        sides = [f"{cell:{_SIDES[at]}{widths[at]}}" for at, cell in zip(shown, cells, strict=True)]
        lines.append((" " * _GAP).join(sides).rstrip())
    return lines


def counted(number: int) -> str:
    """A count for a person: ``9,999``, then three digits and a unit: ``124M``, ``6.74B``."""
    if number < 10_000:
        return f"{number:,}"
    size = float(number)
    for unit in ("", "k", "M", "B", "T"):
        if size < 999.5 or unit == "T":
            return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}{unit}"
        size /= 1000
    return str(number)


def _shape(tensor: TensorFacts) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def _listed(items: list[str], most: int = _SHOWN) -> str:
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(_clipped(item, _LONGEST) for item in items[:most]) + more


def _clipped(text: str, most: int) -> str:
    """`text` in at most `most` characters, the middle left out: names differ at their ends."""
    if len(text) <= most:
        return text
    if most < 8:
        return text[:most]
    left = (most - 3) // 2
    return f"{text[:left]}...{text[-(most - 3 - left) :]}"
