"""``python -m sdconvert``, and the command ``sdconvert``."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line. An interrupt after its work is done is none; for one while it begins see `starting`."""
    try:
        from .cli import main as run

        code = run()
    except KeyboardInterrupt:
        print("sdconvert: interrupted", file=sys.stderr)
        code = 130
    except MemoryError:  # Not even for the imports.
        print("sdconvert: error: there is not enough memory", file=sys.stderr)
        code = 1
    for handler in (_nothing, signal.SIG_IGN):  # The first takes what is there already; the second outlives Python.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, handler)
    return code


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


if __name__ == "__main__":
    raise SystemExit(main())
