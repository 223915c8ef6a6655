"""What lies beside what was named: the files that a pattern fits, the other parts that one file belongs to."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from .checkpoint import Candidate
from .errors import ChoiceError, UnreadableError, listed, within
from .folder import LocalFolder
from .formats.parallel import parts, refuse_parts
from .shardnames import IndexName, ShardName, as_index, as_shard

_SHOWN, _MOST = 20, 200


def is_pattern(source: str) -> bool:
    """Whether `source` is a quoted glob rather than a name: nothing is called so, and it has wildcards."""
    return glob.has_magic(source) and "\0" not in source and not os.path.lexists(source)


def matching(pattern: str) -> str | LocalFolder:
    """The one path that a glob fits, or the shards that it fits as the checkpoint that they are.

    UnsupportedError when they are parts of one model for each rank, UnreadableError when shards
    are missing, ChoiceError for anything else, or for nothing.
    """
    found = sorted(glob.glob(pattern))
    if len(found) == 1:
        return found[0]
    with within(pattern):
        if not found:
            raise UnreadableError("fits no file. Check where it begins, and its spelling")
        refuse_parts(found)
        folder = _shards(found)
        if folder is None:
            options = [Candidate(path, 0, 0, "file") for path in found[:_MOST]]
            raise ChoiceError(
                f"fits {len(found)} files, and not the shards of one checkpoint. Name one of them: "
                f"{listed(found, _SHOWN)}",
                options,
            )
        return folder


def _shards(found: list[str]) -> LocalFolder | None:
    """The folder with the set of shards that `found` is; None when it is something else."""
    places = {os.path.dirname(path) for path in found}
    names = [os.path.basename(path) for path in found]
    shards = [shard for name in names if (shard := as_shard(name))]
    indexes = [name for name in names if as_index(name)]
    sets = {(shard.stem, shard.total, shard.ending) for shard in shards}
    if len(places) != 1 or len(sets) != 1 or len(indexes) > 1 or len(shards) + len(indexes) != len(found):
        return None
    first = shards[0]
    if len(shards) != first.total:
        raise UnreadableError(f"fits {len(shards)} of the {first.total} shards of {first.stem}{first.ending}")
    beside = _index_of(places.pop(), first)
    folder = LocalFolder(beside.parent, entry=indexes[0] if indexes else beside.name)
    folder.stem = beside.parent / first.stem
    return folder


def _index_of(place: str, shard: ShardName) -> Path:
    """The index beside a set of shards; the first shard when there is none."""
    index = Path(place) / IndexName(shard.stem, shard.ending).name
    return index if index.is_file() else Path(place) / shard._replace(number=1).name


def belonging(path: str) -> Iterator[str]:
    """What to say when one file was named that is only a part of what lies beside it."""
    name = os.path.basename(path)
    if shard := as_shard(name):
        if shard.total > 1:
            yield f"it is shard {shard.number} of {shard.total}; name the directory or the index to have all of them"
    elif _may_be_part(name):
        try:
            names = os.listdir(os.path.dirname(path) or ".")
        except OSError:
            return
        same = [other for other in names if _without_digits(other) == _without_digits(name)]
        if len(same) > 1 and (what := parts(same)):
            yield f"it is one of {what}"


def _may_be_part(name: str) -> bool:
    # Two ranks of the same name are what parts are told by.
    return parts([name, _next_rank(name)]) is not None


def _next_rank(name: str) -> str:
    return "".join("1" if c == "0" else "0" if c.isdigit() else c for c in name)


def _without_digits(name: str) -> str:
    return "".join(c for c in name if not c.isdigit())
