"""Output formats. A new one is a new module here, and its row in `WRITERS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from ..checkpoint import Encoding
from ..errors import ChoiceError
from ..plan import Plan
from ..stream import Placed
from . import safetensors, torch_zip


class Layout(Protocol):
    """A file, decided to the byte: fixed parts, and the places of the tensors between them."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""

    @property
    def fixed(self) -> tuple[tuple[int, bytes], ...]:
        """(place, bytes) of what is known before the tensors are."""

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The tensors, in the order of their places."""

    def finish(self, crcs: Mapping[int, int]) -> Iterable[tuple[int, bytes]]:
        """(place, bytes) of the rest; `crcs` are the CRC-32 of the tensors that have a tail, by place."""


class Writer(Protocol):
    """An output format. One module of this package each."""

    NAME: str
    SUFFIX: str
    HAS_METADATA: bool
    """Whether the format has a place for strings beside the tensors."""

    def names(self, plan: Plan) -> Iterable[str]:
        """The names that are in the file itself; a reader finds the others of `plan` in metadata."""

    def encoded(self, plan: Plan) -> Mapping[str, Encoding]:
        """Which tensors, by name, are written as plain parts and a recipe, because the format has nothing like them."""

    def lay_out(self, plan: Plan, metadata: Mapping[str, str]) -> Layout:
        """Where everything goes. UnsupportedError for what the format cannot hold."""


WRITERS: Mapping[str, Writer] = MappingProxyType({"safetensors": safetensors, "pt": torch_zip})


def named(name: str) -> Writer:
    """The writer called `name`. ChoiceError when there is none."""
    if name not in WRITERS:
        raise ChoiceError(f"there is no output format {name!r}, only {', '.join(WRITERS)}")
    return WRITERS[name]


def for_path(path: Path, name: str | None = None) -> Writer:
    """The writer called `name`, or the one that `path` ends like. ChoiceError for none, and for a misleading ending."""
    asked = None if name is None else named(name)
    for writer in WRITERS.values():
        if path.name.endswith(writer.SUFFIX) and asked is not None and asked is not writer:
            # Whoever reads it goes by its name; a pickle that is called safetensors is what nobody expects.
            raise ChoiceError(
                f"{path.name}: a {asked.NAME} file must not end in {writer.SUFFIX}. {asked.SUFFIX} tells what it is"
            )
        if path.name.endswith(writer.SUFFIX) and asked is None:
            return writer
    if asked is not None:
        return asked
    endings = ", ".join(writer.SUFFIX for writer in WRITERS.values())
    raise ChoiceError(f"{path.name}: its ending names no output format; {endings} would")
