"""From the source to a device: two host buffers, one being read into while the other is on its way.

A `Lane` is what a device has to offer. On CUDA its buffers are pinned and its copies run on a stream
of their own; elsewhere they are plain, and each copy is done when it returns. The host never
holds more than the two buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch

from ..dtypes import DType
from ..gather import SCRATCH
from ..tensor import TensorRef
from .memory import bytes_of
from .reading import Crcs, Part, check, parts_of, read_part

STAGING = 32 << 20  # Bytes of each of the two buffers.
_READERS = 4
_CUT = 4 << 20  # Bytes that one reader takes at a time.
_ALIGNED = 16  # Places in a buffer: what any dtype's elements ask for.


class Lane(Protocol):
    """The way to a device."""

    def buffer(self, nbytes: int) -> torch.Tensor:
        """A host buffer of bytes that copies can be made from."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A new tensor on the device."""

    def send(self, target: torch.Tensor, staged: torch.Tensor) -> None:
        """Copy bytes to the device; they may still be on their way when this returns."""

    def mark(self) -> Callable[[], None]:
        """A function that waits until all that was sent before is there."""


class BlockingLane:
    """A device whose copies are done when they return."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def send(self, target: torch.Tensor, staged: torch.Tensor) -> None:
        target.copy_(staged)

    def mark(self) -> Callable[[], None]:
        return lambda: None


class CudaLane:
    """A CUDA device: pinned buffers, and copies on a stream beside the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def send(self, target: torch.Tensor, staged: torch.Tensor) -> None:
        # The memory may have been used, and freed, by work that is still queued on the current stream.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            target.copy_(staged, non_blocking=True)

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event.synchronize


class Load(NamedTuple):
    """A tensor that is wanted on a device, as `dtype`."""

    tensor: TensorRef
    dtype: DType


class _Piece(NamedTuple):
    """Bytes `at` to `at + nbytes` of target number `target`, from element `start` on, at `place` of a buffer."""

    target: int
    start: int
    at: int
    nbytes: int
    place: int


def lane_to(device: torch.device) -> Lane:
    """The lane to a device."""
    return CudaLane(device) if device.type == "cuda" else BlockingLane(device)


def transfer(
    loads: Sequence[Load], lane: Lane, *, threads: int | None, progress: Callable[[int], None], staging: int = STAGING
) -> list[torch.Tensor]:
    """The tensors on the device of `lane`, complete. `threads` read at once; a buffer has `staging` bytes.

    UnreadableError when a source is short or damaged.
    """
    targets = [lane.empty(load.tensor.shape, getattr(torch, load.dtype.name)) for load in loads]
    flat = [target.reshape(-1).view(torch.uint8) for target in targets]
    total = sum(load.tensor.numel * load.dtype.itemsize for load in loads)
    size = max(min(staging, total + _ALIGNED * len(loads)), _ALIGNED)
    buffers = [lane.buffer(size) for _ in range(2 if total > size else 1)]
    free: list[Callable[[], None]] = [lambda: None] * len(buffers)
    crcs: Crcs = {}
    own = threading.local()

    def read(part: Part) -> int:
        if not hasattr(own, "scratch"):
            own.scratch = memoryview(bytearray(SCRATCH))
        return read_part(part, own.scratch, crcs)

    with ThreadPoolExecutor(threads or _READERS, thread_name_prefix="sdconvert-read") as readers:
        try:
            for number, batch in enumerate(_batches(loads, size)):
                turn = number % len(buffers)
                free[turn]()  # What was in it before has left.
                view = bytes_of(buffers[turn])
                parts = [
                    part
                    for piece in batch
                    for part in _cut(loads[piece.target], piece, view[piece.place : piece.place + piece.nbytes])
                ]
                for done in readers.map(read, parts):
                    progress(done)
                for target, _, at, nbytes, place in batch:
                    lane.send(flat[target][at : at + nbytes], buffers[turn][place : place + nbytes])
                free[turn] = lane.mark()
        finally:
            for wait in free:  # Also after an error: the buffers must not go while something is copied from them.
                wait()
    check(crcs)
    return targets


def _cut(load: Load, piece: _Piece, out: memoryview) -> list[Part]:
    return [
        Part(part.tensor, part.dtype, piece.start + part.start, part.out)
        for part in parts_of(load.tensor, load.dtype, out, _CUT)
    ]


def _batches(loads: Sequence[Load], size: int) -> Iterator[list[_Piece]]:
    """What goes into a buffer of `size` bytes together, in order; large tensors in several."""
    batch: list[_Piece] = []
    place = 0
    for number, load in enumerate(loads):
        itemsize = load.dtype.itemsize
        at, left = 0, load.tensor.numel * itemsize
        while left:
            nbytes = min(left, (size - place) // itemsize * itemsize)
            if nbytes > 0:
                batch.append(_Piece(number, at // itemsize, at, nbytes, place))
                at, left, place = at + nbytes, left - nbytes, place + nbytes
                place += -place % _ALIGNED
            if left:
                yield batch
                batch, place = [], 0
    if batch:
        yield batch
