"""What the commands share: arguments, what they ask for, and how an outcome is printed; and the run of a conversion."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..convert import convert
from ..limits import DEFAULT_LIMITS, Limits
from ..names import Names
from ..progress import Bar, no_bar, terminal_bar


def add_arguments(parser: argparse.ArgumentParser, ending: str) -> None:
    """The arguments of a conversion whose output ends like `ending`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="the checkpoint: a file, a directory, an index of shards, a quoted pattern, a URL, zip://NAME::ARCHIVE",
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        nargs="?",
        help=f"the file to write, or the directory for model{ending} (default: SOURCE ending in {ending})",
    )
    add_hub(parser)
    add_selection(parser)
    output = parser.add_argument_group("what is written")
    add_output(output)
    output.add_argument("--extras", metavar="FILE", help="write what is not weights (epoch, hyper-parameters) as JSON")
    output.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    output.add_argument("--no-verify", action="store_true", help="do not read the output back")
    output.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")


def add_hub(parser: argparse.ArgumentParser) -> None:
    """What a source on the Hub may need."""
    hub = parser.add_argument_group("a source on the Hub (hf://owner/name)")
    hub.add_argument("--revision", metavar="R", help="a branch, tag, commit or pull request (refs/pr/1)")
    add_token(hub)


def add_token(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--token",
        metavar="T",
        help="default: HF_TOKEN, or that of hf auth login; an argument can be seen by others on this machine",
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Which tensors, under which names."""
    which = parser.add_argument_group("which weights")
    which.add_argument("--key", metavar="K", help="dotted path of the state dict, such as model.0 ('.': all of it)")
    which.add_argument(
        "--include", metavar="GLOB", action="append", default=[], help="keep only tensors whose names fit (repeatable)"
    )
    which.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="leave out tensors whose names fit (repeatable)"
    )
    naming = parser.add_argument_group("what they are called")
    naming.add_argument(
        "--strip-prefix", metavar="auto|P", help="take a prefix off the names; auto: what wrappers put there"
    )
    naming.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        default=[],
        type=pair,
        help="rename a tensor, or all below a prefix that ends with a dot (repeatable)",
    )


def add_output(
    output: argparse._ArgumentGroup, *, threads: str = "copy with N threads (default: by processors)"
) -> None:
    """What the files are like, and what may be spent on them; `threads` is the help of that flag."""
    output.add_argument(
        "--dtype", metavar="T", help="cast floating-point tensors, to bfloat16 for example; needs torch"
    )
    output.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="split into shards of at most SIZE, such as 5GB, with an index; 0: one file (default: as the source is)",
    )
    output.add_argument(
        "--dequantize", action="store_true", help="write torch's quantized tensors as float32; needs torch"
    )
    output.add_argument("--densify", action="store_true", help="write sparse tensors with all their zeros; needs torch")
    output.add_argument("--threads", metavar="N", type=positive, help=threads)
    add_limits(output)


def add_limits(parser: argparse._ActionsContainer) -> None:
    """The limits that a sound file may reach, so that a person can raise them."""
    parser.add_argument(
        "--max-expansion",
        metavar="N",
        type=positive,
        default=DEFAULT_LIMITS.expansion,
        help="refuse tensors more than N times as large as what they are made of (default: %(default)s)",
    )


def add_metadata(parser: argparse._ActionsContainer) -> None:
    """Strings for the header of a safetensors file."""
    parser.add_argument(
        "--metadata",
        metavar="K=V",
        action="append",
        default=[],
        type=pair,
        help="add to the header (repeatable)",
    )


def names(args: argparse.Namespace) -> Names:
    """Which tensors `args` ask for, and under which names."""
    return Names(args.strip_prefix, tuple(args.rename), tuple(args.include), tuple(args.exclude))


def bar(args: argparse.Namespace) -> Bar:
    """Progress on a terminal, unless `args` want silence or a document."""
    return no_bar if args.quiet or args.json else terminal_bar


class Outcome(Protocol):
    """What a command has to say: `str` for a person, `to_json` for a machine."""

    def to_json(self) -> dict[str, Any]: ...


def show(args: argparse.Namespace, outcome: Outcome) -> None:
    """Print an outcome as `args` ask for it."""
    if args.json:
        print(json.dumps(outcome.to_json()))
    elif not args.quiet:
        print(outcome)


def limits(args: argparse.Namespace) -> Limits:
    """The limits that `args` ask for."""
    return replace(DEFAULT_LIMITS, expansion=args.max_expansion)


def run(args: argparse.Namespace, writer: str, metadata: Sequence[tuple[str, str]] = ()) -> int:
    """Convert to the format `writer`, and print the report."""
    report = convert(
        args.source,
        args.output,
        format=writer,
        key=args.key,
        names=names(args),
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        dequantize=args.dequantize,
        densify=args.densify,
        metadata=dict(metadata),
        extras=args.extras,
        verify=not args.no_verify,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        threads=args.threads,
        revision=args.revision,
        token=args.token,
        limits=limits(args),
        progress=bar(args),
    )
    show(args, report)
    return 0


def pair(text: str) -> tuple[str, str]:
    left, separator, right = text.partition("=")
    if not separator or not left:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A=B")
    return left, right


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
