"""Every request that arrived: which origin and route, how many bytes each way, and with which headers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass
class Entry:
    """One request. `sent` and `received` are bytes of bodies; `status` is 0 where no answer was sent."""

    origin: str
    route: str
    method: str
    target: str
    headers: Mapping[str, str]
    received: int
    status: int = 0
    sent: int = 0

    @property
    def name(self) -> str:
        return f"{self.origin}.{self.route}"

    def __str__(self) -> str:
        span = self.headers.get("range", "")
        return f"{self.method} {self.name} {self.target} {span} -> {self.status}, {self.received} in, {self.sent} out"


class Log:
    """The requests so far. `broken` are exceptions of the server itself: a test must find it empty."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._arrived = threading.Condition()
        self._stopping = threading.Event()
        self.broken: list[Exception] = []

    def add(self, entry: Entry) -> None:
        with self._arrived:
            self._entries.append(entry)

    def clear(self) -> None:
        with self._arrived:
            self._entries.clear()

    def entries(self, pattern: str = "*", method: str = "*") -> list[Entry]:
        """The requests whose `origin.route` fits `pattern`, in the order in which they were answered."""
        with self._arrived:
            return [e for e in self._entries if fnmatchcase(e.name, pattern) and fnmatchcase(e.method, method)]

    def count(self, pattern: str = "*", method: str = "*") -> int:
        return len(self.entries(pattern, method))

    def sent(self, pattern: str = "*", method: str = "*") -> int:
        """Bytes of bodies that went to clients."""
        return sum(entry.sent for entry in self.entries(pattern, method))

    def received(self, pattern: str = "*", method: str = "*") -> int:
        """Bytes of bodies that came from clients."""
        return sum(entry.received for entry in self.entries(pattern, method))

    def with_authorization(self, pattern: str = "cdn.*") -> list[Entry]:
        """Requests that carried a token where none may go: in a header, or anywhere in the URL."""
        return [e for e in self.entries(pattern) if "authorization" in e.headers or "hf_" in e.target]

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the server's own end."""
        self._stopping.wait(seconds)

    def stop(self) -> None:
        self._stopping.set()

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries()))
