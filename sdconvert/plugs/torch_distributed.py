"""A `torch.distributed.checkpoint.StorageReader` over any source that sdconvert reads; each rank reads its own ranges.

    state = {"model": model.state_dict()}              # DTensors of any mesh, or plain tensors
    dcp.load(state, storage_reader=SourceReader("model.pt", prefix="model."))

Every rank opens the source by itself, from headers alone, and reads the boxes that its plan asks for.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ..errors import UnreadableError, UnsupportedError, within
from ..limits import DEFAULT_LIMITS, Limits
from ..load.memory import bytes_of
from ..load.place import TORCH
from ..load.reading import CHUNK, Part, parts_of, read_all
from ..names import Names
from ..opening import OpenCheckpoint, PathLike
from ..opening import open as open_checkpoint
from ..tensor import Piece, Shape, TensorRef, contiguous_strides


class SourceReader(StorageReader):
    """Reads `source`, whatever its container.

    `key` and `names` choose the weights, as for `sdconvert.convert`; `prefix` is put before every name, such as
    ``model.`` for a state dict under that key. `threads` read at once.

    UnreadableError, UnsupportedError and ChoiceError as for `sdconvert.load`; what is missing or of
    another shape is for the planner to say.
    """

    def __init__(
        self,
        source: PathLike,
        *,
        key: str | None = None,
        names: Names | None = None,
        prefix: str = "",
        threads: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__()
        self._source, self._key, self._names, self._prefix = source, key, names, prefix
        self._threads, self._limits = threads, limits
        self._opened: OpenCheckpoint | None = None
        self._tensors: dict[str, TensorRef] = {}
        self._id = ""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin anew, with `checkpoint_id` as the source if it is given."""
        self.close()
        if checkpoint_id:
            self._source = checkpoint_id
        self._id = os.fspath(self._source)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Names, shapes and dtypes, from headers: every tensor as one chunk, which plans may ask any box of."""
        self.close()
        self._opened = opened = open_checkpoint(self._source, limits=self._limits)
        with within(opened.name):
            weights = opened.extract(self._key, self._names)
            if weights.encoded:
                raise UnsupportedError(
                    f"{next(iter(weights.encoded))} is stored as parts and a recipe, which a planner cannot ask for. "
                    "Convert the file with --dequantize or --densify first"
                )
            self._tensors = {self._prefix + name: tensor for name, tensor in weights.tensors.items()}
            described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
                name: _described(name, tensor) for name, tensor in self._tensors.items()
            }
        return Metadata(state_dict_metadata=described, storage_meta=StorageMeta(checkpoint_id=self._source))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: `read_metadata` has opened the source."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the boxes of `plan` to where `planner` wants them, straight there if that is contiguous on the host."""
        if self._opened is None:
            self.read_metadata()
        assert self._opened is not None
        direct: list[tuple[ReadItem, torch.Tensor]] = []
        waiting: list[Part] = []
        with within(self._opened.name):
            for item in plan.items:
                name = item.storage_index.fqn
                if item.type is LoadItemType.BYTE_IO:
                    raise UnsupportedError(f"{name}: is no tensor, and only tensors are read")
                tensor, target = self._tensors[name], planner.resolve_tensor(item).detach()
                out = target if _is_direct(target, tensor) else None
                with within(name):
                    read, parts = _read(tensor, tuple(item.storage_offsets), tuple(item.lengths), out)
                if read is target:
                    waiting += parts
                    direct.append((item, target))
                    continue
                read_all(parts, threads=self._threads, progress=_no_progress)
                target.copy_(read)
                planner.commit_tensor(item, target)
            read_all(waiting, threads=self._threads, progress=_no_progress)
        for item, target in direct:
            planner.commit_tensor(item, target)
        self.close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close(self) -> None:
        """Let go of the source; it is opened again when it is needed."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can be the name of a source: any path or URL."""
        return bool(os.fspath(checkpoint_id))


def _no_progress(nbytes: int) -> None:
    pass


def _described(name: str, tensor: TensorRef) -> TensorStorageMetadata:
    dtype = TORCH.get(tensor.dtype.name)
    if dtype is None:
        raise UnsupportedError(f"{name}: this torch has no {tensor.dtype.name}")
    size = torch.Size(tensor.shape)
    chunk = ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=size)
    return TensorStorageMetadata(properties=TensorProperties(dtype=dtype), size=size, chunks=[chunk])


def _is_direct(target: torch.Tensor, tensor: TensorRef) -> bool:
    """Whether bytes of `tensor` can be read to where they belong in `target`."""
    return target.device.type == "cpu" and target.is_contiguous() and target.dtype is TORCH[tensor.dtype.name]


def _box(tensor: TensorRef, offsets: Shape, lengths: Shape) -> TensorRef | None:
    """The part of shape `lengths` from `offsets` on; None where the whole is made of ranges that are no boxes."""
    whole, dense = contiguous_strides(tensor.shape), contiguous_strides(lengths)
    if any(piece.at_strides != whole or len(piece.shape) != len(whole) for piece in tensor.pieces):
        return None
    pieces = []
    for piece in tensor.pieces:
        source, at, left, shape = piece.offset, 0, piece.at, []
        for size, stride, step, own, offset, length, goes in zip(
            piece.shape, piece.strides, whole, tensor.shape, offsets, lengths, dense, strict=True
        ):
            begin, left = divmod(left, step) if own > 1 else (0, left)
            low, high = max(begin, offset), min(begin + size, offset + length)
            source += (low - begin) * stride
            at += (low - offset) * goes
            shape.append(high - low)
        if min(shape, default=1) > 0:
            pieces.append(Piece(piece.storage, source, piece.strides, tuple(shape), at, dense))
    return tensor._replace(shape=lengths, pieces=tuple(pieces))


def _read(
    tensor: TensorRef, offsets: Shape, lengths: Shape, out: torch.Tensor | None
) -> tuple[torch.Tensor, list[Part]]:
    """A tensor of shape `lengths`, and the parts that fill it; it is `out` where it can be read to where it belongs."""
    if len(lengths) != len(tensor.shape) or any(
        o < 0 or n < 0 or o + n > size for o, n, size in zip(offsets, lengths, tensor.shape, strict=True)
    ):
        raise UnreadableError(f"the plan asks for {list(lengths)} at {list(offsets)} of a tensor {list(tensor.shape)}")
    kind = TORCH[tensor.dtype.name]
    if 0 in lengths:
        return torch.empty(lengths, dtype=kind), []
    box = _box(tensor, offsets, lengths)
    if box is not None:
        place = torch.empty(lengths, dtype=kind) if out is None else out
        return place, list(parts_of(box, box.dtype, bytes_of(place)))
    # Ranges of rows, as ZeRO cuts them: what lies between the first element and the last.
    dense, itemsize = contiguous_strides(tensor.shape), tensor.dtype.itemsize
    first = sum(o * step for o, step in zip(offsets, dense, strict=True))
    count = 1 + sum((n - 1) * step for n, step in zip(lengths, dense, strict=True))
    flat = torch.empty(count, dtype=kind)
    data, step = bytes_of(flat), CHUNK - CHUNK % itemsize
    parts = [
        Part(tensor, tensor.dtype, first + at // itemsize, data[at : at + step]) for at in range(0, len(data), step)
    ]
    return flat.as_strided(lengths, dense), parts
