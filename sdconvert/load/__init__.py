"""From a checkpoint to tensors, and into models. Importing this does not import torch; calling it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..limits import DEFAULT_LIMITS, Limits
from ..opening import PathLike
from ..progress import Bar
from .pause import without_collections
from .result import Cast, LoadResult, Misfit
from .skeleton import skeleton

if TYPE_CHECKING:
    import torch

    from .offer import Patterns, Rename
    from .place import Devices

__all__ = ["Cast", "LoadResult", "Misfit", "load", "load_into", "skeleton"]


def load(
    source: PathLike,
    *,
    device: Devices = "cpu",
    dtype: str | torch.dtype | None = None,
    key: str | None = None,
    strip_prefix: str | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    copy: str = "auto",
    threads: int | None = None,
    progress: Bar | bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, torch.Tensor]:
    """The weights of any checkpoint as torch tensors, in its order. Nothing in it is run; no class of it is needed.

    `key`, `strip_prefix`, `include` and `exclude` choose and name them, as for `convert`. `dtype` casts
    floating-point tensors. `device` is anything that torch takes for one, or a map from prefixes of names
    to devices, "" for the rest; ``meta`` reads no weights.

    Names that are tied in the source are the same tensor here. On the host, with `copy="auto"`, what lies
    in a local file as it is needed is a private view of that file, not read until it is used: writing to it does not
    reach the file, but the file must not be cut short or rewritten meanwhile. ``read`` gives memory of
    its own to every tensor, ``mmap`` maps on network file systems too. Checksums that the container has are
    verified for storages that are read whole, not for what is mapped.

    `revision` and `token` are for a source on the Hub, as in `open`.

    The result has the attribute ``_metadata`` of a state dict where the source has it. UnreadableError,
    UnsupportedError and ChoiceError as for `convert`.
    """
    _need_torch()
    from .tensors import load as load_tensors

    with without_collections():
        return load_tensors(
            source,
            device=device,
            dtype=dtype,
            key=key,
            strip_prefix=strip_prefix,
            include=include,
            exclude=exclude,
            copy=copy,
            threads=threads,
            progress=progress,
            revision=revision,
            token=token,
            limits=limits,
        )


def load_into(
    model: torch.nn.Module,
    source: PathLike | Mapping[str, Any],
    *,
    device: Devices | None = None,
    dtype: str | torch.dtype | None = None,
    strict: bool = True,
    assign: bool | str = "auto",
    prefix: str | None = "auto",
    rename: Rename = None,
    include: Patterns = None,
    exclude: Patterns = None,
    on_mismatch: str = "error",
    key: str | None = None,
    copy: str = "auto",
    threads: int | None = None,
    progress: Bar | bool | None = None,
    retie: bool = True,
    revision: str | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> LoadResult:
    """Put the weights of any checkpoint, or of a state dict in memory, into `model`.

    Parameters that have values are filled in place, and stay where they are with their own dtype, so optimizers
    that hold them stay valid; those on meta (see `skeleton`) get the source's tensors. `assign` True or
    False says so for all, with the meaning it has for ``load_state_dict``. `dtype` casts floating-point tensors;
    ``file`` and ``model`` keep the source's or the model's. `device` moves the model there: one device, or a map
    from prefixes of modules to devices, where ``meta`` leaves a part unread.

    `prefix` ``auto`` looks past what wrappers put into names, and adds or removes one leading part if that
    makes more names fit; a prefix of your own is taken off; None leaves names alone. `rename` maps names, or prefixes
    that end with a dot, or is a function of a name. `include` and `exclude` are shell patterns over the source's names.
    Where a source holds several state dicts, the one that fits is taken, or the one at `key`.

    With `strict`, every name must be in both. `on_mismatch="skip"` leaves out what has another
    shape, or a dtype whose numbers mean something else. What is tied in the model or in the source is tied
    afterwards; with `retie` False only what is tied in the model. `revision` and `token` are for a source on the Hub,
    as in `open`.

    MismatchError names all that does not fit, in the words of ``load_state_dict``, and the model is as it was: all is
    checked before it is touched. So it is when the source cannot be read.
    """
    _need_torch()
    from .into import load_into as into

    with without_collections():
        return into(
            model,
            source,
            device=device,
            dtype=dtype,
            strict=strict,
            assign=assign,
            prefix=prefix,
            rename=rename,
            include=include,
            exclude=exclude,
            on_mismatch=on_mismatch,
            key=key,
            copy=copy,
            threads=threads,
            progress=progress,
            retie=retie,
            revision=revision,
            token=token,
            limits=limits,
        )


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UnsupportedError("loading needs torch. Install it with: pip install 'sdconvert[torch]'")
