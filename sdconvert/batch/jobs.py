"""What is to be done, as small plain data that goes to any machine: a source, an output, and how."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from .. import chain, remote
from ..errors import UnreadableError
from ..folder import LocalFolder
from ..limits import DEFAULT_LIMITS, Limits
from ..names import Names
from ..remote import is_url
from ..shardnames import IndexName, as_index, as_shard

# Options that say how an output is made rather than what is in it: a run that is resumed may change them.
_HOW = frozenset({"overwrite", "threads", "digest", "limits", "token"})


@dataclass(frozen=True)
class Options:
    """How to convert, as for `sdconvert.convert`; the same for all jobs of a batch, or not.

    `threads` copy inside one job; with None, each worker's share of the processors of this machine, and one on a
    cluster: enough jobs keep the processors busy themselves.
    With `digest`, the SHA-256 of every output goes into the outcome, which reads the output once more. `token` is
    for sources on the Hub; it goes to the workers, and into no text.
    """

    format: str | None = None
    key: str | None = None
    names: Names = field(default_factory=Names)
    dtype: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    max_shard_size: int | str | None = None
    dequantize: bool = False
    densify: bool = False
    verify: bool = True
    overwrite: bool = False
    threads: int | None = None
    digest: bool = True
    limits: Limits = DEFAULT_LIMITS
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Job:
    """One conversion: `source` is whatever `sdconvert.open` takes, `output` a path or an fsspec URL."""

    source: str
    output: str
    options: Options = field(default_factory=Options)

    def fingerprint(self, state: str) -> str:
        """32 hexadecimal digits that change when anything that decides the output does, or whether it is verified.

        `state` is what `state_of` says of the source.
        """
        deciding = {name: value for name, value in asdict(self.options).items() if name not in _HOW}
        facts = [self.source, self.output, deciding, state]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def state_of(source: str, token: str | None = None) -> str:
    """Size and time of change of a source: a word that is another one when the source was replaced.

    What is in an archive has the archive's. UnreadableError or OSError when it is not there.
    """
    chained = chain.parse(source)
    if chained is not None:
        source = chained[1]
    if is_url(source):
        return remote.state_of(source, token=token)
    if os.path.isdir(source):
        folder = LocalFolder(source)
        stats = [os.stat(os.path.join(source, name)) for name in folder.files]
        return f"{len(stats)}-{sum(s.st_size for s in stats)}-{max((s.st_mtime_ns for s in stats), default=0)}"
    index = as_index(os.path.basename(source))
    beside = _shards(os.path.dirname(source), index) if index else []
    return "-".join(f"{found.st_size}-{found.st_mtime_ns}" for found in map(os.stat, [source, *beside]))


def _shards(directory: str, index: IndexName) -> list[str]:
    """The shards that are there for an index, by their names."""
    named = {name: as_shard(name) for name in sorted(os.listdir(directory or "."))}
    return [
        os.path.join(directory, name)
        for name, shard in named.items()
        if shard and (shard.stem, shard.ending) == (index.stem, index.ending)
    ]


def sharded(jobs: Iterable[Job], number: int, count: int) -> Iterator[Job]:
    """The jobs of share `number` of `count`, from 0 on: decided by the source's name alone, so that every
    process that sees the same sources takes the same shares, in any order."""
    if not 0 <= number < count:
        raise UnreadableError(f"there is no share {number} of {count}: the first is 0, the last {count - 1}")
    for job in jobs:
        if (
            int.from_bytes(hashlib.sha256(job.source.encode("utf-8", "surrogateescape")).digest()[:8], "big") % count
            == number
        ):
            yield job
