"""A hub for tests: the real `huggingface_hub` client talks to it over loopback, and nothing is mocked.

`HubServer` has the Hub's origin (127.0.0.1) and its CDN's (localhost), so that a token sent to the wrong one
is seen. Every request is in `log`; `fail(route, fault)` makes the n-th call of a route go wrong.
`FileServer` serves plain files over HTTP, with ranges or without.

It is not hf.co: no .gitattributes, scans, quotas or rate limits, and Xet goes through the client's own store in
a directory, not over HTTP.
"""

from __future__ import annotations

from .faults import Drop, Fault, IgnoreRange, LoseReply, Slow, Status, WrongBytes, WrongRange
from .files import FileServer
from .server import HubServer

__all__ = [
    "Drop",
    "Fault",
    "FileServer",
    "HubServer",
    "IgnoreRange",
    "LoseReply",
    "Slow",
    "Status",
    "WrongBytes",
    "WrongRange",
]
