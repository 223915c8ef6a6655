"""What can go wrong on the way, and when: `Rules.fault(route)` says what happens to this call.

A fault is put on the calls of a route, named as `origin.route` (``cdn.get``, ``hub.commit``; ``*`` and
``cdn.*`` work), from the n-th of them on and for a number of times.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Status:
    """The call is answered with this status and has no effect."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """The answer promises its whole length, but the connection ends after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class LoseReply:
    """The call takes effect, but its answer never arrives."""


@dataclass(frozen=True)
class IgnoreRange:
    """The whole file is sent, with 200, whatever range was asked for."""


@dataclass(frozen=True)
class WrongRange:
    """A 206 whose Content-Range is not the one that was asked for."""


@dataclass(frozen=True)
class WrongBytes:
    """Status, length and range are right; every byte is not."""


@dataclass(frozen=True)
class Slow:
    """The answer is late by so many seconds."""

    seconds: float


Fault = Status | Drop | LoseReply | IgnoreRange | WrongRange | WrongBytes | Slow


@dataclass
class _Rule:
    pattern: str
    fault: Fault
    nth: int
    times: int | None
    seen: int = 0

    def next(self, route: str) -> Fault | None:
        if not fnmatchcase(route, self.pattern):
            return None
        self.seen += 1
        late = self.times is not None and self.seen >= self.nth + self.times
        return None if self.seen < self.nth or late else self.fault


class Rules:
    """The faults that were asked for. Of several that fit a call the first counts, but all see it."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(self, route: str, fault: Fault, *, nth: int = 1, times: int | None = 1) -> None:
        """Put `fault` on the `nth` call (from 1) of `route` from now on and the next, `times` in all; None: always."""
        with self._lock:
            self._rules.append(_Rule(route, fault, nth, times))

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def fault(self, route: str) -> Fault | None:
        with self._lock:
            found = [fault for rule in self._rules if (fault := rule.next(route)) is not None]
        return found[0] if found else None
