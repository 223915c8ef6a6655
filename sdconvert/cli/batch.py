"""``sdconvert batch SOURCE... --output-dir D``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING, Any

from .. import writers
from ..errors import OutputError, UnreadableError, printable
from ..remote import is_url
from . import conversion

if TYPE_CHECKING:
    from ..batch import Job, Outcome

NAME = "batch"
HELP = "convert many checkpoints, on this machine or on a cluster"
DESCRIPTION = (
    "Convert files, directories, globs and URLs into a directory or below a URL, each whole or not at all. "
    "What was done goes into a manifest, from which --resume goes on. "
    "Exit code 0: everything is done; 1: something failed."
)
EXAMPLES = (
    ("batch runs/ --output-dir converted", "every checkpoint below runs, by all processors"),
    ("batch runs/ --output-dir converted --resume", "go on where it was ended"),
    (
        "batch s3://bucket/runs/ --output-dir s3://bucket/out --manifest m.jsonl --executor ray:auto",
        "on a Ray cluster, from store to store",
    ),
    ("batch runs/ --output-dir converted --shard 3/16", "the fourth of 16 shares, for arrays of jobs"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sources, where to, how, and on what."""
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="*", help="a file, a directory (all checkpoints below it), a glob, a URL"
    )
    parser.add_argument("--list", metavar="FILE", help="more sources, one a line ('-': standard input)")
    parser.add_argument(
        "--output-dir", metavar="D", required=True, help="a directory or an fsspec URL, made if need be"
    )
    parser.add_argument(
        "--relative-to", metavar="DIR", help="sources keep their place below DIR in the output directory"
    )
    parser.add_argument("--format", choices=tuple(writers.WRITERS), default="safetensors", help="default: %(default)s")
    run = parser.add_argument_group("how it runs")
    run.add_argument(
        "--executor", metavar="E", default="processes", help="processes (default), ray[:ADDRESS] or dask:ADDRESS"
    )
    run.add_argument("--workers", metavar="N", type=conversion.positive, help="jobs at a time (default: processors)")
    run.add_argument("--shard", metavar="I/N", type=_share, help="only share I of N, from 0 on: for arrays of jobs")
    run.add_argument("--manifest", metavar="FILE", help="default: sdconvert-manifest.jsonl in the output directory")
    run.add_argument("--resume", action="store_true", help="skip what the manifest knows as done and is unchanged")
    run.add_argument("--retries", metavar="N", type=int, default=3, help="more tries for what may pass (default: 3)")
    run.add_argument("--on-error", choices=("continue", "stop"), default="continue", help="default: %(default)s")
    run.add_argument("--no-digest", action="store_true", help="do not put the SHA-256 of outputs into the manifest")
    conversion.add_selection(parser)
    output = parser.add_argument_group("what is written")
    conversion.add_output(output, threads="of each job (default: processors by workers)")
    conversion.add_metadata(output)
    output.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    output.add_argument("--no-verify", action="store_true", help="do not read outputs back")
    conversion.add_token(parser.add_argument_group("sources on the Hub (hf://owner/name)"))


def run(args: argparse.Namespace) -> int:
    """Find, convert, and print the summary."""
    # Here: what runs processes is slow to import, and no other command needs it.
    from ..batch import Options, common_directory, convert_many, jobs, sharded

    if not args.sources and args.list is None:
        args.usage("there is nothing to convert: give a SOURCE or --list FILE")
    options = Options(
        format=args.format,
        key=args.key,
        names=conversion.names(args),
        dtype=args.dtype,
        metadata=tuple(args.metadata),
        max_shard_size=args.max_shard_size,
        dequantize=args.dequantize,
        densify=args.densify,
        verify=not args.no_verify,
        overwrite=args.overwrite,
        threads=args.threads,
        digest=not args.no_digest,
        limits=conversion.limits(args),
        token=args.token,
    )
    suffix = writers.named(args.format).SUFFIX
    below = args.relative_to or common_directory(args.sources if args.list is None else [])
    with ExitStack() as stack:
        todo = jobs(
            _sources(args, stack),
            args.output_dir,
            suffix,
            options,
            below=below,
            # Of many sources, one that is not there is a failure among others, and no reason to leave the rest.
            strict=args.list is None and len(args.sources) == 1,
        )
        if args.shard is not None:
            todo = sharded(todo, *args.shard)
        progress = stack.enter_context(_Bar(args.quiet or args.json))
        summary = convert_many(
            _with_directories(todo),
            executor=args.executor,
            workers=args.workers,
            manifest=_manifest(args),
            resume=args.resume,
            retries=args.retries,
            on_error=args.on_error,
            progress=progress,
        )
    conversion.show(args, summary)
    if args.quiet and not args.json:
        for failure in summary.failures:
            print(f"sdconvert: error: {printable(failure.error)}", file=sys.stderr)
    return 0 if summary.ok else 1


def _sources(args: argparse.Namespace, stack: ExitStack) -> Iterator[str]:
    yield from args.sources
    if args.list is not None:
        file: IO[str] = sys.stdin
        if args.list != "-":
            try:
                text = open(args.list, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
                file = stack.enter_context(text)
            except OSError as error:
                raise UnreadableError(f"{args.list}: cannot be opened: {error.strerror}") from error
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n")


def _with_directories(todo: Iterator[Job]) -> Iterator[Job]:
    """The jobs, each when the directory of its output is there. One that cannot be made fails its own jobs."""
    made: str | None = None
    for job in todo:
        directory = os.path.dirname(job.output)
        if not is_url(job.output) and directory != made:
            with suppress(OutputError):
                _make(directory)
            made = directory
        yield job


def _make(directory: str) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory}: cannot be made: {error.strerror}") from error


def _manifest(args: argparse.Namespace) -> str:
    if args.manifest is not None:
        return str(args.manifest)
    if is_url(args.output_dir):
        args.usage("the output directory is a URL: name a local file for the record with --manifest")
    _make(args.output_dir)
    share = "" if args.shard is None else "-{}-of-{}".format(*args.shard)
    return os.path.join(args.output_dir, f"sdconvert-manifest{share}.jsonl")


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(number), int(count)


class _Bar:
    """A bar over jobs, with bytes beside it, on a terminal; failures as they come, on standard error."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.nbytes = quiet, 0
        self.shown: Any = None

    def __enter__(self) -> _Bar:
        if not self.quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self.shown = tqdm(desc="converting", unit=" files", dynamic_ncols=True, leave=False)
        return self

    def __call__(self, job: Job, outcome: Outcome) -> None:
        self.nbytes += outcome.nbytes
        if self.shown is not None:
            if outcome.error:
                self.shown.write(printable(outcome.error), file=sys.stderr)
            self.shown.set_postfix_str(f"{self.nbytes / 1e9:.2f} GB", refresh=False)
            self.shown.update()

    def __exit__(self, *of_what: object) -> None:
        if self.shown is not None:
            self.shown.close()
