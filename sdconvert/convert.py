"""The relay: source to checkpoint to state dict to plan to file, each stage in one line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import chain, dtypes, writers
from .atomic import NewFile, check_target, publish
from .delivery import Delivery, delivery
from .dense import made_dense
from .errors import ChoiceError, UnsupportedError, within
from .extras import to_json
from .limits import DEFAULT_LIMITS, Limits
from .names import Names
from .opening import PathLike
from .opening import open as open_checkpoint
from .output import BytesLayout, NewOutput, written
from .plan import make_plan
from .progress import Bar, bar_of
from .remote import is_url
from .report import Output, Report
from .sharding import DIVIDE, INDEX, check_mixing, parse_size, shards_of, target_of
from .sharding import planned as lay_out
from .stream import check_storages

_STEP = 1 << 20  # Bytes that are compared at once.


def convert(
    source: PathLike,
    output: PathLike | None = None,
    *,
    format: str | None = None,  # noqa: A002 - the field's word for it
    key: str | None = None,
    names: Names | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    dequantize: bool = False,
    densify: bool = False,
    metadata: Mapping[str, str] | None = None,
    extras: PathLike | None = None,
    verify: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    part: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Bar | bool | None = None,
) -> Report:
    """Write the weights of `source` to `output`, a path or an fsspec URL, bit for bit, and say what was done.

    `output`'s ending names its format unless `format` does; in a directory it is ``model`` with the
    ending of `format`, a safetensors file; without `output` it is `source` with that ending, beside it.
    `key` is the dotted path of the state dict, needed only where there are several; `names` renames and
    filters. With `dtype`, a torch name, floating-point tensors are cast to it, which needs torch.
    `max_shard_size`, in bytes or such as ``5GB``, splits the output into shards with an index, as
    huggingface_hub does; 0 is one file, None keeps the shards of a sharded source. With `dequantize`
    (`densify`) torch's quantized (sparse) tensors become plain ones, which are cast, too; without, they
    are stored as parts and a recipe. `metadata` joins the output's header. `extras` is a path for what is
    not weights, as JSON. `threads` copy at once. `part` is for those who share the work on a sharded output:
    a number writes that shard alone, `INDEX` the index, and `DIVIDE` nothing, as `Report.shards` says what there
    is to do; an output of one file is written all the same. `revision` and `token` are for a source on the Hub,
    as in `open`. With `progress` a bar on the terminal shows it, or what a `progress.Bar` makes of it.

    When this returns, the output is there, whole, synced, and (with `verify`) read back and
    found right. Otherwise an SdconvertError was raised, and nothing on the disk has changed.
    """
    write = partial(
        _convert,
        source,
        format=format,
        key=key,
        names=names,
        dtype=dtype,
        max_shard_size=max_shard_size,
        dequantize=dequantize,
        densify=densify,
        metadata=metadata,
        extras=extras,
        verify=verify,
        overwrite=overwrite,
        dry_run=dry_run,
        threads=threads,
        part=part,
        revision=revision,
        token=token,
        limits=limits,
        progress=progress,
    )
    if output is None or not is_url(os.fspath(output)):
        return write(output, away=None)
    with delivery(os.fspath(output), overwrite=overwrite) as away:
        report = write(away.local, away=away)
        made = [Path(one.path) for one in report.outputs if Path(one.path).parent == away.local.parent]
        sent = away.send(made, overwrite=overwrite, verify=verify)
        rest = tuple(one for one in report.outputs if Path(one.path) not in made)
        shards = tuple(replace(shard, path=away.url_of(Path(shard.path).name)) for shard in report.shards)
        return replace(report, outputs=(*(Output(url, nbytes) for url, nbytes in sent), *rest), shards=shards)


def is_there(source: PathLike, output: str, **how: Any) -> bool:
    """Whether `output` is already what `convert` would make of `source`, to the byte, with its arguments in `how`.

    Everything is done but the last step, so it costs as much, and leaves nothing. Errors are those of `convert`.
    """
    same = True

    def compare(files: list[NewFile], one: bool) -> None:
        nonlocal same
        same = all(_is_copied(file, away) for file in files)

    with ExitStack() as stack:
        away = stack.enter_context(delivery(output, overwrite=True)) if is_url(output) else None
        default = {"extras": None, "revision": None, "dry_run": False, "progress": no_bar}
        fixed = {"overwrite": True, "verify": False, "away": away, "settle": compare}
        _convert(source, away.local if away else output, **{**default, **how, **fixed})
    return same


def _is_copied(file: NewFile, away: Delivery | None) -> bool:
    """Whether what has the file's name, here or `away`, is what is in it."""
    try:
        with away.open(file.path.name) if away else open(file.path, "rb", buffering=0) as there:
            at = 0
            while data := there.read(_STEP):
                if os.pread(file.fd, len(data), at) != data:
                    return False
                at += len(data)
    except FileNotFoundError:
        return False
    return at == os.fstat(file.fd).st_size


