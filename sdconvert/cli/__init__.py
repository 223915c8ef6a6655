"""The command line: parse, call the library, print. One file per command."""

from __future__ import annotations

import argparse
import gc
import io
import json
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from ..errors import ChoiceError, SdconvertError, printable
from . import to_pt, to_safetensors, verify

_COMMANDS = (to_safetensors, to_pt, verify)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit code: 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    # One short run that builds large trees of plain data: the cycle collector only costs.
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name may not fit the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    with suppress(ValueError, OSError):  # A checkpoint may have more shards than the 1024 files that are usual.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SdconvertError as error:
        if args.debug:
            raise
        if args.json:
            print(json.dumps(_error_json(error)))
        print(f"sdconvert: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("sdconvert: interrupted; nothing was left behind", file=sys.stderr)
        return 130
    except MemoryError:
        print("sdconvert: error: there is not enough memory for this file's pickle", file=sys.stderr)
        return 1


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _error_json(error: SdconvertError) -> dict[str, object]:
    result: dict[str, object] = {"error": str(error), "kind": type(error).__name__}
    if isinstance(error, ChoiceError):
        result["candidates"] = [
            {"key": one.key, "tensors": one.tensors, "bytes": one.nbytes, "kind": one.kind} for one in error.candidates
        ]
    return result


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="sdconvert",
        description="Get the weights out of any PyTorch checkpoint, safely. Nothing in the file is ever run.",
    )
    parser.add_argument("--version", action="version", version=f"sdconvert {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        sub = commands.add_parser(command.NAME, help=command.HELP, description=printable(command.DESCRIPTION))
        sub.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
        sub.add_argument("--json", action="store_true", help="print the report as one JSON document")
        sub.add_argument("--debug", action="store_true", help="show where in the code an error arose")
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser
