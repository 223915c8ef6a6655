"""HTTP/1.1 on loopback: one origin, its requests and answers, and the faults that are put in between."""

from __future__ import annotations

import io
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .faults import Drop, Fault, IgnoreRange, LoseReply, Slow, Status, WrongBytes, WrongRange
from .log import Entry, Log

_PIECE = 64 << 10  # Bytes of one send, so that the log counts what a client took before it hung up.


@dataclass(frozen=True)
class Request:
    """One call. `path` is raw: a revision in it is percent-encoded, slashes and all."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def first(self, name: str) -> str:
        return self.query.get(name, [""])[0]

    def flag(self, name: str) -> bool:
        return self.first(name).lower() in ("1", "true")


@dataclass
class Response:
    """An answer. With `ranged`, a Range header is honoured: 206, or 416 past the end."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    ranged: bool = False

    @classmethod
    def of_json(cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        body = json.dumps(value).encode()
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, body)


class RefusedError(Exception):
    """An error the server answers with. `code` is the X-Error-Code by which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        extra = {"X-Error-Code": code} if code else {}
        self.response = Response.of_json(
            {"error": message}, status, {"X-Error-Message": message, **extra, **(headers or {})}
        )


Answer = Callable[[Request], tuple[str, Callable[[], Response]]]
"""The name of the route that a request takes, and what answers it."""


class Origin:
    """A listener on a free port. `host` is the name clients call it by: two names are two origins to them."""

    def __init__(self, name: str, host: str, answer: Answer, log: Log, fault: Callable[[str], Fault | None]) -> None:
        self.name, self.answer, self.log, self.fault = name, answer, log, fault
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.origin = self
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name=f"{name}-origin")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()  # Joins the threads of all connections.


class _Server(socketserver.ThreadingTCPServer):
    """Not http.server.HTTPServer: that one asks the resolver for a name when it binds."""

    allow_reuse_address = True
    request_queue_size = 128
    origin: Origin

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End every connection: an idle one waits for its next request for ever."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # The client was quicker.
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # Clients hang up whenever they like; errors of routes are answered with a 500.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Otherwise each answer waits 40 ms for the client's acknowledgement.
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _serve(self) -> None:
        split = urlsplit(self.path)
        body = self._body()
        query = parse_qs(split.query, keep_blank_values=True)
        request = Request(self.command, split.path, query, {k.lower(): v for k, v in self.headers.items()}, body)
        origin = self.server.origin
        route, make = origin.answer(request)
        fault = origin.fault(f"{origin.name}.{route}")
        entry = Entry(origin.name, route, self.command, self.path, request.headers, len(body))
        if isinstance(fault, Slow):
            origin.log.pause(fault.seconds)
        if isinstance(fault, Status):
            response = Response.of_json({"error": "injected"}, fault.status, fault.headers)
        else:
            response = self._made(make)
        if isinstance(fault, LoseReply):
            self.close_connection = True
            origin.log.add(entry)
            return
        self._send(request, response, fault, entry)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _made(self, make: Callable[[], Response]) -> Response:
        try:
            return make()
        except RefusedError as refusal:
            return refusal.response
        except Exception as error:
            self.server.origin.log.broken.append(error)
            return Response.of_json({"error": repr(error)}, 500)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = io.BytesIO()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole.write(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return whole.getvalue()

    def _send(self, request: Request, response: Response, fault: Fault | None, entry: Entry) -> None:
        status, headers, body = response.status, dict(response.headers), memoryview(response.body)
        if response.ranged and status == 200:
            if not isinstance(fault, IgnoreRange):
                headers["Accept-Ranges"] = "bytes"
                status, headers, body = _ranged(request.headers.get("range", ""), headers, body)
            if isinstance(fault, WrongBytes):
                body = memoryview(bytes(byte ^ 0xFF for byte in body))
            if isinstance(fault, WrongRange) and "Content-Range" in headers:
                headers["Content-Range"] = f"bytes 1-{len(body)}/{len(response.body)}"
        entry.status = status
        self.server.origin.log.add(entry)  # Before the answer: who has read it all may look at once.
        headers["Content-Length"] = str(len(body))
        if isinstance(fault, Drop):
            self.close_connection = True
            body = body[: fault.after]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == "HEAD":
            return
        for start in range(0, len(body), _PIECE):
            piece = body[start : start + _PIECE]
            entry.sent += len(piece)
            self.wfile.write(piece)


def _ranged(header: str, headers: dict[str, str], body: memoryview) -> tuple[int, dict[str, str], memoryview]:
    """Status, headers and body for a Range header; several ranges at once are answered in full, as S3 does."""
    unit, _, spec = header.partition("=")
    first, dash, last = spec.partition("-")
    if unit.strip() != "bytes" or not dash or "," in spec:
        return 200, headers, body
    size = len(body)
    if first:
        begin, end = int(first), min(int(last) + 1 if last else size, size)
    else:
        begin, end = max(0, size - int(last)), size
    if begin >= size or begin >= end:
        return 416, {**headers, "Content-Range": f"bytes */{size}"}, memoryview(b"")
    return 206, {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{size}"}, body[begin:end]
