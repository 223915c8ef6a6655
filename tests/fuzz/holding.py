"""What every input is held to: seconds of the processor, so that a busy machine is no hang."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

SECONDS = 5.0


def timed(target: Callable[[bytes], bool], seconds: float = SECONDS) -> Callable[[bytes], bool]:
    """`target`, which raises AssertionError when it has computed for `seconds`. For the main thread."""

    def held(data: bytes) -> bool:
        before = signal.signal(signal.SIGVTALRM, _too_slow)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            return target(data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)

    return held


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise AssertionError("too slow")
