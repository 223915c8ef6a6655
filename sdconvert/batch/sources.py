"""From what a person names to jobs: files, directories, globs and URLs, one after the other, never all at once."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ..errors import ChoiceError, SdconvertError, UnreadableError
from ..remote import is_url
from ..shardnames import as_shard
from .jobs import Job, Options

# Endings under which checkpoints are found in a directory; a file that is named by itself may end in anything.
_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".th", ".pkl", ".pickle", ".ptl", ".pt2", ".pth.tar", ".safetensors")
_INDEX = ".index.json"
_REPO = 3  # Slashes in the URL of a repository of the Hub.
# Names that say that the whole directory is one checkpoint.
_WHOLE = (".metadata", "latest", "zero_to_fp32.py")


class Found(NamedTuple):
    """A source, and the path below the output directory that it is to go to, without an ending."""

    source: str
    stem: str


def jobs(
    sources: Iterable[str],
    output_dir: str,
    suffix: str,
    options: Options,
    *,
    below: str = "",
    strict: bool = True,
) -> Iterator[Job]:
    """A job for each checkpoint that `sources` name. A file goes to where it is below `below` (a directory or a
    URL), or by its name alone; what is found in a directory keeps its place in it. What is in `output_dir` was made
    by a batch, and is not found.

    ChoiceError when a source fits nothing, UnreadableError when it cannot be listed; if not `strict`, such a source is
    a job that will fail.
    """
    base = output_dir.rstrip("/") or "/"
    made = _Made("" if is_url(base) else os.path.realpath(base), suffix)
    for source in sources:
        try:
            for found in _found(source, below, options.token, made):
                yield Job(found.source, f"{base}/{found.stem}{suffix}", options)
        except SdconvertError:
            if strict:
                raise
            yield Job(source, f"{base}/{_stem(os.path.basename(source))}{suffix}", options)


class _Made(NamedTuple):
    """The real path of the output directory, and how the outputs in it end."""

    directory: str
    suffix: str


def common_directory(sources: list[str]) -> str:
    """The directory that all `sources` lie in, so that files of the same name go to different places."""
    if len(sources) < 2 or any(map(is_url, sources)):
        return ""
    return os.path.commonpath([os.path.dirname(os.path.abspath(source)) for source in sources])


def _found(source: str, below: str, token: str | None, made: _Made) -> Iterator[Found]:
    if is_url(source):
        yield from _remote(source, token)
    elif os.path.isdir(source):
        yield from _in_directory(source, _place(source, below) if below else "", made)
    elif os.path.lexists(source) or not glob.has_magic(source):
        yield Found(source, _stem(_place(source, below)))
    else:
        root = source
        while glob.has_magic(root):
            root = os.path.dirname(root)
        count = 0
        for path in glob.iglob(source, recursive=True):
            if os.path.isfile(path):
                count += 1
                yield Found(path, _stem(_place(path, below or root or ".")))
        if not count:
            raise ChoiceError(f"{source}: fits no file")


def _place(path: str, below: str) -> str:
    """Where a file goes below the output directory, its own ending included; never outside."""
    if not below:
        return os.path.basename(path)
    place = os.path.relpath(os.path.abspath(path), os.path.abspath(below))
    if place.startswith(".."):
        raise ChoiceError(f"{path}: is not below {below}")
    return place


def _stem(place: str) -> str:
    for ending in (_INDEX, ".pth.tar"):
        if place.endswith(ending):
            place = place.removesuffix(ending)
            return str(PurePosixPath(place).with_suffix("")) if ending == _INDEX else place
    return str(PurePosixPath(place).with_suffix("")) if PurePosixPath(place).suffix else place


def _in_directory(root: str, place: str, made: _Made) -> Iterator[Found]:
    """The checkpoints in and below a directory, in the order of names. One that is a whole checkpoint is one job, and
    so is one below it that cannot be listed, which will fail."""
    try:
        with os.scandir(root) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UnreadableError(f"{root}: cannot be listed: {error.strerror}") from error
    names = [entry.name for entry in listed]
    if any(name in _WHOLE for name in names):
        yield Found(root, place or os.path.basename(os.path.abspath(root)))
        return
    files = [entry.name for entry in listed if entry.is_file()]
    if made.directory and os.path.realpath(root) == os.path.realpath(os.path.join(made.directory, place)):
        files = _without_outputs(files, made.suffix)
    for name, stem in _files(files):
        yield Found(os.path.join(root, name), os.path.join(place, stem))
    for entry in listed:
        if not entry.is_dir(follow_symlinks=False) or entry.name.startswith("."):
            continue
        if os.path.realpath(entry.path) == made.directory:
            continue
        try:
            yield from _in_directory(entry.path, os.path.join(place, entry.name), made)
        except UnreadableError:
            yield Found(entry.path, os.path.join(place, entry.name))


def _without_outputs(names: list[str], suffix: str) -> list[str]:
    """The files of a directory that is source and output at once, but for those that another one became."""
    sources = {_stem(name) for name in names if name.endswith(_ENDINGS) and not name.endswith(suffix)}
    return [name for name in names if not (name.endswith((suffix, suffix + _INDEX)) and _source_of(name) in sources)]


def _source_of(name: str) -> str:
    shard = as_shard(name)
    return shard.stem if shard else _stem(name)


def _files(names: list[str]) -> Iterator[tuple[str, str]]:
    """(name, stem) of the checkpoints among the files of one directory; two of one stem keep their endings.

    Shards that an index stands for are not sources of their own.
    """
    indexes = [name for name in names if name.endswith(_INDEX)]
    sharded = tuple(f"{_stem(name)}-" for name in indexes)
    taken = [
        name
        for name in names
        if not name.startswith(".")
        and (
            name.endswith(_INDEX)
            or (name.endswith(_ENDINGS) and not (sharded and name.startswith(sharded) and "-of-" in name))
        )
    ]
    stems = [_stem(name) for name in taken]
    count = Counter(stems)
    for name, stem in zip(taken, stems, strict=True):
        yield name, stem if count[stem] == 1 else name


def _remote(source: str, token: str | None) -> Iterator[Found]:
    """The checkpoints that a URL names: one file, a pattern, or all below a prefix that ends with a slash."""
    whole = source.partition("::")[0]
    is_web = source.startswith(("http://", "https://"))  # Which cannot be listed, and has question marks of its own.
    if is_web or not (glob.has_magic(whole) or source.endswith("/")):
        name = PurePosixPath(unquote(urlsplit(source).path) if is_web else whole).name or "model"
        # The name of a repository has no ending, but may have a version: hf://owner/model-3.1
        is_repo = source.startswith("hf://") and source.count("/") == _REPO
        yield Found(source, name if is_repo else _stem(name))
        return
    import fsspec

    with_token = {"token": token} if token is not None and source.startswith("hf://") else {}
    fs, path = fsspec.core.url_to_fs(source, **with_token)
    scheme = source[: source.index("://") + 3]
    root = path
    while glob.has_magic(root):
        root = str(PurePosixPath(root).parent)
    root = root.strip("/")
    found = fs.glob(path) if glob.has_magic(path) else fs.find(path)
    count = 0
    by_directory: dict[str, list[str]] = {}
    for one in found:
        by_directory.setdefault(str(PurePosixPath(one).parent), []).append(PurePosixPath(one).name)
    for directory, names in by_directory.items():
        place = directory.strip("/").removeprefix(root).strip("/")
        for name, stem in _files(sorted(names)):
            count += 1
            yield Found(
                f"{scheme}{directory.removeprefix('/') if scheme != 'file://' else directory}/{name}",
                os.path.join(place, stem),
            )
    if not count:
        raise ChoiceError(f"{source}: fits no file")
