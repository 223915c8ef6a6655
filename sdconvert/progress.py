"""Progress, as something that can be called: nothing by default, a tqdm bar on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`bar("copying", nbytes)` gives a context whose value is called with bytes as they are done, from any thread."""

_PATIENCE = 0.5  # Seconds; what takes less needs no bar, and tqdm need not be imported.


@contextmanager
def no_bar(label: str, nbytes: int) -> Iterator[Callable[[int], None]]:
    """Say nothing."""
    yield lambda count: None


@contextmanager
def terminal_bar(label: str, nbytes: int) -> Iterator[Callable[[int], None]]:
    """A tqdm bar on standard error, once the work has taken half a second; nothing when that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    began, lock = time.monotonic(), threading.Lock()
    done, bar = 0, None

    def update(count: int) -> None:
        nonlocal done, bar
        with lock:
            done += count
            if bar is not None:
                bar.update(count)
            elif time.monotonic() - began > _PATIENCE:
                bar = _tqdm(label, nbytes)
                bar.update(done)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()


def bar_of(progress: Bar | bool | None) -> Bar:
    """What the functions of the package take for `progress`: True is a bar on the terminal, None and False are none."""
    if progress is True:
        return terminal_bar
    return progress or no_bar


def _tqdm(label: str, nbytes: int) -> Any:
    from tqdm import tqdm

    return tqdm(desc=label, total=nbytes, unit="B", unit_scale=True, leave=False, dynamic_ncols=True)
