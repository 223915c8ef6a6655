"""Sources that are not on this machine: the Hub, HTTP, and what fsspec knows. Read by ranges, never downloaded whole.

The only place, beside publishing, that imports `huggingface_hub`; and nothing of it before a URL is opened.
"""

from __future__ import annotations

import re

from ..errors import ChoiceError, within
from . import hub
from .blocks import RemoteSource
from .files import FsspecRanges
from .http import Patience, open_url
from .tokens import scrubbed

__all__ = ["Patience", "RemoteSource", "is_url", "open_file"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::[A-Za-z][A-Za-z0-9+.-]*)*://")


def is_url(source: str) -> bool:
    """Whether `source` is the URL of something rather than a path: ``scheme://``."""
    return _SCHEME.match(source) is not None


def open_file(
    url: str, *, revision: str | None = None, token: str | None = None, patience: Patience | None = None
) -> RemoteSource:
    """The file at `url`, which is read when it is asked for. UnreadableError if it is not there or not readable.

    `revision` and `token` are for the Hub. The token goes to the Hub alone, wherever it sends us.
    """
    patience = patience or Patience()
    with within(scrubbed(url)):
        if url.startswith("hf://"):
            place = hub.HubPath.parse(url, revision)
            if not place.path:
                raise ChoiceError(f"name the file in it: {place}/...")
            return RemoteSource(hub.open_file(place, token=token, patience=patience))
        if url.startswith(("http://", "https://")):
            return RemoteSource(open_url(url, patience=patience))
        return RemoteSource(FsspecRanges(url, patience=patience))
