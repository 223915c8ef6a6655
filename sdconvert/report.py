"""What happened, as data: the same facts for a person, for a machine and for a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .checkpoint import Candidate, Checkpoint, Encoding, Skipped, StateDict
from .errors import listed, printable
from .names import known_prefixes
from .notebook import card
from .pickles.known import is_dangerous, is_known
from .plan import Plan

_SHOWN = 8
_KINDS = {
    "module": "a whole pickled model",
    "tensor": "a single tensor",
    "torchscript": "a TorchScript model",
    "exported": "a program of torch.export",
}


@dataclass(frozen=True)
class Output:
    """One written file."""

    path: str
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file of a sharded output, written or planned: `nbytes` of tensors, and their names."""

    path: str
    nbytes: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The outcome of a conversion. `nbytes` are those of the tensors written, `seconds` wall time.

    `verified` is True when the output was read back and found to be what was meant to be
    written, False when that was switched off. `outputs` is empty after a dry run, `shards` are those of a
    sharded output after one too. `files` are the files of a directory that were read. `encoded` are the
    tensors that the output has as plain parts and a recipe, by name.
    """

    source: str
    container: str
    kind: str
    key: str
    files: tuple[str, ...]
    outputs: tuple[Output, ...]
    shards: tuple[Shard, ...]
    tensors: int
    nbytes: int
    source_bytes: int
    aliases: Mapping[str, str]
    encoded: Mapping[str, Encoding]
    skipped: tuple[Skipped, ...]
    known_globals: tuple[str, ...]
    unknown_globals: tuple[str, ...]
    prefixes: tuple[str, ...]
    others: tuple[Candidate, ...]
    warnings: tuple[str, ...]
    verified: bool
    seconds: float

    @staticmethod
    def of(
        source: str,
        source_bytes: int,
        checkpoint: Checkpoint,
        weights: StateDict,
        plan: Plan,
        *,
        encoded: Mapping[str, Encoding] = MappingProxyType({}),
        outputs: tuple[Output, ...] = (),
        shards: tuple[Shard, ...] = (),
        warnings: tuple[str, ...] = (),
        verified: bool = False,
        seconds: float = 0.0,
    ) -> Report:
        """The report of one conversion, from what each stage decided."""
        names = sorted({name.full for name in checkpoint.globals})
        known = {name.full for name in checkpoint.globals if is_known(name)}
        return Report(
            source=source,
            container=checkpoint.container,
            kind=weights.kind,
            key=weights.key,
            files=checkpoint.files,
            outputs=outputs,
            shards=shards,
            tensors=len(plan.entries),
            nbytes=plan.nbytes,
            source_bytes=source_bytes,
            aliases=plan.aliases,
            encoded=encoded,
            skipped=weights.skipped,
            known_globals=tuple(name for name in names if name in known),
            unknown_globals=tuple(name for name in names if name not in known),
            prefixes=known_prefixes(list(weights.tensors)),
            others=weights.others,
            warnings=(*weights.warnings, *plan.warnings, *warnings),
            verified=verified,
            seconds=seconds,
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {
            "source": self.source,
            "container": self.container,
            "kind": self.kind,
            "key": self.key,
            "files": list(self.files),
            "outputs": [{"path": output.path, "bytes": output.nbytes} for output in self.outputs],
            "shards": [{"path": one.path, "bytes": one.nbytes, "names": list(one.names)} for one in self.shards],
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "source_bytes": self.source_bytes,
            "aliases": dict(self.aliases),
            "encoded": [
                {"name": name, "recipe": dict(one.recipe), "parts": dict(one.parts)}
                for name, one in self.encoded.items()
            ],
            "skipped": [{"name": one.name, "why": one.why} for one in self.skipped],
            "globals": {"known": list(self.known_globals), "unknown": list(self.unknown_globals)},
            "prefixes": list(self.prefixes),
            "others": [
                {"key": one.key, "tensors": one.tensors, "bytes": one.nbytes, "kind": one.kind} for one in self.others
            ],
            "warnings": list(self.warnings),
            "verified": self.verified,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        lines = [*self._titles(), *(f"  {label:<8}  {text}" for label, text in self._facts())]
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        first, *others = self._titles()
        return card(first, [*(("and", title) for title in others), *self._facts()])

    def _titles(self) -> list[str]:
        written = [f"{self.source} -> {output.path}" for output in self.outputs[:_SHOWN]]
        if len(self.outputs) > _SHOWN:
            written.append(f"{self.source} -> and {len(self.outputs) - _SHOWN:,} more files")
        return written or [f"{self.source} (dry run, nothing was written)"]

    def _facts(self) -> Iterator[tuple[str, str]]:
        what = _KINDS.get(self.kind, "a state dict")
        where = f" at {self.key}" if self.key else ""
        yield "source", f"{self.container}, {human(self.source_bytes)}: {what}{where}"
        if self.files:
            yield "files", listed(list(self.files))
        if self.shards:
            yield "shards", f"{len(self.shards):,}, the largest {human(max(one.nbytes for one in self.shards))}"
        checked = "verified bit by bit" if self.verified else "not verified"
        yield "tensors", f"{self.tensors:,}, {human(self.nbytes)}, {checked}, {self.seconds:.2f} s"
        if self.aliases:
            yield "tied", listed([f"{alias} = {kept}" for alias, kept in self.aliases.items()])
        if self.encoded:
            kinds = [f"{name} ({_kind_of(one)})" for name, one in self.encoded.items()]
            yield "encoded", f"as plain parts and a recipe: {listed(kinds)}"
        if self.skipped:
            yield "left out", listed([f"{one.name} ({one.why})" for one in self.skipped])
        if self.prefixes:
            yield "prefixes", f"names carry {' '.join(self.prefixes)} (--strip-prefix auto takes them off)"
        if self.unknown_globals:
            # The dangerous ones first, so that none is among those that are only counted.
            marked = sorted(self.unknown_globals, key=is_dangerous, reverse=True)
            names = [f"{name} (!)" if is_dangerous(name) else name for name in marked]
            yield "classes", f"named in the pickle, not needed, never run: {listed(names)}"
        yield from (("warning", text) for text in self.warnings)


def _kind_of(one: Encoding) -> str:
    kind, dtype = one.recipe["encoding"], one.recipe["dtype"]
    return one.recipe["class"] if kind == "subclass" else dtype if kind in ("complex", "bits") else f"{kind} {dtype}"


def human(nbytes: int) -> str:
    """Bytes for a person, in decimal units as disks and the Hub count them: ``1.50 GB``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    for unit, size in (("kB", 10**3), ("MB", 10**6)):
        if nbytes < 999.995 * size:  # What would be rounded to 1,000 is 1 of the next unit.
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes / 10**9:,.2f} GB"
