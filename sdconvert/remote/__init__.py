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

__all__ = ["HubFolder", "Patience", "RemoteSource", "doubt_of", "is_url", "open_url"]

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
    patience = patience or Patience()
    with within(scrubbed(url)):
        if url.startswith("hf://"):
            return _on_the_hub(hub.HubPath.parse(url, revision), token, patience)
        if url.startswith(("http://", "https://")):
            return RemoteSource(http.open_ranges(url, patience=patience))
        return RemoteSource(FsspecRanges(url, patience=patience))


def _on_the_hub(place: hub.HubPath, token: str | None, patience: Patience) -> RemoteSource | HubFolder:
    parent, _, name = place.path.rpartition("/")
    if as_index(name):
        return HubFolder(place._replace(path=parent), entry=name, token=token, patience=patience)
    if place.path:
        try:
            ranges = hub.open_file(place, token=token, patience=patience)
            return RemoteSource(ranges, ranges.digest)
        except hub.NotThereError:
            pass  # The Hub resolves files only; it may be a directory.
    return HubFolder(place, token=token, patience=patience)
