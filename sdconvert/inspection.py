"""What an inspection found, as data, and its views: text, JSON, a page for a browser, a card for a notebook."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import outline
from .atomic import check_target, new_file, publish
from .checkpoint import Skipped
from .errors import ChoiceError
from .notebook import card
from .opening import PathLike
from .stream import write

_NARROWEST = 24  # Columns; no terminal that anybody reads has fewer.
_NOTEBOOK = 100  # Columns of the tree in a notebook.


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor. `nbytes` are its bytes when written; `tied_to` the name under which it is, None for its own.

    `contiguous` is torch's word: row-major without gaps in its storage.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int
    tied_to: str | None
    contiguous: bool

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "parameters": self.elements,
            "bytes": self.nbytes,
            "tied_to": self.tied_to,
            "contiguous": self.contiguous,
        }


@dataclass(frozen=True, slots=True)
class DTypeFacts:
    """How much there is of one element type, a tie counted once. `nbytes` are bytes."""

    dtype: str
    tensors: int
    elements: int
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        return {"dtype": self.dtype, "tensors": self.tensors, "parameters": self.elements, "bytes": self.nbytes}


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """A state dict that could be meant, every name of it counted. `nbytes` are bytes.

    `elements` is None for those that were not opened: after the first twenty, or sooner where each is costly.
    """

    key: str
    tensors: int
    elements: int | None
    nbytes: int
    kind: str

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        return {
            "key": self.key,
            "tensors": self.tensors,
            "parameters": self.elements,
            "bytes": self.nbytes,
            "kind": self.kind,
        }


@dataclass(frozen=True)
class Inspection:
    """What is in a file. `source_bytes` is its size, `output_bytes` that of the safetensors file it would become.

    `nbytes` and `elements` count a tie once. `tensors` are those of the state dict at `key`;
    where several fit, `kind` is ``several`` and they are those of all candidates, each key
    put before the names. `problems` say what a conversion would refuse, and then
    `output_bytes` is None; `warnings` say what it would point out. `dangerous_globals` are
    those of `unknown_globals` whose names no model needs. None of them was run.
    """

    source: str
    source_bytes: int
    container: str
    version: str
    kind: str
    key: str
    tensors: tuple[TensorFacts, ...]
    nbytes: int
    elements: int
    output_bytes: int | None
    candidates: tuple[CandidateFacts, ...]
    aliases: Mapping[str, str]
    dtypes: tuple[DTypeFacts, ...]
    prefixes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    known_globals: tuple[str, ...]
    unknown_globals: tuple[str, ...]
    dangerous_globals: tuple[str, ...]
    metadata: Mapping[str, str]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def is_pickle(self) -> bool:
        """Whether there is a pickle in it, so that others who load it run what it says: all but safetensors."""
        return not self.container.endswith("safetensors") or bool(self.known_globals or self.unknown_globals)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-ready data."""
        return {
            "source": self.source,
            "source_bytes": self.source_bytes,
            "container": self.container,
            "version": self.version,
            "kind": self.kind,
            "key": self.key,
            "parameters": self.elements,
            "bytes": self.nbytes,
            "output_bytes": self.output_bytes,
            "candidates": [one.to_json() for one in self.candidates],
            "aliases": dict(self.aliases),
            "dtypes": [one.to_json() for one in self.dtypes],
            "prefixes": list(self.prefixes),
            "skipped": [{"name": one.name, "why": one.why} for one in self.skipped],
            "globals": {
                "known": list(self.known_globals),
                "unknown": list(self.unknown_globals),
                "dangerous": list(self.dangerous_globals),
            },
            "metadata": dict(self.metadata),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "tensors": [one.to_json() for one in self.tensors],
        }

    def to_text(self, *, width: int | None = None, tensors: bool = False) -> str:
        """The summary and the folded tree of modules, in `width` columns (default: the terminal's).

        With `tensors`, every tensor by itself instead of the tree, names never cut.
        """
        width = max(width or shutil.get_terminal_size().columns, _NARROWEST)
        shown = outline.listing(self.tensors) if tensors else outline.tree(self.tensors, width)
        return "\n".join([*outline.summary(self, width), *([""] if shown else []), *shown])

    def to_html(self) -> str:
        """One self-contained page, as text: a map of the modules, a table of the tensors, all the findings."""
        from .html import page  # Few who inspect want it.

        return page(self)

    def write_html(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write the page to `path`, whole or not at all.

        OutputError when it cannot be, or when it is there already; ChoiceError when it is the source.
        """
        target = Path(path)
        with suppress(OSError):  # The source may be gone by now.
            if target.samefile(self.source):
                raise ChoiceError(f"{target}: is the source itself. Name another file")
        check_target(target, overwrite=overwrite, source=None)
        data = self.to_html().encode()
        with new_file(target, overwrite=overwrite, nbytes=len(data)) as file:
            write(file.fd, data, 0)
            file.sync()
            publish([file])

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return card(self.source, outline.facts(self), ("Modules", outline.tree(self.tensors, _NOTEBOOK)))
