"""Archives around checkpoints: a zip or tar of files, of which one or several are checkpoints.

stable-baselines3 puts ``policy.pth`` beside ``policy.optimizer.pth`` into a zip, AllenNLP
``weights.th`` beside its vocabulary into a ``.tar.gz``, NeMo ``model_weights.ckpt`` into a
tar, TorchServe a model beside its handler into a ``.mar``. Each such file is read where it
lies. Which of them holds the weights is not decided here: the tree maps names of files to
what is in them, and whoever looks for a state dict finds one, or several to choose from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

from ..checkpoint import Checkpoint, Dict, Value
from ..errors import UnreadableError, UnsupportedError, within
from ..source import SliceSource, Source
from .protocol import Nested
from .torch_archive import check_nested
from .zipdir import ZipDirectory

# Names under which people keep checkpoints. They are looked at first; their content decides.
_ENDINGS = re.compile(
    r"\.(pt|pth|ckpt|th|bin|safetensors|pkl|pickle|ptl|pt2|jit|torchscript|tar|zip|gz|nemo|mar|model|chkpt|weights|t7)$",
    re.IGNORECASE,
)
_DIRECTORY = re.compile(
    r"(^|/)(\.metadata$|[^/]*\.distcp$|[^/]*\.(bin|safetensors)\.index\.json$|[^/]*_optim_states\.pt$)"
)
_FEW = 100  # Files that are looked at when no name says which.
_MOST = 1000  # Checkpoints in one archive.
_SHOWN = 5


class ZipFiles(Mapping[str, Source]):
    """The files of a zip by name. One that is deflated is unpacked when more than its first bytes are read."""

    def __init__(self, directory: ZipDirectory) -> None:
        self.directory = directory

    def __getitem__(self, name: str) -> Source:
        storage = self.directory.storage(name)
        return SliceSource(storage.source, storage.offset, storage.nbytes, name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.directory.records if not name.endswith("/"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def check(self, name: str) -> None:
        """UnreadableError unless the bytes of a file are those that the archive's checksum was made of."""
        check_nested(self.directory.storage(name))


def read_files(container: str, files: Mapping[str, Source], nested: Nested) -> Checkpoint:
    """The checkpoints among `files`, which a `container` (``zip``, ``tar``) holds: a tree from names to contents.

    UnsupportedError when none of them is one, or the only ones cannot be read; UnreadableError
    when one is damaged: to take another instead would be a guess.
    """
    names = [name for name in files if not _is_hidden(name)]
    if any(_DIRECTORY.search(name) for name in names):
        raise UnsupportedError(
            "it is an archive around a checkpoint of several files (sharded, DCP or DeepSpeed). Unpack it and "
            "convert the directory, or its index"
        )
    wanted = _known([name for name in names if _ENDINGS.search(name)], files, nested)
    if not wanted and len(names) <= _FEW:
        wanted = _known(names, files, nested)
    if len(wanted) > _MOST:
        raise UnsupportedError(
            f"it is an archive of more than {_MOST} checkpoints. {container}://NAME::ARCHIVE takes one of them"
        )
    nested = nested.among(len(wanted))
    found: dict[str, Checkpoint] = {}
    refused: dict[str, UnsupportedError] = {}
    for name in wanted:
        try:
            with within(name):
                if isinstance(files, ZipFiles):
                    files.check(name)
                found[name] = nested(files[name])
        except UnsupportedError as error:
            refused[name] = error
    if not found:
        if refused:
            raise next(iter(refused.values()))
        raise _no_checkpoint(container, names)
    return _together(container, found, refused)


def _known(names: list[str], files: Mapping[str, Source], nested: Nested) -> list[str]:
    """Those of `names` whose content is a container's; no more than one too many."""
    known = (name for name in names if nested.knows(files[name]))
    return list(islice(known, _MOST + 1))


def _together(container: str, found: Mapping[str, Checkpoint], refused: Mapping[str, UnsupportedError]) -> Checkpoint:
    tree: dict[str, Value] = {}
    for name, checkpoint in found.items():
        inside = [(f"{name}/{n}", value) for n, value in checkpoint.root.pairs] if checkpoint.members else None
        for path, value in inside or [(name, checkpoint.root)]:
            if path in tree:
                raise UnreadableError(f"two of its checkpoints would be called {path}. Rename one of them")
            tree[path] = value
    seen = {name.full: name for checkpoint in found.values() for name in checkpoint.globals}
    warnings = [
        *(f"{name}: {text}" for name, checkpoint in found.items() for text in checkpoint.warnings),
        *(f"{error}" for error in refused.values()),
    ]
    result = Checkpoint(
        container,
        Dict(list(tree.items())),
        tuple(seen.values()),
        warnings=tuple(warnings),
        sources={key: text for checkpoint in found.values() for key, text in checkpoint.sources.items()},
        members=True,
    )
    if len(found) > 1:
        return result
    (only,) = found.values()
    return replace(
        result,
        container=f"{container}+{only.container}",
        version=only.version,
        kind=only.kind,
        metadata=only.metadata,
        aside=only.aside,
    )


def _is_hidden(name: str) -> bool:
    """Whether a file is what macOS adds to archives, which has the ending of what it belongs to."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def _no_checkpoint(container: str, names: Iterable[str]) -> UnsupportedError:
    inside = sorted(names)
    if any(name.endswith("/.data/serialization_id") for name in inside):
        return UnsupportedError("torch.save did not finish it: there is no data.pkl in it. Save it again")
    shown = ", ".join(inside[:_SHOWN]) + (", ..." if len(inside) > _SHOWN else "")
    return UnsupportedError(
        f"it is a {container} archive around other files ({shown}), none of them a checkpoint that is known here"
    )