def _publish(files: list[NewFile], one: bool) -> None:
    publish(files, one=one)  # Last: whatever fails before has left nothing.


def _convert(
    source: PathLike,
    output: PathLike | None,
    *,
    away: Delivery | None,
    settle: Callable[[list[NewFile], bool], None] = _publish,
    format: str | None,  # noqa: A002
    key: str | None,
    names: Names | None,
    dtype: str | None,
    max_shard_size: int | str | None,
    dequantize: bool,
    densify: bool,
    metadata: Mapping[str, str] | None,
    extras: PathLike | None,
    verify: bool,
    overwrite: bool,
    dry_run: bool,
    threads: int | None,
    part: int | None,
    revision: str | None,
    token: str | None,
    limits: Limits,
    progress: Bar,
) -> Report:
    """`convert` to a path. What is made there goes `away` afterwards, so it is looked at what is there already.

    `settle` says what becomes of the files when they are complete; those that it does not publish are gone.
    """
    began = time.perf_counter()
    with open_checkpoint(source, revision=revision, token=token, limits=limits) as opened:
        suffix = writers.named(format or "safetensors").SUFFIX
        target = target_of(output, opened.origin.stem, suffix)
        writer = writers.for_path(target, format)
        if metadata and not writer.HAS_METADATA:
            raise ChoiceError(f"a {writer.SUFFIX} file has no place for metadata")
        for path in (target, *([Path(extras)] if extras is not None else [])):
            check_target(path, overwrite=overwrite, source=opened.origin)
        target_dtype = _cast_dtype(dtype)
        weights = opened.extract(key, names, target_dtype)
        with within(opened.name):
            weights, computed_from = made_dense(weights, dequantize=dequantize, densify=densify, limits=limits)
            plan = make_plan(weights, dtype=target_dtype, shard_bytes=parse_size(max_shard_size), limits=limits)
            planned = lay_out(target, plan, writer, {**opened.checkpoint.metadata, **(metadata or {})})
        check_mixing(target, [new.path for new in planned], away)
        if away is not None:
            _, archive = chain.parse(os.fspath(source)) or ([], os.fspath(source))
            away.check_source([new.path.name for new in planned], archive, opened.origin)
        shards = shards_of(plan, planned)
        if shards and part is not None:
            planned = planned[part : part + 1] if part != DIVIDE else []
        for new in planned:
            check_target(new.path, overwrite=overwrite, source=opened.origin)
        if extras is not None and part in (None, INDEX):
            planned.append(NewOutput(Path(extras), BytesLayout(to_json(weights.leftovers))))
        outputs: list[Output] = []

        def finish(doubts: tuple[str, ...] = ()) -> Report:
            return Report.of(
                opened.name,
                opened.origin.nbytes,
                opened.checkpoint,
                weights,
                plan,
                encoded=writer.encoded(plan),
                shards=shards,
                outputs=tuple(outputs),
                warnings=doubts,
                verified=verify and bool(outputs),
                seconds=time.perf_counter() - began,
            )

        if dry_run or not planned:
            return finish()
        with written(
            planned, source=opened.name, overwrite=overwrite, verify=verify, threads=threads, progress=bar_of(progress)
        ) as files:
            outputs += (Output(str(file.path), os.fstat(file.fd).st_size) for file in files)
            with within(opened.name):
                check_storages({}, computed_from, threads=threads)
            report = finish(opened.check_unchanged())
            settle(files, bool(shards))
            return report


def _cast_dtype(name: str | None) -> dtypes.DType | None:
    """The dtype to cast to. ChoiceError for one that safetensors or a cast does not have."""
    if name is None:
        return None
    dtype = dtypes.by_name(name)
    if dtype is None or dtype.kind != "f" or dtype.packed > 1 or dtype.code is None:
        known = ", ".join(d.name for d in dtypes.BY_NAME.values() if d.kind == "f" and d.packed == 1)
        raise ChoiceError(f"--dtype {name}: floating-point tensors can be cast to {known}")
    if find_spec("torch") is None:
        raise UnsupportedError("--dtype needs torch. Install it with: pip install 'sdconvert[torch]'")
    return dtype
