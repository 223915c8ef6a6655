"""Ranges of a file by HTTP, held to what the server says it sends.

A server that ignores Range answers 200 with the file's beginning; taken for the range, that would
be wrong bytes without an error, so every answer must be a 206 with the very Content-Range that was asked for.
What passes (a 5xx, a dropped connection) is tried again from the byte it got to; an address
that is not good any more is asked for anew, once each time.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnreadableError
from .tokens import scrubbed

# Numbers that int() takes, whatever the server sends: it refuses more than 4300 digits, and "²", which is one to str.
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_SECONDS = re.compile(r"[0-9]{1,9}")
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({301, 302, 303, 307, 308, 400, 401, 403, 404, 410})  # A signed address that expired; CDNs differ.


@dataclass(frozen=True)
class Patience:
    """How long to try. Waits double from `first` seconds to `most`; `timeout` is for one silence of the server."""

    tries: int = 6
    first: float = 0.5
    most: float = 10.0
    timeout: float = 30.0

    def wait(self, tried: int, asked: str | None = None) -> None:
        """Wait before the next try, after `tried` of them; `asked` is the Retry-After header, if there was one."""
        seconds = min(self.first * 2 ** (tried - 1), self.most) * random.uniform(0.5, 1.0)
        if asked is not None and _SECONDS.fullmatch(asked):
            seconds = max(seconds, min(int(asked), 60))
        time.sleep(seconds)


@dataclass(frozen=True)
class Location:
    """Where the bytes are right now, and the headers that this very address gets, a token for instance."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class PassingError(Exception):
    """Something that may go well the next time; `after` is the server's wish for how many seconds to wait."""

    def __init__(self, what: str, after: str | None = None) -> None:
        super().__init__(what)
        self.after = after


class MovedError(Exception):
    """The address is not good, or not any more."""


class HttpRanges:
    """A file of `nbytes` bytes. `locate()` gives its address anew when the server does not take the one there is.

    `etag`, if there is one, is what every answer must repeat: the file must stay the same. With `fixed` it
    does, because what it is asked for by is a commit.
    """

    def __init__(
        self,
        name: str,
        nbytes: int,
        location: Location,
        locate: Callable[[], Location],
        *,
        etag: str | None = None,
        fixed: bool = False,
        patience: Patience,
    ) -> None:
        self.name, self.nbytes, self.etag, self.fixed = name, nbytes, etag, fixed
        self._location, self._locate, self._patience = location, locate, patience
        self._lock = threading.Lock()

    def fetch(self, offset: int, buffer: memoryview) -> None:
        done = tried = moved = 0
        while done < len(buffer):
            location = self._location
            try:
                for count in self._parts(location, offset + done, buffer[done:]):
                    done += count
            except PassingError as error:
                tried += 1
                if tried >= self._patience.tries:
                    raise UnreadableError(
                        f"cannot be fetched at byte {offset + done}: {error}. Tried {tried} times; try again later"
                    ) from None
                self._patience.wait(tried, error.after)
            except MovedError as error:
                moved += 1
                if moved > 3:
                    raise UnreadableError(f"cannot be fetched at byte {offset + done}: {error}") from None
                self._renew(location)

    def check_unchanged(self) -> None:
        """UnreadableError if the server has another file now."""
        if not self.fixed:
            self._renew(self._location)

    def close(self) -> None:
        """Connections are the HTTP client's, and it keeps them for the next file."""

    def _renew(self, old: Location) -> None:
        with self._lock:
            if self._location is old:  # Otherwise another thread has been here.
                self._location = self._locate()

    def _parts(self, location: Location, begin: int, buffer: memoryview) -> Iterator[int]:
        """Fill `buffer` from byte `begin` on; the number of bytes of each part as it comes."""
        end = begin + len(buffer)
        headers = {**location.headers, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with streamed(location.url, headers, self._patience) as response:
            self._check(response, begin, end)
            at = 0
            for data in response.iter_raw():
                if at + len(data) > len(buffer):
                    raise UnreadableError(f"the server sent more than bytes {begin} to {end}. Download the file first")
                buffer[at : at + len(data)] = data
                at += len(data)
                yield len(data)
            if at < len(buffer):
                raise PassingError("the connection ended too early")

    def _check(self, response: Any, begin: int, end: int) -> None:
        status, headers = response.status_code, response.headers
        if status in _PASSING:
            raise PassingError(f"the server answered {status}", headers.get("Retry-After"))
        if status in _GONE:
            raise MovedError(f"the server answered {status}")
        if status == 416:
            raise UnreadableError(f"the server has no bytes {begin} to {end}: the file changed. Try again")
        if status == 200:
            raise UnreadableError("the server does not send parts of files (it ignores Range). Download the file first")
        if status != 206:
            raise UnreadableError(f"the server answered {status}")
        said = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if said is None or (int(said[1]), int(said[2]) + 1) != (begin, end) or said[3] not in ("*", str(self.nbytes)):
            text = scrubbed(headers.get("Content-Range", "nothing"))[:100]
            raise UnreadableError(
                f"bytes {begin} to {end} of {self.nbytes} were asked for, the server says it sent {text}. "
                "The file changed, or the server is broken"
            )
        if headers.get("Content-Encoding", "identity") != "identity":
            raise UnreadableError("the server compresses what it sends. Download the file first")
        if self.etag is not None and headers.get("ETag", self.etag) != self.etag:
            raise UnreadableError("the file changed while it was read. Try again")


@contextmanager
def streamed(url: str, headers: Mapping[str, str], patience: Patience, *, follow: bool = False) -> Iterator[Any]:
    """The answer to a GET, its body yet to come; PassingError for whatever may go well the next time.

    The client is that of `huggingface_hub`: it knows proxies and certificates, and adds no token of its own.
    """
    from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]

    try:
        with get_session().stream(
            "GET", url, headers=dict(headers), timeout=patience.timeout, follow_redirects=follow
        ) as response:
            yield response
    except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise PassingError(scrubbed(error) or type(error).__name__) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreadableError(f"cannot be fetched: {scrubbed(error)}") from None


