"""A URL that must be one of a file."""

from __future__ import annotations

from typing import Any

from sdconvert.remote import RemoteSource, open_url


def opened_file(url: str, **options: Any) -> RemoteSource:
    """The file at `url`, open."""
    source = open_url(url, **options)
    assert isinstance(source, RemoteSource)
    return source
