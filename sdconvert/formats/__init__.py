"""Containers and layouts. A new one is a new module here, and its name in `FORMATS` or `DIRECTORIES`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..checkpoint import Checkpoint
from ..errors import UnreadableError
from ..inflated import head_of
from ..limits import DEFAULT_LIMITS, Limits
from ..source import Folder, SliceSource, Source
from . import (
    bare_pickle,
    dcp,
    dcp_safetensors,
    deepspeed,
    foreign,
    gzipped,
    safetensors,
    sharded,
    torch_legacy,
    torch_tar,
    torch_zip,
    weights_dir,
)
from .protocol import DirectoryFormat, Format

# Tried in this order: the content decides, never a file's name.
FORMATS: tuple[Format, ...] = (torch_zip, torch_legacy, gzipped, torch_tar, safetensors, bare_pickle)

# Tried in this order: the names of the files decide, as that is what such a checkpoint is told by. The last takes
# what is not a layout of its own, and hands what it finds in it to the others.
DIRECTORIES: tuple[DirectoryFormat, ...] = (sharded, dcp, dcp_safetensors, deepspeed, weights_dir)

_HEAD = 512
_LEAST = 16 << 10  # Bytes of a pickle that is one of very many.


def read(source: Source, *, limits: Limits = DEFAULT_LIMITS, depth: int = 0) -> Checkpoint:
    """What `source` holds, without running any of it.

    UnreadableError when it is damaged, hostile or no checkpoint; UnsupportedError when it is
    something sound that is not read here. Both say what it is and what to do.
    """
    if depth >= limits.nesting:
        raise UnreadableError(
            f"it has more than {limits.nesting} containers inside each other (Limits.nesting). It is hostile"
        )
    head = head_of(source, _HEAD)
    container = _container(head, source)
    if container is None:
        raise foreign.named(head, source.nbytes)
    return container.read(source, Inside(limits, depth + 1), limits)


def read_folder(folder: Folder, *, limits: Limits = DEFAULT_LIMITS, depth: int = 0) -> Checkpoint:
    """What a directory holds, without running any of it. The errors are those of `read`."""
    if depth >= limits.nesting:
        raise UnreadableError(
            f"it has more than {limits.nesting} checkpoints inside each other (Limits.nesting). It is hostile"
        )
    for layout in DIRECTORIES:
        if layout.sniff(folder):
            return layout.read(folder, Inside(limits, depth + 1), limits)
    raise foreign.named_directory(folder)


def _container(head: bytes, source: Source) -> Format | None:
    return next((container for container in FORMATS if head and container.sniff(head, source)), None)


@dataclass(frozen=True)
class Inside:
    """Reads what lies inside something else, `depth` levels down."""

    limits: Limits
    depth: int

    def __call__(self, source: Source | Folder) -> Checkpoint:
        # Whether something is a Folder takes Python some 30 us to find out; a checkpoint can have 100,000 parts.
        if not isinstance(source, SliceSource) and isinstance(source, Folder):
            return read_folder(source, limits=self.limits, depth=self.depth)
        return read(source, limits=self.limits, depth=self.depth)

    def among(self, count: int) -> Inside:
        share = max(_LEAST, self.limits.inflate_slack // max(count, 1))
        return replace(self, limits=replace(self.limits, inflate_slack=min(share, self.limits.inflate_slack)))

    def knows(self, source: Source) -> bool:
        return _container(head_of(source, _HEAD), source) is not None
