"""Plain files over HTTP, as any web server has them: for sources by ``http://``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from email.utils import formatdate

from .faults import Fault, Rules
from .log import Log
from .wire import Origin, RefusedError, Request, Response


class FileServer:
    """`files` maps paths (no slash in front) to bytes; it may be changed at any time.

    With `ranges` off, Range is ignored and not offered. With `etags` off there are neither ETag nor Last-Modified.
    """

    def __init__(self, files: dict[str, bytes] | None = None, *, ranges: bool = True, etags: bool = True) -> None:
        self.files = files if files is not None else {}
        self.ranges, self.etags = ranges, etags
        self.log, self.rules = Log(), Rules()
        self._origin = Origin("files", "127.0.0.1", self._find, self.log, self.rules.fault)

    def url(self, path: str) -> str:
        return f"{self._origin.url}/{path}"

    def fail(self, fault: Fault, *, nth: int = 1, times: int | None = 1, method: str = "get") -> None:
        """`fault` on the `nth` GET (or HEAD) from now on, `times` in all."""
        self.rules.add(f"files.{method}", fault, nth=nth, times=times)

    def __enter__(self) -> FileServer:
        self._origin.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.log.stop()
        self._origin.stop()

    def _find(self, request: Request) -> tuple[str, Callable[[], Response]]:
        return request.method.lower(), lambda: self._answer(request)

    def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise RefusedError(405, "Only GET and HEAD")
        data = self.files.get(request.path.lstrip("/"))
        if data is None:
            raise RefusedError(404, "Not found")
        headers = {"Content-Type": "application/octet-stream"}
        if self.etags:
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            headers["Last-Modified"] = formatdate(1_767_225_600, usegmt=True)
        return Response(200, headers, data, ranged=self.ranges)
