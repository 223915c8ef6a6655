"""What the weights are called in a repository, and which files of it they take the place of."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ChoiceError
from ..formats.weight_files import weights
from ..shardnames import IndexName, as_index, as_shard
from .provenance import Origin, Read

_SUFFIX = ".safetensors"


def place_of(origin: Origin, read: Read, repo: str, path_in_repo: str) -> tuple[str, str]:
    """The directory ("" or ending in a slash) and the stem of the new files.

    Libraries find weights by their names: ``pytorch_model.bin`` becomes ``model.safetensors``, other names that
    libraries give stay. Any other name stays in its own repository, beside the original, and becomes ``model``
    elsewhere. `path_in_repo` is a directory, or a name that ends in ``.safetensors``.
    """
    same = origin.place is not None and origin.place.repo == repo
    if {"", ".", ".."} & set(path_in_repo.strip("/").split("/")) and path_in_repo.strip("/"):
        raise ChoiceError(f"--path-in-repo {path_in_repo}: is no path in a repository")
    directory, _, name = path_in_repo.strip("/").rpartition("/")
    if name.endswith(_SUFFIX):
        return f"{directory}/" if directory else "", name.removesuffix(_SUFFIX)
    if len({file.rpartition("/")[0] for file in read.files}) > 1:
        raise ChoiceError(f"{origin.name}: holds several models in directories. Name one of them")
    directory = path_in_repo.strip("/")
    if same and not directory and origin.place is not None:
        whole = origin.place.path if not read.files else _joined(origin.place.path, read.files[0])
        directory = whole.rpartition("/")[0]
    return f"{directory}/" if directory else "", _stem(read.entry.rpartition("/")[2], keep=same)


def stale(files: Iterable[str], directory: str, stem: str, new: Iterable[str]) -> tuple[str, ...]:
    """The safetensors files in the repository that a loader would take for the new weights, or mix with them."""
    coming = set(new)
    found = []
    for path in files:
        if path in coming or not path.startswith(directory) or "/" in path[len(directory) :]:
            continue
        name = path[len(directory) :]
        shard = as_shard(name)
        if (
            name == f"{stem}{_SUFFIX}"
            or as_index(name) == IndexName(stem, _SUFFIX)
            or (shard is not None and (shard.stem, shard.ending) == (stem, _SUFFIX))
        ):
            found.append(path)
    return tuple(sorted(found))


def _stem(entry: str, *, keep: bool) -> str:
    found = weights([entry]) if entry else []
    if found and found[0].known:
        one = found[0]
        return f"{one.family}.{one.variant}" if one.variant else one.family
    if not keep or not entry:
        return "model"
    if shard := as_shard(entry):
        return shard.stem
    if index := as_index(entry):
        return index.stem
    return entry.rpartition(".")[0] or entry


def _joined(path: str, file: str) -> str:
    """`file` of a folder at `path`, which may have been named by the file itself."""
    if path == file or path.endswith(f"/{file}"):
        return path
    return f"{path}/{file}" if path else file
