"""Containers and layouts. A new one is a new module here, and its name in `FORMATS` or `DIRECTORIES`."""

from __future__ import annotations

from collections.abc import Callable

from ..checkpoint import Checkpoint
from ..errors import UnreadableError
from ..limits import DEFAULT_LIMITS, Limits
from ..source import Folder, Source
from ..source import read as read_bytes
from . import (
    bare_pickle,
    dcp,
    dcp_safetensors,
    deepspeed,
    foreign,
    gzipped,
    safetensors,
    torch_legacy,
    torch_tar,
    torch_zip,
)
from .protocol import DirectoryFormat, Format

# Tried in this order: the content decides, never a file's name.
FORMATS: tuple[Format, ...] = (torch_zip, torch_legacy, gzipped, torch_tar, safetensors, bare_pickle)

# Tried in this order: the names of the files decide, as that is what such a checkpoint is told by.
DIRECTORIES: tuple[DirectoryFormat, ...] = (dcp, dcp_safetensors, deepspeed)

_HEAD = 512


def read(source: Source, *, limits: Limits = DEFAULT_LIMITS, depth: int = 0) -> Checkpoint:
    """What `source` holds, without running any of it.

    UnreadableError when it is damaged, hostile or no checkpoint; UnsupportedError when it is
    something sound that is not read here. Both say what it is and what to do.
    """
    if depth > limits.nesting:
        raise UnreadableError(f"it has more than {limits.nesting} containers inside each other. It is hostile")
    head = read_bytes(source, 0, min(_HEAD, source.nbytes))
    for container in FORMATS:
        if head and container.sniff(head, source):
            return container.read(source, _nested(limits, depth), limits)
    raise foreign.named(head, source.nbytes)


def read_folder(folder: Folder, *, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """What a directory holds, without running any of it. The errors are those of `read`."""
    for layout in DIRECTORIES:
        if layout.sniff(folder):
            return layout.read(folder, _nested(limits, 0), limits)
    raise foreign.named_directory(folder)


def _nested(limits: Limits, depth: int) -> Callable[[Source], Checkpoint]:
    return lambda inner: read(inner, limits=limits, depth=depth + 1)
