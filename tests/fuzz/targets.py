"""What is fuzzed: bytes in, a result or an SdconvertError out, and nothing else."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace

from sdconvert import formats
from sdconvert.checkpoint import Checkpoint
from sdconvert.errors import SdconvertError, UnreadableError
from sdconvert.extract import extract
from sdconvert.formats import torch_zip
from sdconvert.formats.storages import parse_storage_id
from sdconvert.gather import SCRATCH, fill
from sdconvert.limits import DEFAULT_LIMITS
from sdconvert.pickles.machine import run
from sdconvert.pickles.rebuild import resolve
from sdconvert.plan import make_plan
from sdconvert.shardnames import as_index, as_shard
from sdconvert.source import MemorySource
from sdconvert.tensor import Storage
from sdconvert.writers import safetensors as writer

from ..hostile.zips import Archive, Member
from .framing import MemoryFolder, unpack

# A fuzzer is to find what is wrong, not to wait for what is allowed: smaller caps, the same code.
LIMITS = replace(DEFAULT_LIMITS, pickle_bytes=1 << 20, text_bytes=1 << 20, inflate_bytes=1 << 20, tensors=10_000)
OUTPUT = 1 << 20

_SCRATCH = memoryview(bytearray(SCRATCH))

Target = Callable[[bytes], bool]
"""Whether weights came out, all the way to their bytes: what an input that is refused at the door does not try."""


def _storage(pid: object) -> object:
    """A storage as large as it is announced, so that tensors are reached."""
    found = parse_storage_id(pid)
    if found.nbytes > OUTPUT:
        raise UnreadableError("too large for a fuzzer")
    return found.typed(Storage(MemorySource(bytes(found.nbytes)), 0, found.nbytes, str(found.key)))


def machine(data: bytes) -> bool:
    """The machine, the walk from nodes to meaning, and all that comes after."""
    try:
        root, sources = resolve(run(MemorySource(data), limits=LIMITS).root, _storage)
        return _through(Checkpoint("pickle", root, sources=sources))
    except SdconvertError as error:
        return _is_fine(error)


def _container(module: formats.Format) -> Target:
    def target(data: bytes) -> bool:
        source = MemorySource(data)
        try:
            if not data or not module.sniff(data[:512], source):
                return False
            return _through(module.read(source, formats.Inside(LIMITS, depth=1), LIMITS))
        except SdconvertError as error:
            return _is_fine(error)

    return target


def _folder(data: bytes) -> bool:
    files = unpack(data)
    entry = next((name for name in files if as_index(name) or as_shard(name)), "")
    try:
        return _through(formats.read_folder(MemoryFolder(files, entry), limits=LIMITS))
    except SdconvertError as error:
        return _is_fine(error)


def _records(data: bytes) -> bool:
    """The files as records of a zip that is sound."""
    return whole(Archive([Member(name, content) for name, content in unpack(data).items()]).build())


def _tar(data: bytes) -> bool:
    """The files as members of a tar that is sound."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, content in unpack(data).items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return whole(stream.getvalue())


def whole(data: bytes) -> bool:
    """Everything: the format that recognises it, which weights, the plan, the header of the output, the bytes."""
    try:
        return _through(formats.read(MemorySource(data), limits=LIMITS))
    except SdconvertError as error:
        return _is_fine(error)


def _through(checkpoint: Checkpoint) -> bool:
    weights = extract(checkpoint, limits=LIMITS)
    plan = make_plan(weights, limits=LIMITS)
    layout = writer.lay_out(plan, checkpoint.metadata)
    if layout.nbytes > OUTPUT:
        return False
    for entry in plan.entries:
        if entry.nbytes:
            fill(entry.tensor, 0, memoryview(bytearray(entry.nbytes)), _SCRATCH)
    return True


def _is_fine(error: SdconvertError) -> bool:
    """False, for nothing came out; an error is one short printable line."""
    text = str(error)
    assert text
    assert text.isprintable()
    assert len(text) < 20_000
    return False


TARGETS: Mapping[str, Target] = {
    "machine": machine,
    **{module.NAME: _container(module) for module in formats.FORMATS},
    "torchscript": _container(torch_zip),
    "whole": whole,
    **dict.fromkeys(("dcp", "sharded", "deepspeed"), _folder),
    **dict.fromkeys(("torch-export", "torch-package", "torchscript-legacy", "zip-around"), _records),
    "tar-around": _tar,
}
