"""Sources that are not on this machine: the Hub, HTTP, and what fsspec knows. Read by ranges, never downloaded whole.

The only place, beside publishing, that imports `huggingface_hub`; and nothing of it before a URL is opened.
"""

from __future__ import annotations

import re

from ..errors import within
from ..shardnames import as_index
from . import http, hub
from .blocks import RemoteSource
from .files import FsspecRanges
from .http import Patience
from .hub_folder import HubFolder
from .tokens import scrubbed

__all__ = ["HubFolder", "Patience", "RemoteSource", "doubt_of", "is_url", "open_url", "state_of"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::[A-Za-z][A-Za-z0-9+.-]*)*://")


def is_url(source: str) -> bool:
    """Whether `source` is the URL of something rather than a path: ``scheme://``."""
    return _SCHEME.match(source) is not None


def doubt_of(origin: object) -> str:
    """Why the bytes that came from a server could not be checked, "" if they were or came from none."""
    return origin.doubt if isinstance(origin, RemoteSource | HubFolder) else ""


def open_url(
    url: str, *, revision: str | None = None, token: str | None = None, patience: Patience | None = None
) -> RemoteSource | HubFolder:
    """What is at `url`: a file, or on the Hub a repository or a directory of one. It is read when it is asked for.

    An index of shards on the Hub is opened as the directory that it is in. `revision` and `token` are for the
    Hub; the token goes nowhere else, wherever the Hub sends us. UnreadableError says what is not there.
    """
    found = _found(url, revision, token, patience or Patience())
    if isinstance(found, HubFolder):
        return found
    return RemoteSource(found, found.digest if isinstance(found, hub.HubRanges) else "")


def state_of(url: str, *, token: str | None = None) -> str:
    """A word that is another one when what is at `url` was replaced: its size, and the tag, time or commit that
    its server tells. UnreadableError says what is not there."""
    found = _found(url, None, token, Patience())
    try:
        if isinstance(found, HubFolder):
            return found.commit
        if isinstance(found, FsspecRanges):
            return found.state
        mark = found.etag_of_content if isinstance(found, hub.HubRanges) else found.etag
        return f"{found.nbytes}-{mark}" if mark else f"{found.nbytes}"
    finally:
        found.close()


def _found(
    url: str, revision: str | None, token: str | None, patience: Patience
) -> hub.HubRanges | http.HttpRanges | FsspecRanges | HubFolder:
    with within(scrubbed(url)):
        if url.startswith("hf://"):
            return _on_the_hub(hub.HubPath.parse(url, revision), token, patience)
        if url.startswith(("http://", "https://")):
            return http.open_ranges(url, patience=patience)
        return FsspecRanges(url, patience=patience)


def _on_the_hub(place: hub.HubPath, token: str | None, patience: Patience) -> hub.HubRanges | HubFolder:
    parent, _, name = place.path.rpartition("/")
    if as_index(name):
        return HubFolder(place._replace(path=parent), entry=name, token=token, patience=patience)
    if place.path:
        try:
            return hub.open_file(place, token=token, patience=patience)
        except hub.NotThereError:
            pass  # The Hub resolves files only; it may be a directory.
    return HubFolder(place, token=token, patience=patience)
