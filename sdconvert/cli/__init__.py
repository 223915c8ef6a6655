"""The command line: parse, call the library, print. One file per command."""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn, TextIO

from ..errors import ChoiceError, SdconvertError, printable
from . import batch, inspect, push, to_pt, to_safetensors, verify

_COMMANDS = (to_safetensors, to_pt, inspect, verify, push, batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit code: 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    # One short run that builds large trees of plain data: the cycle collector only costs.
    gc.disable()
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name may not fit the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")
    with suppress(ValueError, OSError):  # A checkpoint may have more shards than the 1024 files that are usual.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup and the shell's & have set it.
                signal.signal(number, _interrupt)
        return _run(argv)
    except KeyboardInterrupt:
        _complain("sdconvert: interrupted; no part of an output was left behind")
        return 130


def _run(argv: Sequence[str] | None) -> int:
    parser = command_line()
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
            try:
                print(json.dumps(_error_json(error)), flush=True)
            except OSError:
                _silence(sys.stdout)
        _complain(f"sdconvert: error: {error}")
        return 1
    except BrokenPipeError:  # Whoever read the report has seen enough.
        _silence(sys.stdout)
        return 1
    except OSError as error:
        if args.debug:
            raise
        _silence(sys.stdout)
        _complain(f"sdconvert: error: the report cannot be printed: {printable(str(error.strerror or error))}")
        return 1
    except MemoryError:
        _complain("sdconvert: error: there is not enough memory for this file, or a limit on it is too low")
        return 1


# What a person, a shell or a scheduler ends a run with; all leave nothing behind.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:  # One is enough: a second would interrupt the tidying up.
        signal.signal(other, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, this is no race with a signal that is already there."""


def _open_standard_streams() -> None:
    """Let no file of ours become standard output or error because the caller closed them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free: this one.
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process runs
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _complain(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # Nobody listens; the exit code tells.
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Drop what could not be printed, or Python would complain of it, and with its own exit code, when it ends."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _error_json(error: SdconvertError) -> dict[str, object]:
    result: dict[str, object] = {"error": str(error), "kind": type(error).__name__}
    if isinstance(error, ChoiceError):
        result["candidates"] = [
            {"key": one.key, "tensors": one.tensors, "bytes": one.nbytes, "kind": one.kind} for one in error.candidates
        ]
    return result


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in a line that a terminal can take: some are names of strangers' files."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Help(argparse.HelpFormatter):
    """Fills paragraphs as usual, and leaves text of several lines as it was written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


_EPILOG = """\
SOURCE is a file, a directory, an index of shards, a quoted pattern, one file of an
archive (zip://NAME::ARCHIVE), hf://OWNER/NAME[@REVISION]/PATH, or a URL. What it is
is told by its content. An output appears whole under its name, or not at all.

exit codes:
  0    done
  1    refused or failed; one line on standard error says what, where, what to do
  2    wrong usage
  130  interrupted; nothing was left behind

environment:
  HF_TOKEN, HF_HOME, HF_ENDPOINT   for the Hub, as for huggingface_hub

examples:
  sdconvert inspect model.pt           look first: nothing is written, nothing is run
  sdconvert to-safetensors model.pt    model.safetensors beside it
  sdconvert COMMAND --help             all that a command takes
"""


def _examples(examples: Sequence[tuple[str, str]]) -> str:
    """The end of a command's help: what to type, and what it does."""
    lines = (f"  sdconvert {command}\n      {what}" for command, what in examples)
    return "\n".join(
        [
            *(["examples:", *lines, ""] if examples else []),
            "exit codes: 0 done, 1 refused or failed, 2 usage, 130 interrupted",
        ]
    )


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from .. import __version__

    parser = _Parser(
        prog="sdconvert",
        description="Get the weights out of any PyTorch checkpoint, safely. Nothing in the file is ever run.",
        epilog=_EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"sdconvert {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=printable(command.DESCRIPTION),
            epilog=_examples(getattr(command, "EXAMPLES", ())),
            formatter_class=_Help,
        )
        sub.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
        sub.add_argument("--json", action="store_true", help="print the report as one JSON document")
        sub.add_argument("--debug", action="store_true", help="show where in the code an error arose")
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, usage=sub.error)
    return parser
