"""``sdconvert inspect SOURCE``."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress

from ..errors import SdconvertError, listed, printable
from ..inspect import inspect
from ..inspection import Inspection
from . import conversion

NAME = "inspect"
HELP = "show what is in a checkpoint, before anything is written"
DESCRIPTION = (
    "Show what is in a checkpoint: its container, its state dicts, every tensor, ties, dtypes, and the classes and "
    "functions its pickle names. Only headers are read, and nothing in the file is run. "
    "Exit code 0: it was read, whatever was found; 1: it cannot be read, or a --fail-on flag fits."
)
EXAMPLES = (
    ("inspect model.pt", "a summary and the tree of modules"),
    ("inspect model.pt --html model.html", "a page for a browser"),
    ("inspect *.pt --fail-on-unknown -q", "exit code 1 if a pickle names anything that weights do not need"),
)

_CHECKS = {
    "pickle": "is or holds a pickle: anything but safetensors",
    "unknown": "names anything in its pickle that weights do not need",
    "dangerous": "names anything in its pickle that looks like harm",
}
_TOLD = 10  # Names in one line.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a look inside."""
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="the checkpoint: a file, a directory, a URL")
    parser.add_argument("--key", metavar="K", help="dotted path of the state dict to look at ('.': all of it)")
    parser.add_argument("--tensors", action="store_true", help="list every tensor instead of the tree of modules")
    parser.add_argument("--html", metavar="FILE", help="write it as a page for a browser, which needs no network")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that exists")
    conversion.add_hub(parser)

    check = parser.add_argument_group("as a check: exit code 1 when one of the SOURCEs")
    for flag, what in _CHECKS.items():
        check.add_argument(f"--fail-on-{flag}", dest="fail_on", action="append_const", const=flag, help=what)
    parser.set_defaults(fail_on=[])


def run(args: argparse.Namespace) -> int:
    """Inspect, write the page, print, and say whether a check failed."""
    if len(args.sources) == 1:
        (source,) = args.sources
        found = inspect(source, key=args.key, revision=args.revision, token=args.token)
        if args.html is not None:
            found.write_html(args.html, overwrite=args.overwrite)
        if args.json:
            print(json.dumps(found.to_json()))
        elif not args.quiet:
            print(found.to_text(tensors=args.tensors))
            if args.html is not None:
                print(f"\n{printable(args.html)} shows it in a browser")
        return _failed(found, args.fail_on)
    if args.html is not None:
        args.usage("--html is a page of one SOURCE")
    return _several(args)


def _several(args: argparse.Namespace) -> int:
    """Each by itself; one that cannot be read does not hide the others."""
    code = 0
    documents: list[object] = []
    for source in args.sources:
        try:
            found = inspect(source, key=args.key, revision=args.revision, token=args.token)
        except SdconvertError as error:
            if args.debug:
                raise
            code = 1
            documents.append({"error": str(error), "kind": type(error).__name__})
            _complain(f"sdconvert: error: {error}")
            continue
        if args.json:
            documents.append(found.to_json())
        elif not args.quiet:
            print(found.to_text(tensors=args.tensors), end="\n\n")
        code = max(code, _failed(found, args.fail_on))
    if args.json:
        print(json.dumps(documents))
    return code


def _failed(found: Inspection, checks: list[str]) -> int:
    """1 when one of `checks` fits what was found, said in a line on standard error; else 0."""
    reasons = {
        "pickle": f"is a pickle ({found.container})" if found.is_pickle else "",
        "unknown": _named(found.unknown_globals),
        "dangerous": _named(found.dangerous_globals),
    }
    said = [reasons[check] for check in dict.fromkeys(checks) if reasons[check]]
    if said:
        _complain(f"sdconvert: {printable(found.source)}: {printable('; '.join(said))}")
    return 1 if said else 0


def _named(names: tuple[str, ...]) -> str:
    return f"names {listed(names, _TOLD)}" if names else ""


def _complain(line: str) -> None:
    with suppress(OSError):  # Nobody listens; the exit code tells.
        print(line, file=sys.stderr)
