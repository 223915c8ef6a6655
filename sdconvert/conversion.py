"""The relay: source to checkpoint to state dict to plan to file, each stage in one line.

`Conversion` is all that is asked of one: `convert` runs it whole, a batch also in parts, on several machines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

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
from .progress import Bar, no_bar
from .remote import is_url
from .report import Output, Report
from .sharding import DIVIDE, INDEX, check_mixing, parse_size, shards_of, target_of
from .sharding import planned as lay_out
from .stream import check_storages

if TYPE_CHECKING:
    import torch

_STEP = 1 << 20  # Bytes that are compared at once.


@dataclass(frozen=True)
class Conversion:
    """One source, one output, and how; the arguments of `convert`, which says what they mean.

    `part` is for those who share the work on a sharded output: a number writes that shard alone, `INDEX` the index,
    and `DIVIDE` nothing, as `Report.shards` says what there is to do; an output of one file is written all the same.
    """

    source: PathLike
    output: PathLike | None = None
    format: str | None = None
    key: str | None = None
    names: Names | None = None
    dtype: str | torch.dtype | None = None
    max_shard_size: int | str | None = None
    dequantize: bool = False
    densify: bool = False
    metadata: Mapping[str, str] | None = None
    extras: PathLike | None = None
    verify: bool = True
    overwrite: bool = False
    dry_run: bool = False
    threads: int | None = None
    revision: str | None = None
    token: str | None = None
    limits: Limits = DEFAULT_LIMITS
    progress: Bar = no_bar
    part: int | None = None

    def run(self) -> Report:
        """Do it. The output is there, whole, when this returns; otherwise an SdconvertError says why it is not."""
        if self.output is None or not is_url(os.fspath(self.output)):
            return self._write(self.output, None, _publish)
        with delivery(os.fspath(self.output), overwrite=self.overwrite) as away:
            report = self._write(away.local, away, _publish)
            made = [Path(one.path) for one in report.outputs if Path(one.path).parent == away.local.parent]
            sent = away.send(made, overwrite=self.overwrite, verify=self.verify)
            rest = tuple(one for one in report.outputs if Path(one.path) not in made)
            shards = tuple(replace(shard, path=away.url_of(Path(shard.path).name)) for shard in report.shards)
            return replace(report, outputs=(*(Output(url, nbytes) for url, nbytes in sent), *rest), shards=shards)

    def is_there(self) -> bool:
        """Whether the output is already what this would make, to the byte; `extras` are not asked for.

        Everything is done but the last step, so it costs as much, and leaves nothing. Errors are those of `run`.
        """
        same = True

        def compare(files: list[NewFile], one: bool) -> None:
            nonlocal same
            same = all(_is_copied(file, away) for file in files)

        again = replace(self, extras=None, overwrite=True, verify=False)
        with ExitStack() as stack:
            url = os.fspath(self.output) if self.output is not None else ""
            away = stack.enter_context(delivery(url, overwrite=True)) if is_url(url) else None
            again._write(away.local if away else self.output, away, compare)
        return same

    def _write(
        self, output: PathLike | None, away: Delivery | None, settle: Callable[[list[NewFile], bool], None]
    ) -> Report:
        """Make the files at the path `output`. What is made there goes `away` afterwards, so it is looked at what is
        there already.

        `settle` says what becomes of the files when they are complete; those that it does not publish are gone.
        """
        began = time.perf_counter()
        with open_checkpoint(self.source, revision=self.revision, token=self.token, limits=self.limits) as opened:
            suffix = writers.named(self.format or "safetensors").SUFFIX
            target = target_of(output, opened.origin.stem, suffix)
            writer = writers.for_path(target, self.format)
            if self.metadata and not writer.HAS_METADATA:
                raise ChoiceError(f"a {writer.SUFFIX} file has no place for metadata")
            for path in (target, *([Path(self.extras)] if self.extras is not None else [])):
                check_target(path, overwrite=self.overwrite, source=opened.origin)
            dtype = _cast_dtype(self.dtype)
            weights = opened.extract(self.key, self.names, dtype)
            with within(opened.name):
                weights, computed_from = made_dense(
                    weights, dequantize=self.dequantize, densify=self.densify, limits=self.limits
                )
                plan = make_plan(weights, dtype=dtype, shard_bytes=parse_size(self.max_shard_size), limits=self.limits)
                metadata = {**opened.checkpoint.metadata, **(self.metadata or {})}
                planned = lay_out(target, plan, writer, metadata)
            check_mixing(target, [new.path for new in planned], away)
            if away is not None:
                _, archive = chain.parse(os.fspath(self.source)) or ([], os.fspath(self.source))
                away.check_source([new.path.name for new in planned], archive, opened.origin)
            shards = shards_of(plan, planned)
            if shards and self.part is not None:
                planned = planned[self.part : self.part + 1] if self.part != DIVIDE else []
            for new in planned:
                check_target(new.path, overwrite=self.overwrite, source=opened.origin)
            if self.extras is not None and self.part in (None, INDEX):
                planned.append(NewOutput(Path(self.extras), BytesLayout(to_json(weights.leftovers))))
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
                    verified=self.verify and bool(outputs),
                    seconds=time.perf_counter() - began,
                )

            if self.dry_run or not planned:
                return finish()
            with written(
                planned,
                source=opened.name,
                overwrite=self.overwrite,
                verify=self.verify,
                threads=self.threads,
                progress=self.progress,
            ) as files:
                outputs += (Output(str(file.path), os.fstat(file.fd).st_size) for file in files)
                with within(opened.name):
                    check_storages({}, computed_from, threads=self.threads)
                report = finish(opened.check_unchanged())
                settle(files, bool(shards))
                return report


def _publish(files: list[NewFile], one: bool) -> None:
    publish(files, one=one)  # Last: whatever fails before has left nothing.


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


def _cast_dtype(wanted: str | torch.dtype | None) -> dtypes.DType | None:
    """The dtype to cast to. ChoiceError for one that safetensors or a cast does not have."""
    if wanted is None:
        return None
    name = str(wanted).removeprefix("torch.")
    dtype = dtypes.by_name(name)
    if dtype is None or dtype.kind != "f" or dtype.packed > 1 or dtype.code is None:
        known = ", ".join(d.name for d in dtypes.BY_NAME.values() if d.kind == "f" and d.packed == 1)
        raise ChoiceError(f"--dtype {name}: floating-point tensors can be cast to {known}")
    if find_spec("torch") is None:
        raise UnsupportedError("--dtype needs torch. Install it with: pip install 'sdconvert[torch]'")
    return dtype
