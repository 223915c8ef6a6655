"""``sdconvert inspect SOURCE``."""

from __future__ import annotations

import argparse
import json

from ..errors import printable
from ..inspect import inspect
from . import conversion

NAME = "inspect"
HELP = "show what is in a checkpoint, before anything is written"
DESCRIPTION = (
    "Show what is in a checkpoint: its container, its state dicts, every tensor, ties, dtypes, and the classes and "
    "functions its pickle names. Only headers are read, and nothing in the file is run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a look inside."""
    parser.add_argument("source", metavar="SOURCE", help="the checkpoint: a file, a directory, a URL")
    parser.add_argument("--key", metavar="K", help="dotted path of the state dict to look at ('.': all of it)")
    parser.add_argument("--tensors", action="store_true", help="list every tensor instead of the tree of modules")
    parser.add_argument("--html", metavar="FILE", help="write it as a page for a browser, which needs no network")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that exists")
    conversion.add_hub(parser)


def run(args: argparse.Namespace) -> int:
    """Inspect, write the page, and print."""
    found = inspect(args.source, key=args.key, revision=args.revision, token=args.token)
    if args.html is not None:
        found.write_html(args.html, overwrite=args.overwrite)
    if args.json:
        print(json.dumps(found.to_json()))
    elif not args.quiet:
        print(found.to_text(tensors=args.tensors))
        if args.html is not None:
            print(f"\n{printable(args.html)} shows it in a browser")
    return 0
