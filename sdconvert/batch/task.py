"""One job, done in whatever process it is handed to: small data in, small data out, nothing raised.

A task may be run twice, by a retry or because a reply was lost: an output that is there already
is compared with the source, and if it holds the same weights the task was done before.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from ..conversion import Conversion
from ..errors import OutputError, SdconvertError, printable
from ..remote import is_url
from ..report import Report
from ..sharding import DIVIDE, INDEX
from ..shardnames import IndexName
from ..verify import verify
from .jobs import Job, state_of

DONE, THERE, FAILED, DIVIDED = "done", "there", "failed", "divided"

# What another try does not change. Everything else that the system says may pass: a network, a full disk.
_PERMANENT = frozenset(
    {
        errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EROFS,
        errno.ELOOP, errno.EEXIST, errno.EINVAL,
    }
)  # fmt: skip
_STEP = 1 << 20
_TOLD = 10


@dataclass(frozen=True)
class Written:
    """One output: where it is, its bytes, and its SHA-256 in hexadecimal ("" when that was not asked for)."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `status` is ``done``, ``there`` (it had been done before), ``failed`` or
    ``divided``: into `parts` shards, that are to be done each by itself.

    `state` is the source's (`jobs.state_of`) before it was read, `nbytes` the bytes of the tensors, `about`
    a few facts of the report. Of a failure, `error` is the line that says why, `transient` whether
    another try may end differently.
    """

    status: str
    state: str = ""
    outputs: tuple[Written, ...] = ()
    tensors: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    kind: str = ""
    transient: bool = False
    parts: int = 0


def run(job: Job, part: int = DIVIDE) -> Outcome:
    """Do `job`, or one `part` of it. Nothing is raised but what ends a process: engines differ in how they carry
    exceptions.

    A job whose output is several files is not done at once: ``divided`` says how many shards there are to do, by their
    numbers from 1 on, and the index, `sharding.INDEX`, when they are done.
    """
    began = time.perf_counter()
    state = ""
    try:
        state = state_of(job.source, job.options.token)
        status, report = _convert(job, part)
        if part == DIVIDE and report.shards:
            if job.options.overwrite:  # No index may name old shards and new ones.
                _remove(_index_of(job.output))
            return Outcome(DIVIDED, state, parts=len(report.shards), seconds=time.perf_counter() - began)
        tensors, nbytes = report.tensors, report.nbytes
        if part > INDEX:  # The index speaks for the whole.
            tensors = nbytes = 0
        paths = [output.path for output in report.outputs] or [_path_of(job, report, part)]
        outputs = tuple(_written(path, job.options.digest) for path in paths)
        return Outcome(status, state, outputs, tensors, nbytes, time.perf_counter() - began, _about(report))
    except Exception as error:
        text = str(error) if isinstance(error, SdconvertError) else f"{job.source}: {_reason(error)}"
        return Outcome(
            FAILED,
            state,
            seconds=time.perf_counter() - began,
            error=printable(text),
            kind=type(error).__name__,
            transient=is_transient(error),
        )


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error) or type(error).__name__


def discard(outcome: Outcome) -> None:
    """Remove what a task has written, of an output that will never be whole."""
    for written in outcome.outputs if outcome.status == DONE else ():
        with suppress(Exception):
            _remove(written.path)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        if is_url(path):
            import fsspec

            fs, inside = fsspec.core.url_to_fs(path)
            fs.rm_file(inside)
        else:
            os.unlink(path)


def is_transient(error: BaseException) -> bool:
    """Whether another try may go better: the system or a network failed, not what is in the file.

    An error of ours is what it was raised from: a refusal of a file's content has no cause.
    """
    if isinstance(error, SdconvertError):
        return error.__cause__ is not None and is_transient(error.__cause__)
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno not in _PERMANENT
    # Clients of stores have exceptions of their own, and no common base.
    return type(error).__module__.partition(".")[0] in ("aiohttp", "botocore", "httpx", "requests", "urllib3")


def _path_of(job: Job, report: Report, part: int) -> str:
    """The file that was there already."""
    if part > INDEX:
        return report.shards[part - 1].path
    return _index_of(job.output) if part == INDEX else job.output


def _index_of(output: str) -> str:
    directory, slash, name = output.rpartition("/")
    place = PurePosixPath(name)
    return f"{directory}{slash}{IndexName(place.stem, place.suffix).name}"


def _convert(job: Job, part: int) -> tuple[str, Report]:
    options = job.options
    wanted = Conversion(
        job.source,
        job.output,
        format=options.format,
        key=options.key,
        names=options.names,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        dequantize=options.dequantize,
        densify=options.densify,
        metadata=dict(options.metadata),
        verify=options.verify,
        overwrite=options.overwrite,
        threads=options.threads,
        token=options.token,
        limits=options.limits,
        part=part,
    )
    try:
        return DONE, wanted.run()
    except OutputError as error:
        # Something that is there already: of a try whose outcome was lost, or of an earlier run?
        if error.__cause__ is not None or options.overwrite:
            raise
        report = replace(wanted, overwrite=True, dry_run=True).run()
        if not _holds_the_same(job, wanted, report):
            raise
    return THERE, report


def _holds_the_same(job: Job, wanted: Conversion, report: Report) -> bool:
    options = job.options
    asks_for_more = options.dtype or options.metadata or options.dequantize or options.densify
    if report.shards or asks_for_more or is_url(job.output):
        return wanted.is_there()
    return (
        os.path.isfile(job.output)
        and verify(
            job.source,
            job.output,
            key=options.key,
            names=options.names,
            threads=options.threads,
            limits=options.limits,
            token=options.token,
        ).equal
    )


def _written(path: str, digest: bool) -> Written:
    if is_url(path):
        import fsspec

        fs, inside = fsspec.core.url_to_fs(path)
        nbytes = int(fs.info(inside)["size"])
        opened = fs.open(inside, "rb")
    else:
        nbytes = os.stat(path).st_size
        opened = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    with opened as file:
        state = hashlib.sha256()
        while digest and (data := file.read(_STEP)):
            state.update(data)
    return Written(path, nbytes, state.hexdigest() if digest else "")


def _about(report: Report) -> dict[str, Any]:
    """What a person who looks through a manifest wants to know of a conversion, bounded."""
    return {
        "container": report.container,
        "kind": report.kind,
        "key": report.key,
        "aliases": len(report.aliases),
        "verified": report.verified,
        "unknown_globals": list(report.unknown_globals[:_TOLD]),
        "warnings": list(report.warnings[:_TOLD]),
    }
