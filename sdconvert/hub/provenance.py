"""Where the weights come from: which bytes, at which commit, and for whom they were."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from .. import chain
from ..checkpoint import Dict
from ..errors import ChoiceError, SdconvertError, UnreadableError, within
from ..limits import Limits
from ..names import Names
from ..opening import PathLike
from ..opening import open as open_checkpoint
from ..progress import Bar
from ..remote import is_url
from ..remote.hub import HubPath
from ..remote.tokens import scrubbed
from .client import Client, Repository

_STEP = 1 << 20


@dataclass(frozen=True)
class Origin:
    """A source. `pinned` is what to open: on the Hub, a URL with the full id of a commit, so that it cannot change.

    `named` is how the person called it, `name` how it may be called in public: a path on this machine is nobody's
    business but for its last part. `place` and `repository` are those of a source on the Hub; `inside` says that
    the source is a file in an archive, which is what they are of.
    """

    pinned: str
    name: str
    named: str = ""
    place: HubPath | None = None
    repository: Repository | None = None
    inside: bool = False

    @property
    def card(self) -> Mapping[str, Any]:
        """What the card of its repository says."""
        return self.repository.card if self.repository else {}


@dataclass(frozen=True)
class SourceFile:
    """A file that was read; `digest` is ``sha256 ...``, ``git ...``, or "" when nobody knows it."""

    path: str
    digest: str


@dataclass(frozen=True)
class Read:
    """What the source turned out to hold: `entry` names it (the file, or the first of several, or "")."""

    container: str
    entry: str
    files: tuple[str, ...]
    leaves_out: tuple[str, ...] = field(default=())


def find(client: Client, source: PathLike, fallback: tuple[str, str]) -> Origin:
    """The origin that `source` names. `fallback` is a repository and the revision it means when none is named."""
    text = os.fspath(source)
    links, archive = chain.parse(text) or ([], text)
    inside = "".join(f"{link}::" for link in links)
    if not archive.startswith("hf://"):
        if "hf://" in archive:  # For whom it is would not be known.
            raise ChoiceError(f"{scrubbed(text)}: name what is on the Hub by itself, as hf://owner/name/path")
        public = scrubbed(archive) if is_url(archive) else os.path.basename(os.path.abspath(archive))
        return Origin(text, inside + public, text, inside=bool(inside))
    place = HubPath.parse(archive)
    if not place.revision and place.repo == fallback[0]:
        place = place._replace(revision=fallback[1])
    with within(str(place)):
        repository = client.look(place.repo, place.revision)
        if repository is None:
            raise UnreadableError("there is no such repository on the Hub, or it is private: hf auth login")
    place = place._replace(revision=repository.commit)
    return Origin(f"{inside}{place}", f"{inside}{place}", text, place, repository, bool(inside))


def is_of(origin: Origin, repo: str) -> bool:
    """Whether the source is a file, or files, of that repository."""
    return origin.place is not None and origin.place.repo == repo and not origin.inside


def files_of(
    origin: Origin, read: Read, before: tuple[tuple[int, int, int], ...], progress: Bar
) -> tuple[SourceFile, ...]:
    """The files that were read with their digests: the Hub's own, or taken here. UnreadableError when one of them is
    not what it was `before`, which is what `state_of` gave."""
    if origin.place is not None and origin.repository is not None:
        found = []
        for path in hub_paths(origin.place, read):
            one = origin.repository.files.get(path)
            known = f"sha256 {one.sha256}" if one and one.sha256 else f"git {one.git_id}" if one and one.git_id else ""
            found.append(SourceFile(path, known))
        return tuple(found)
    if is_url(origin.pinned):
        return (SourceFile(origin.name, ""),)  # An archive on this machine too: what is in it is what was read.
    paths = _local(origin, read)
    total = sum(os.path.getsize(path) for path in paths.values() if os.path.isfile(path))
    with progress("hashing", total) as update:
        found = [SourceFile(name, _sha256(path, update)) for name, path in paths.items()]
    if state_of(origin, read) != before:
        raise UnreadableError(f"{origin.pinned}: was changed while it was read. Try again when it is complete")
    return tuple(found)


def state_of(origin: Origin, read: Read) -> tuple[tuple[int, int, int], ...]:
    """Which files on this machine were read, and of when; () for what is elsewhere. UnreadableError if one is gone."""
    if origin.place is not None or is_url(origin.pinned):
        return ()
    try:
        stats = [os.stat(path) for path in _local(origin, read).values()]
    except OSError as error:
        raise UnreadableError(f"{origin.pinned}: cannot be looked at: {error.strerror}") from error
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in stats)


def _local(origin: Origin, read: Read) -> dict[str, str]:
    """The paths of the files that were read, by what they may be called."""
    if not read.files:
        return {} if os.path.isdir(origin.pinned) else {origin.name: origin.pinned}
    top = origin.pinned if os.path.isdir(origin.pinned) else os.path.dirname(origin.pinned)
    return {name: os.path.join(top, name) for name in read.files}


def hub_paths(place: HubPath, read: Read) -> tuple[str, ...]:
    """The paths, in the repository, of the files that were read."""
    if not read.files:
        return (place.path,) if place.path else ()
    folder = place.path.rpartition("/")[0] if read.files[0] == place.path.rpartition("/")[2] else place.path
    return tuple(f"{folder}/{name}" if folder else name for name in read.files)


def look_into(origin: Origin, *, key: str | None, names: Names, token: str | None, limits: Limits) -> Read:
    """Read the headers of the source, choose the state dict at `key`. ChoiceError when several fit."""
    with _as_named(origin), open_checkpoint(origin.pinned, token=token, limits=limits) as opened:
        weights = opened.extract(key, names)
        files = opened.checkpoint.files
        left = [f"{one.name} ({one.why})" for one in weights.skipped]
        left += [f"{one.key} (other weights)" for one in weights.others]
        left += (
            [f"{name} (not weights)" for name, _ in weights.leftovers.pairs] if type(weights.leftovers) is Dict else []
        )
        entry = files[0] if files else ""
        if not files and not (origin.place is None and os.path.isdir(origin.pinned)):
            entry = (origin.place.path if origin.place else origin.name).rpartition("/")[2]
        return Read(opened.container, entry, files, tuple(left))


@contextmanager
def _as_named(origin: Origin) -> Iterator[None]:
    """Errors in here call the source what the person did, who knows no commit."""
    try:
        yield
    except SdconvertError as error:
        error.message = error.message.replace(origin.pinned, origin.named)
        error.places = [place.replace(origin.pinned, origin.named) for place in error.places]
        if isinstance(error, ChoiceError):
            error.candidates = tuple(
                replace(one, key=one.key.replace(origin.pinned, origin.named)) for one in error.candidates
            )
        raise


def _sha256(path: str, update: Any) -> str:
    digest = hashlib.sha256()
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:
            while data := file.read(_STEP):
                digest.update(data)
                update(len(data))
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror}") from error
    return f"sha256 {digest.hexdigest()}"
