"""What a hostile case is: bytes, what must become of them, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Build = Callable[[], bytes]
Tensor = tuple[str, tuple[int, ...], bytes]
"""(safetensors code, shape, little-endian bytes)."""

REJECT, CONVERT, EITHER = "reject", "convert", "either"

MEMORY = 300 << 20
SECONDS = 10.0


@dataclass(frozen=True)
class Case:
    """One hostile file.

    `expect` is ``reject`` (exit 1, one line, no output), ``convert`` (exit 0 and exactly `tensors`) or
    ``either`` (no traceback; what is written is valid). `says` must be in what is printed. `args`
    follow the source and output on the command line; `file` is what the source is called.
    """

    name: str
    build: Build = field(repr=False)
    expect: str
    tensors: Mapping[str, Tensor] | None = None
    says: str = ""
    args: tuple[str, ...] = ()
    file: str = "model.pt"
    memory: int = MEMORY
    seconds: float = SECONDS


def rejects(group: str, builds: Mapping[str, Build], *, file: str = "model.pt", says: str = "") -> Iterable[Case]:
    """Cases that must be refused."""
    return [Case(f"{group}-{name}", build, REJECT, file=file, says=says) for name, build in builds.items()]


def rejects_saying(group: str, builds: Mapping[str, Mapping[str, Build]]) -> Iterable[Case]:
    """Cases that must be refused, by the words that say why: another check that would refuse them too is not enough."""
    return [case for says, some in builds.items() for case in rejects(group, some, says=says)]


def either(
    group: str, builds: Mapping[str, Build], *, file: str = "model.pt", args: tuple[str, ...] = ()
) -> list[Case]:
    """Cases that may be refused or converted, but not crash or cost too much."""
    return [Case(f"{group}-{name}", build, EITHER, file=file, args=args) for name, build in builds.items()]


def converts(
    group: str, builds: Mapping[str, Build], tensors: Mapping[str, Tensor], *, says: str = "", file: str = "model.pt"
) -> list[Case]:
    """Cases that must give exactly `tensors`."""
    return [Case(f"{group}-{name}", build, CONVERT, tensors, says, file=file) for name, build in builds.items()]
