"""Xet: tokens for the content-addressed store, to write and to read."""

from __future__ import annotations

import time

from .commits import proposed_or_written
from .routes import Hub, Routes
from .wire import Request, Response

routes = Routes()


@routes.on("GET", "/api/models/{repo}/xet-write-token/{revision}", "xet-write-token")
def write_token(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    """`revision` is ``None`` for a pull request that is yet to be made."""
    if revision.startswith("refs/pr/"):
        hub.access.proposable(request, repo)
    else:
        proposed_or_written(hub, request, repo)
    return _token(hub)


@routes.on("GET", "/api/models/{repo}/xet-read-token/{revision}", "xet-read-token")
def read_token(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    hub.access.opened(request, repo)
    return _token(hub)


def _token(hub: Hub) -> Response:
    """Python reads the headers, Rust the body."""
    expires = int(time.time() + 3600)
    return Response.of_json(
        {"casUrl": hub.xet.address, "accessToken": "local", "exp": expires},
        headers={
            "X-Xet-Cas-Url": hub.xet.address,
            "X-Xet-Access-Token": "local",
            "X-Xet-Token-Expiration": str(expires),
        },
    )
