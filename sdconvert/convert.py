"""The relay: source to checkpoint to state dict to plan to file, each stage in one line."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from . import dtypes, formats, stream, writers
from .atomic import NewFile, check_target, new_file, publish, syncing
from .checkpoint import Candidate, Checkpoint, StateDict
from .errors import ChoiceError, OutputError, UnsupportedError, within
from .extract import candidates, extract
from .extras import to_json
from .formats.foreign import named_directory
from .limits import DEFAULT_LIMITS, Limits
from .names import Names
from .plan import make_plan
from .progress import Bar, no_bar
from .report import Output, Report
from .source import FileSource
from .writers import Layout

PathLike = str | os.PathLike[str]


class OpenCheckpoint:
    """A checkpoint that is open for looking: its tree and its state dict, no tensor in memory."""

    def __init__(self, source: FileSource, checkpoint: Checkpoint, limits: Limits) -> None:
        self.source, self._limits = source, limits
        self.checkpoint = checkpoint
        self.path = source.path

    @property
    def container(self) -> str:
        """The name of its format, such as ``torch-zip``."""
        return self.checkpoint.container

    @property
    def candidates(self) -> list[Candidate]:
        """Every state dict that could be meant."""
        return candidates(self.checkpoint, limits=self._limits)

    @cached_property
    def state_dict(self) -> StateDict:
        """The state dict there is. ChoiceError when there are several."""
        return self.extract()

    def extract(self, key: str | None = None, names: Names | None = None) -> StateDict:
        """The state dict at `key`, or the one there is."""
        with within(str(self.path)):
            return extract(self.checkpoint, key=key, names=names, limits=self._limits)

    def close(self) -> None:
        """Let go of the file; tensors of it cannot be read any more."""
        self.source.close()

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(source: PathLike, *, limits: Limits = DEFAULT_LIMITS) -> OpenCheckpoint:  # noqa: A001 - sdconvert.open
    """Open a checkpoint to look at it. Headers are read, weights are not, nothing is run.

    UnreadableError or UnsupportedError says what the file is instead, and what to do.
    """
    path = Path(source)
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long.
        with within(str(path)):
            raise named_directory(path)
    file = FileSource(path)
    try:
        with within(str(path)):
            return OpenCheckpoint(file, formats.read(file, limits=limits), limits)
    except BaseException:
        file.close()
        raise


def convert(
    source: PathLike,
    output: PathLike | None = None,
    *,
    format: str | None = None,  # noqa: A002 - the field's word for it
    key: str | None = None,
    names: Names | None = None,
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    extras: PathLike | None = None,
    verify: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Bar = no_bar,
) -> Report:
    """Write the weights of `source` to `output`, bit for bit, and say what was done.

    `output`'s ending names its format unless `format` does; without `output` it is `source`
    with the ending of `format`, beside it, a safetensors file. `key` is the dotted path of the state dict,
    needed only where there are several; `names` renames and filters. With `dtype`, a torch
    name, floating-point tensors are cast to it, which needs torch. `metadata` joins the
    output's header. `extras` is a path for what is not weights, as JSON. `threads` copy at once.

    When this returns, the output is there, whole, synced, and (with `verify`) read back and
    found right. Otherwise an SdconvertError was raised, and nothing on the disk has changed.
    """
    began = time.perf_counter()
    with open(source, limits=limits) as opened:
        suffix = writers.named(format or "safetensors").SUFFIX
        target = Path(output) if output is not None else opened.path.with_suffix(suffix)
        writer = writers.for_path(target, format)
        if metadata and not writer.HAS_METADATA:
            raise ChoiceError(f"a {writer.SUFFIX} file has no place for metadata")
        extras_path = Path(extras) if extras is not None else None
        for path in filter(None, (target, extras_path)):
            check_target(path, overwrite=overwrite, source=opened.source)
        weights = opened.extract(key, names)
        with within(str(opened.path)):
            plan = make_plan(weights, dtype=_cast_dtype(dtype), limits=limits)
            layout = writer.lay_out(plan, {**opened.checkpoint.metadata, **(metadata or {})})
        outputs: list[Output] = []

        def finish() -> Report:
            return Report.of(
                str(opened.path),
                opened.source.nbytes,
                opened.checkpoint,
                weights,
                plan,
                outputs=tuple(outputs),
                verified=verify and not dry_run,
                seconds=time.perf_counter() - began,
            )

        if not dry_run:
            with ExitStack() as stack:
                files = [_weights(stack, opened, layout, target, overwrite, verify, threads, progress)]
                if extras_path is not None:
                    files.append(_extras(stack, extras_path, overwrite, weights))
                outputs += (Output(str(file.path), os.fstat(file.fd).st_size) for file in files)
                with within(str(opened.path)):
                    opened.source.check_unchanged()
                report = finish()
                publish(files)  # Last: whatever fails before has left nothing.
                return report
        return finish()


def _weights(
    stack: ExitStack,
    opened: OpenCheckpoint,
    layout: Layout,
    target: Path,
    overwrite: bool,
    verify: bool,
    threads: int | None,
    progress: Bar,
) -> NewFile:
    """The output, complete, synced and verified, but without its name yet."""
    file = stack.enter_context(new_file(target, overwrite=overwrite, nbytes=layout.nbytes))
    nbytes = sum(one.entry.nbytes for one in layout.placed)
    chunks = _write(file, layout.fixed)
    with within(str(opened.path)):
        with progress("copying", nbytes) as update:
            copied = stream.copy(layout.placed, file.fd, nbytes=nbytes, threads=threads, progress=update)
        storages = [piece.storage for one in layout.placed for piece in one.entry.tensor.pieces]
        stream.check_storages(copied.read, storages, threads=threads)
    chunks += _write(file, layout.finish(copied.crcs))
    with syncing(file):
        if verify:
            with progress("verifying", layout.nbytes) as update:
                stream.read_back([*chunks, *copied.chunks], file.fd, threads=threads, progress=update)
    if os.fstat(file.fd).st_size != layout.nbytes:
        raise OutputError(f"{target}: has the wrong size on the disk. Nothing was left behind")
    return file


def _write(file: NewFile, parts: Iterable[tuple[int, bytes]]) -> list[stream.Chunk]:
    """Write each (place, bytes); what reading back must find."""
    chunks = []
    for at, data in parts:
        stream.write(file.fd, data, at)
        chunks.append(stream.Chunk(at, len(data), zlib.crc32(data)))
    return chunks


def _extras(stack: ExitStack, path: Path, overwrite: bool, weights: StateDict) -> NewFile:
    data = to_json(weights.leftovers)
    file = stack.enter_context(new_file(path, overwrite=overwrite, nbytes=len(data)))
    stream.write(file.fd, data, 0)
    file.sync()
    return file


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
