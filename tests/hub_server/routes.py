"""Which function answers which path, and what all of them share: the state of one hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar
from urllib.parse import unquote, urlencode

from .access import Access
from .signing import Signer
from .store import Store
from .wire import RefusedError, Request, Response
from .xet_store import XetStore

_PARTS = {
    "repo": r"(?P<repo>[^/]+/[^/]+?)",
    "path": r"(?P<path>.*)",
}
_Item = TypeVar("_Item")


@dataclass
class Settings:
    """How this hub behaves; a test may change it at any time. Sizes are bytes."""

    transfer: Literal["basic", "multipart"] = "basic"
    part_bytes: int = 1 << 20
    """One part of a multipart upload."""

    regular_bytes: int = 10 << 20
    """Larger files go to LFS whatever their name."""

    page: int = 1000
    """Entries of one page of a list."""

    url_seconds: float = 3600.0
    """How long a signed URL of the CDN is good for."""

    lfs_suffixes: tuple[str, ...] = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".zip", ".tar")


@dataclass
class Hub:
    """What the routes work on. `url` and `cdn_url` are the two origins, without a slash at the end."""

    store: Store
    access: Access
    xet: XetStore
    signer: Signer = field(default_factory=Signer)
    settings: Settings = field(default_factory=Settings)
    url: str = ""
    cdn_url: str = ""

    def signed(self, path: str, **query: str) -> str:
        """A URL of the CDN that needs no token, for a while."""
        return f"{self.cdn_url}{path}?{urlencode(self.signer.sign(path, self.settings.url_seconds, query))}"

    def paged(self, request: Request, items: Sequence[_Item]) -> tuple[Sequence[_Item], dict[str, str]]:
        """The page of `items` that was asked for, and a Link header to the next if there is one."""
        start = int(request.first("cursor") or 0)
        end = start + self.settings.page
        if end >= len(items):
            return items[start:], {}
        query = [(name, value) for name, values in request.query.items() for value in values if name != "cursor"]
        link = f"{self.url}{request.path}?{urlencode([*query, ('cursor', str(end))])}"
        return items[start:end], {"Link": f'<{link}>; rel="next"'}


Handler = Callable[..., Response]


class Routes:
    """A table of (method, path) to functions. `{repo}` is ``owner/name``, `{path}` the rest, others one segment."""

    def __init__(self) -> None:
        self._table: list[tuple[str, re.Pattern[str], str, Handler]] = []

    def on(self, method: str, path: str, name: str) -> Callable[[Handler], Handler]:
        """Decorate the function for a path; `name` is what the log and the faults call it."""
        pattern = re.sub(r"\\{(\w+)\\}", lambda m: _PARTS.get(m[1], f"(?P<{m[1]}>[^/]+)"), re.escape(path))

        def register(handler: Handler) -> Handler:
            for one in ("GET", "HEAD") if method == "GET" else (method,):
                self._table.append((one, re.compile(pattern), name, handler))
            return handler

        return register

    def find(self, hub: Hub, request: Request) -> tuple[str, Callable[[], Response]]:
        """The route's name and its answer, yet to be made: the state is changed when that is called."""
        for method, pattern, name, handler in self._table:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                values = {key: unquote(value) for key, value in match.groupdict().items()}
                return name, partial(handler, hub, request, **values)
        return "unknown", _not_found

    def including(self, *others: Routes) -> Routes:
        for other in others:
            self._table += other._table
        return self


def _not_found() -> Response:
    raise RefusedError(404, "This hub has no such path")
