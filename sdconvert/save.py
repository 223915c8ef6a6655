"""A live model, or a dict of tensors, to a file: the same plan and writers as a conversion, bytes from memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import writers
from .atomic import check_target, publish
from .errors import ChoiceError, UnsupportedError, within
from .extract import extract
from .opening import PathLike
from .output import written
from .plan import make_plan
from .progress import Bar, bar_of
from .report import Output, Report
from .sharding import check_mixing, parse_size, shards_of, target_of
from .sharding import planned as lay_out

if TYPE_CHECKING:
    import torch


def save(
    model_or_state_dict: torch.nn.Module | Mapping[str, Any],
    path: PathLike,
    *,
    format: str | None = None,  # noqa: A002 - the field's word for it
    max_shard_size: int | str | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    threads: int | None = None,
    progress: Bar | bool | None = None,
) -> Report:
    """Write the weights of a model, or a dict of tensors, to `path`, bit for bit, and say what was done.

    `path`'s ending names the format unless `format` does. Tied tensors are written once, under the name that comes
    first; slices, transposes and views with pending conjugation or negation come out as their values. A nested dict
    is taken as a file of the same would be: names are joined with dots, a model in it gives its state dict, training
    state is left out, and so is what is not a tensor; the report says so. Quantized, sparse and nested tensors, and
    those of subclasses that wrap others, are written as `convert` would of a file that ``torch.save`` made of them.
    `metadata` joins the output's header. In a directory, the output is ``model`` with the ending of `format`.
    `max_shard_size`, in bytes or such as ``5GB``, splits it into shards with an index, as for `convert`. With
    `progress` a bar on the terminal shows it.

    Nothing is copied but what the threads are writing: tensors of a device come through one host buffer of
    8 MiB. The model and the dict are not touched. The tensors must not change meanwhile.

    When this returns, the output is there, whole, synced, and (with `verify`) read back and found right.
    Otherwise an SdconvertError was raised, and nothing on the disk has changed.
    """
    if find_spec("torch") is None:
        raise UnsupportedError("saving needs torch. Install it with: pip install 'sdconvert[torch]'")
    from .live import Live, checkpoint_of

    began = time.perf_counter()
    target = target_of(path, Path("model"), writers.named(format or "safetensors").SUFFIX)
    writer = writers.for_path(target, format)
    if metadata and not writer.HAS_METADATA:
        raise ChoiceError(f"a {writer.SUFFIX} file has no place for metadata")
    check_target(target, overwrite=overwrite, source=None)
    state, name = _state_dict(model_or_state_dict)
    live = Live()
    with within(name):
        checkpoint = checkpoint_of(state, live, is_state_dict=_is_flat(state))
        weights = extract(checkpoint)
        plan = make_plan(weights, shard_bytes=parse_size(max_shard_size))
        planned = lay_out(target, plan, writer, metadata or {})
    for new in planned:
        check_target(new.path, overwrite=overwrite, source=None)
    check_mixing(target, [new.path for new in planned])
    shards = shards_of(plan, planned)
    bar = bar_of(progress)
    with written(planned, source=name, overwrite=overwrite, verify=verify, threads=threads, progress=bar) as files:
        outputs = tuple(Output(str(file.path), os.fstat(file.fd).st_size) for file in files)
        publish(files, one=bool(shards))
    return Report.of(
        name,
        live.nbytes,
        checkpoint,
        weights,
        plan,
        encoded=writer.encoded(plan),
        shards=shards,
        outputs=outputs,
        verified=verify,
        seconds=time.perf_counter() - began,
    )


def _state_dict(given: torch.nn.Module | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(given, Mapping):
        return given, "the state dict"
    state_dict = getattr(given, "state_dict", None)
    if state_dict is None:
        raise ChoiceError(f"a {type(given).__name__} is neither a model nor a dict of tensors")
    return state_dict(), type(given).__name__


def _is_flat(state: Mapping[str, Any]) -> bool:
    """Whether no value holds others: then all that are tensors are the weights, whatever they are called."""
    from torch.nn import Module

    return not any(isinstance(value, (Mapping, list, tuple, Module)) for value in state.values())