def open_ranges(url: str, *, patience: Patience) -> HttpRanges:
    """The file at an ``http://`` or ``https://`` address. UnreadableError if its server does not send ranges."""
    name = scrubbed(url)
    tried = 0
    while True:
        try:
            nbytes, final, etag = _ask(url, patience)
            break
        except PassingError as error:
            tried += 1
            if tried >= patience.tries:
                raise UnreadableError(f"cannot be fetched: {error}. Tried {tried} times; try again later") from None
            patience.wait(tried, error.after)

    def again() -> Location:
        now, where, tag = _ask(url, patience)
        if (now, tag) != (nbytes, etag):
            raise UnreadableError("the file changed while it was read. Try again")
        return Location(where)

    return HttpRanges(name, nbytes, Location(final), again, etag=etag, patience=patience)


def _ask(url: str, patience: Patience) -> tuple[int, str, str | None]:
    """Size, address after redirects, and strong ETag, by asking for one byte: signed addresses take no HEAD."""
    with streamed(url, {"Range": "bytes=0-0", "Accept-Encoding": "identity"}, patience, follow=True) as response:
        status = response.status_code
        if status in _PASSING:
            raise PassingError(f"the server answered {status}", response.headers.get("Retry-After"))
        if status == 416 and response.headers.get("Content-Range") == "bytes */0":
            return 0, str(response.url), None
        if status == 200:
            raise UnreadableError("the server does not send parts of files (it ignores Range). Download the file first")
        said = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status != 206 or said is None or said[3] == "*":
            raise UnreadableError(f"cannot be fetched: the server answered {status}")
        size = 0
        for part in response.iter_raw():  # Read to its end, or the connection could not be used again.
            size += len(part)
            if size > 1:
                raise UnreadableError("one byte was asked for, the server sent more. Download the file first")
        etag = response.headers.get("ETag")
        return int(said[3]), str(response.url), None if etag is None or etag.startswith("W/") else etag
