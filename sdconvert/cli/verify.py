"""``sdconvert verify A B`` and ``sdconvert verify --digest A``."""

from __future__ import annotations

import argparse
import json

from ..errors import printable
from ..hub import review
from ..names import Names
from ..progress import Bar
from ..verify import digest, verify
from . import conversion

NAME = "verify"
HELP = "are the weights in one file the weights in another?"
DESCRIPTION = (
    "Compare the weights of two files of any containers, tensor by tensor and bit by bit. "
    "Exit code 0: equal; 1: different, or not to be read. "
    "With --digest, print a line for each file that depends on nothing but its weights."
)
EXAMPLES = (
    ("verify model.pt model.safetensors", "are these the same weights, to the bit?"),
    ("verify --digest model.pt", "one line that depends on nothing but the weights"),
    ("verify ddp.pt model.safetensors --strip-prefix auto", "names of the first without what wrappers put there"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two files, and how to read the first."""
    parser.add_argument("first", metavar="A", nargs="?", help="a checkpoint; with --pr, the repository (owner/name)")
    parser.add_argument("second", metavar="B", nargs="?", help="another, such as what A was converted to")
    parser.add_argument("--digest", action="store_true", help="print a digest of each file's weights instead")
    parser.add_argument(
        "--pr",
        metavar="N",
        help="compare the safetensors that pull request N (or at this URL) of the repository adds with its weights",
    )
    parser.add_argument("--key", metavar="K", help="dotted path of the state dict in A")
    parser.add_argument("--strip-prefix", metavar="auto|P", help="take a prefix off A's names")
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        default=[],
        type=conversion.pair,
        help="rename a tensor of A, or all below a prefix that ends with a dot (repeatable)",
    )
    parser.add_argument("--include", metavar="GLOB", action="append", default=[], help="only those of A's tensors")
    parser.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="all but those of A's tensors")
    conversion.add_hub(parser)
    parser.add_argument("--threads", metavar="N", type=conversion.positive, help="read with N threads")
    conversion.add_limits(parser)


def run(args: argparse.Namespace) -> int:
    """Compare or digest, and print the outcome."""
    names, bar = conversion.names(args), conversion.bar(args)
    if args.pr is not None:
        return _review(args, names, bar)
    if args.first is None:
        args.usage("A is needed")
    if args.digest:
        files = [args.first] if args.second is None else [args.first, args.second]
        digests = {
            path: digest(
                path,
                key=args.key if path == args.first else None,
                names=names if path == args.first else None,
                threads=args.threads,
                revision=args.revision if path == args.first else None,
                token=args.token,
                limits=conversion.limits(args),
                progress=bar,
            )
            for path in files
        }
        if args.json:
            print(json.dumps([{"path": path, "digest": value} for path, value in digests.items()]))
        elif not args.quiet:
            for path, value in digests.items():
                print(f"{value}  {printable(path)}")
        return 0 if len(set(digests.values())) == 1 else 1
    if args.second is None:
        args.usage("B is needed, unless --digest is given")
    outcome = verify(
        args.first,
        args.second,
        key=args.key,
        names=names,
        threads=args.threads,
        revision=args.revision,
        token=args.token,
        limits=conversion.limits(args),
        progress=bar,
    )
    conversion.show(args, outcome)
    return 0 if outcome.equal else 1


def _review(args: argparse.Namespace, names: Names, bar: Bar) -> int:
    if args.second is not None or args.digest or args.revision is not None:
        args.usage("--pr compares a pull request with its own branch: give it one repository, and no --revision")
    outcome = review(
        args.pr,
        args.first,
        key=args.key,
        names=names,
        threads=args.threads,
        token=args.token,
        limits=conversion.limits(args),
        progress=bar,
    )
    conversion.show(args, outcome)
    return 0 if outcome.equal else 1
