"""``python -m sdconvert``, and the command ``sdconvert``."""

import signal


def main() -> int:
    """Run the command line. An interrupt while its modules are imported, or after its work is done, is none."""
    try:
        from .cli import main as run

        code = run()
    except KeyboardInterrupt:
        code = 130
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
