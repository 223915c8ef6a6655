"""Threads where the system gives them: a limit on processes, or on memory, may leave none for the work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from threading import Thread


def started(threads: Sequence[Thread]) -> Sequence[Thread]:
    """Start `threads`; those of them that run. Whoever gets none does the work itself."""
    with suppress(RuntimeError):  # "can't start new thread"
        for thread in threads:
            thread.start()
    return [thread for thread in threads if thread.ident is not None]
