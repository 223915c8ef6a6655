"""A directory around checkpoints: an output directory of a trainer, a model's repository, a diffusers pipeline.

The names of the files decide (`weight_files`); what was found is handed to the reader of it: a
file's container, the shards of an index, or a directory inside, such as the one with DCP files that
accelerate and ``Trainer`` write under FSDP (``pytorch_model_fsdp_0/``). What else could have been
meant is in `Checkpoint.skipped`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ..checkpoint import Candidate, Checkpoint, Dict, Skipped
from ..errors import ChoiceError, listed, within
from ..folder import FolderView
from ..limits import Limits
from ..source import Folder
from .parallel import refuse_parts
from .protocol import Nested
from .weight_files import Weights, choose, training_state, weights

NAME = "directory"
_PIPELINE = "model_index.json"  # What makes a directory a pipeline of diffusers.
_SHOWN, _MOST = 20, 200
_ASIDE = re.compile(r"(\..*|(optimizer|optim|scheduler|runs|logs|wandb)([_-]?\d+)*)/")


def sniff(folder: Folder) -> bool:
    if folder.entry or _is_distributed(folder):
        return False
    return bool(weights(folder.files)) or any(True for _ in _below(folder))


def read(folder: Folder, nested: Nested, limits: Limits) -> Checkpoint:
    found, others = choose(weights(folder.files))
    inside = list(_below(folder))
    if inside and _PIPELINE in folder.files:
        return _pipeline(folder, nested, inside)
    if not any(one.known for one in found):
        refuse_parts(folder.files)
    if len(found) == 1:
        return _taken(folder, nested, found[0], others)
    if found or len(inside) > 1:
        raise _choice(folder, found, inside)
    name = inside[0]
    with within(name.removesuffix("/")):
        checkpoint = nested(FolderView(folder, name))
    return replace(
        checkpoint,
        files=tuple(name + file for file in checkpoint.files),
        skipped=(
            *(replace(one, name=name + one.name) for one in checkpoint.skipped),
            *(Skipped(file, "training state") for file in training_state(folder.files)),
        ),
    )


def _taken(folder: Folder, nested: Nested, one: Weights, others: list[tuple[Weights, str]]) -> Checkpoint:
    if one.sharded:
        checkpoint = nested(FolderView(folder, entry=one.entry))
    else:
        with within(one.entry):
            checkpoint = replace(nested(folder.open(one.entry)), files=(one.entry,))
    skipped = [Skipped(other.entry, why) for other, why in others]
    skipped += [Skipped(name, "training state") for name in training_state(folder.files)]
    skipped += [Skipped(name, "a directory with checkpoints") for name in _below(folder)]
    return replace(checkpoint, skipped=(*checkpoint.skipped, *skipped))


def _pipeline(folder: Folder, nested: Nested, inside: list[str]) -> Checkpoint:
    """The components of a pipeline side by side, each under its name: `--key unet` takes one."""
    root = Dict()
    files: list[str] = []
    skipped = [Skipped(one.entry, "beside the pipeline") for one in weights(folder.files)]
    first: Checkpoint | None = None
    for name in inside:
        component = name.removesuffix("/")
        with within(component):
            part = nested(FolderView(folder, name))
        root.pairs.append((component, part.root))
        files += (name + file for file in part.files)
        skipped += (replace(one, name=name + one.name) for one in part.skipped)
        if first is None:
            first = part
        else:
            first = replace(
                first,
                globals=tuple(dict.fromkeys((*first.globals, *part.globals))),
                warnings=(*first.warnings, *part.warnings),
                sources={**first.sources, **part.sources},
            )
    assert first is not None
    # Neither the shards of a component nor its metadata are those of the whole.
    return replace(first, root=root, kind="", metadata={}, shards={}, files=tuple(files), skipped=tuple(skipped))


def _is_distributed(folder: Folder) -> bool:
    """Whether the files right in it are DCP's or DeepSpeed's, and no library's model is beside them."""
    marked = any(
        name in (".metadata", "latest") or name.endswith((".distcp", "_optim_states.pt"))
        for name in folder.files
        if "/" not in name
    )
    return marked and not any(one.known for one in weights(folder.files))


def _below(folder: Folder) -> Iterator[str]:
    """The directories right in it, with a slash, that hold weights somewhere."""
    inside: dict[str, list[str]] = {}
    for file in folder.files:
        name, slash, rest = file.partition("/")
        if slash and not _ASIDE.fullmatch(f"{name}/".lower()):
            inside.setdefault(f"{name}/", []).append(rest)
    for name, files in inside.items():
        if weights(file.rpartition("/")[2] for file in files) or any(
            file.rpartition("/")[2] == ".metadata" or file.endswith(".distcp") for file in files
        ):
            yield name


def _choice(folder: Folder, found: list[Weights], inside: list[str]) -> ChoiceError:
    place = folder.name.rstrip("/")
    if found:
        options = [
            Candidate(f"{place}/{one.entry}", 0, folder.files[one.entry] * (not one.sharded), "file") for one in found
        ]
    else:
        sizes = {
            name: sum(size for file, size in folder.files.items() if file.startswith(name)) for name in inside[:_MOST]
        }
        options = [Candidate(f"{place}/{name}".rstrip("/"), 0, size, "directory") for name, size in sizes.items()]
    names = listed([one.key for one in options], _SHOWN)
    return ChoiceError(f"holds several checkpoints. Name one of them: {names}", options)
