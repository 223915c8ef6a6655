"""From what a person names to an open checkpoint: which file or directory, which container, which state dict."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

from . import chain, formats, remote
from .chain import MemberSource
from .checkpoint import Candidate, Checkpoint, StateDict
from .dtypes import DType
from .errors import ChoiceError, UnreadableError, within
from .extract import candidates, extract
from .folder import LocalFolder
from .limits import DEFAULT_LIMITS, Limits
from .names import Names
from .neighbours import belonging, is_pattern, matching
from .shardnames import as_index
from .source import FileSource, Folder, Origin

PathLike = str | os.PathLike[str]


class OpenCheckpoint:
    """A checkpoint that is open for looking: its tree and its state dict, no tensor in memory."""

    def __init__(self, origin: Origin, checkpoint: Checkpoint, limits: Limits) -> None:
        self.origin, self._limits = origin, limits
        self.checkpoint = checkpoint

    @property
    def name(self) -> str:
        """What was opened, as it was named."""
        return self.origin.name

    @property
    def container(self) -> str:
        """The name of its format, such as ``torch-zip``."""
        return self.checkpoint.container

    @property
    def candidates(self) -> list[Candidate]:
        """Every state dict that could be meant."""
        return candidates(self.checkpoint, limits=self._limits)

    @cached_property
    def state_dict(self) -> StateDict:
        """The state dict there is. ChoiceError when there are several."""
        return self.extract()

    def extract(self, key: str | None = None, names: Names | None = None, dtype: DType | None = None) -> StateDict:
        """The state dict at `key`, or the one there is; as it was stored in `dtype` if it is there in it too."""
        checkpoint = self.checkpoint
        if dtype is not None and dtype.name in checkpoint.copies:
            checkpoint = replace(checkpoint, root=checkpoint.copies[dtype.name])
        with within(self.name):
            return extract(checkpoint, key=key, names=names, limits=self._limits)

    def check_unchanged(self) -> tuple[str, ...]:
        """After reading: UnreadableError if the source changed, or sent other bytes than those that are in it.

        What it gives are warnings: what could not be checked because nothing tells what it should be.
        """
        with within(self.name):
            self.origin.check_unchanged()
        # What is in an archive comes as the archive does.
        doubt = remote.doubt_of(self.origin.base if isinstance(self.origin, MemberSource) else self.origin)
        return (f"the bytes that the server sent could not be checked: {doubt}",) if doubt else ()

    def close(self) -> None:
        """Let go of the source; tensors of it cannot be read any more."""
        self.origin.close()

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(  # noqa: A001 - sdconvert.open
    source: PathLike, *, revision: str | None = None, token: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> OpenCheckpoint:
    """Open a checkpoint to look at it: a file, a directory, a URL. Headers are read, weights are not, nothing is run.

    `revision` and `token` are for a source on the Hub (``hf://owner/name``): a branch, tag, pull request or commit,
    and what to show it instead of ``HF_TOKEN`` or what ``hf auth login`` keeps.

    UnreadableError or UnsupportedError says what it is instead, and what to do.
    """
    origin = _locate(os.fspath(source), limits, revision, token)
    try:
        with within(origin.name):
            if isinstance(origin, MemberSource):
                checkpoint = formats.read(origin.source, limits=limits)
            elif isinstance(origin, FileSource | remote.RemoteSource):
                checkpoint = formats.read(origin, limits=limits)
                checkpoint = replace(checkpoint, warnings=(*checkpoint.warnings, *belonging(origin.name)))
            else:
                checkpoint = formats.read_folder(origin, limits=limits)
        return OpenCheckpoint(origin, checkpoint, limits)
    except BaseException:
        origin.close()
        raise


def _locate(
    source: str, limits: Limits, revision: str | None = None, token: str | None = None
) -> FileSource | MemberSource | remote.RemoteSource | Folder:
    chained = chain.parse(source)
    if chained is not None:
        links, archive = chained
        base = _locate(archive, limits, revision, token)
        try:
            if not isinstance(base, FileSource | remote.RemoteSource):
                raise UnreadableError(f"{archive}: is a directory, not an archive")
            return MemberSource(source, base, links, limits)
        except BaseException:
            base.close()
            raise
    if revision is not None and not source.startswith("hf://"):
        raise ChoiceError(f"{source}: has no revisions; only what is on the Hub has: hf://owner/name")
    if remote.is_url(source):
        return remote.open_url(source, revision=revision, token=token)
    if is_pattern(source):
        found = matching(source)
        return _locate(found, limits) if isinstance(found, str) else found
    if os.path.isdir(source):  # Path.is_dir raises for a name that is too long.
        return LocalFolder(source)
    index = as_index(os.path.basename(source))
    if index and os.path.isfile(source):
        path = Path(source)
        folder = LocalFolder(path.parent, entry=path.name)
        folder.stem = path.with_name(f"{index.stem}.{index.variant}" if index.variant else index.stem)
        return folder
    return FileSource(source)
