"""Tensors of a file become torch tensors where they are wanted: mapped, read, or sent to a device.

On the host a contiguous tensor that lies aligned in a local file is a view of a private map of it: no
copy, no reading until it is used, and writing to it does not reach the file. All others (strided,
conjugated, big-endian, cast, compressed, from elsewhere) get memory of their own, filled by threads.
Two requests for the same view of one storage are one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch

from .. import dtypes
from ..dtypes import DType
from ..errors import ChoiceError
from ..tensor import TensorRef, expect
from .mapping import Maps
from .memory import bytes_of
from .reading import Part, parts_of, read_all
from .transfer import Load, lane_to, transfer

Device = str | int | torch.device
Devices = Device | Mapping[str, Device]
COPIES = ("auto", "mmap", "read")
CPU = torch.device("cpu")
TORCH: Mapping[str, torch.dtype] = {name: found for name in dtypes.BY_NAME if (found := getattr(torch, name, None))}
"""torch's dtypes by their names, those that this torch has."""
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH.items()}


class Want(NamedTuple):
    """A tensor of the source, as `dtype`, on `device`."""

    tensor: TensorRef
    dtype: DType
    device: torch.device


class Placer:
    """Puts tensors where they are wanted. `copy` is one of `COPIES`; `threads` read at once.

    ``mmap`` maps also what is on a network file system, ``read`` maps nothing.
    """

    def __init__(self, copy: str, threads: int | None) -> None:
        if copy not in COPIES:
            raise ChoiceError(f"copy={copy!r} is not one of {', '.join(COPIES)}")
        self._maps = None if copy == "read" else Maps(remote=copy == "mmap")
        self._threads = threads

    def mapped(self, tensor: TensorRef) -> torch.Tensor | None:
        """`tensor` as a view of a map of its file, if it can be one."""
        if self._maps is None or not tensor.is_plain:
            return None
        piece, itemsize = tensor.pieces[0], tensor.dtype.itemsize
        found = self._maps.find(piece.storage.source, piece.storage.offset + piece.offset * itemsize)
        if found is None or found[1] % itemsize:  # Of 16 bytes too: torch's code for complex128 faults otherwise.
            return None
        shape = tensor.shape
        view = torch.frombuffer(found[0], dtype=TORCH[tensor.dtype.name], count=prod(shape), offset=found[1])
        # In place: a view of it would cost as much again, and keep it.
        return view if len(shape) == 1 else view.as_strided_(shape, piece.at_strides)

    def is_mappable(self, tensor: TensorRef) -> bool:
        """Whether the bytes of `tensor` are at hand in a map, so that taking them costs no memory."""
        if self._maps is None or not tensor.is_plain:
            return False
        piece = tensor.pieces[0]
        return self._maps.find(piece.storage.source, piece.storage.offset) is not None

    def place(self, wants: Sequence[Want], progress: Callable[[int], None]) -> list[torch.Tensor]:
        """A tensor for each request; the same one where the very same is asked for again.

        UnreadableError when a source is short or damaged.
        """
        placed: list[torch.Tensor | None] = []
        known: dict[tuple[str, torch.device], dict[int, int]] = {}  # The place in `placed` by the tensor's identity.
        later: dict[torch.device, list[int]] = {}
        again: list[tuple[int, int]] = []
        parts: list[Part] = []
        mapped = 0
        alike: tuple[DType, torch.device] | None = None
        for number, (tensor, dtype, device) in enumerate(wants):
            if alike is None or dtype is not alike[0] or device is not alike[1]:
                alike = dtype, device
                here = known.setdefault((dtype.name, device), {})
                kind, host, meta = TORCH[dtype.name], device.type == "cpu", device.type == "meta"
            first = here.setdefault(id(tensor), number)
            made: torch.Tensor | None = None
            if first != number:
                again.append((number, first))
            elif meta or 0 in tensor.shape:
                made = torch.empty(tensor.shape, dtype=kind, device=device)
            elif not host:
                later.setdefault(device, []).append(number)
            else:
                made = self.mapped(tensor) if dtype is tensor.dtype else None
                if made is not None:
                    mapped += made.nbytes
                else:
                    made = torch.empty(tensor.shape, dtype=kind)
                    parts += parts_of(tensor, dtype, bytes_of(made))
            placed.append(made)
        progress(mapped)
        # What is far is fetched ahead, and only what will be read.
        sent = [wants[number].tensor for some in later.values() for number in some]
        expect([*(part.tensor for part in parts), *sent])
        if parts:
            read_all(parts, threads=self._threads, progress=progress)
        for device, some in later.items():
            loads = [Load(wants[number].tensor, wants[number].dtype) for number in some]
            there = transfer(loads, lane_to(device), threads=self._threads, progress=progress)
            for number, made in zip(some, there, strict=True):
                placed[number] = made
        for number, first in again:
            placed[number] = placed[first]
        return placed  # type: ignore[return-value]  # None of it is None any more.


def castable(dtype: DType) -> bool:
    """Whether a dtype that somebody asks for applies to tensors of this one: to floats, not to packed ones."""
    return dtype.kind == "f" and dtype.packed == 1


def dtype_named(dtype: str | torch.dtype) -> DType:
    """The floating-point dtype to cast to. ChoiceError for any other."""
    name = str(dtype).removeprefix("torch.")
    found = dtypes.by_name(name)
    if found is None or not castable(found):
        known = ", ".join(d.name for d in dtypes.BY_NAME.values() if castable(d))
        raise ChoiceError(f"dtype {name}: floating-point tensors can be cast to {known}")
    return found


def device_named(device: Device) -> torch.device:
    """The device, with its index. ChoiceError when torch has none of that name, or not here."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ChoiceError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ChoiceError(f"device {found}: this torch sees no CUDA device")
        if found.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        if found.index >= torch.cuda.device_count():
            raise ChoiceError(f"device {found}: there are only {torch.cuda.device_count()}")
    elif found.type == "cpu":
        return CPU
    elif found.type == "mps" and not torch.backends.mps.is_available():
        raise ChoiceError(f"device {found}: this torch has no MPS")
    return found


class DeviceMap:
    """Which device a name belongs to: the one of the longest prefix, whole parts of the name, that is mapped.

    The prefix "" stands for all other names. Without it, those get no device of their own.
    """

    def __init__(self, devices: Devices | None) -> None:
        given = devices if isinstance(devices, Mapping) else {} if devices is None else {"": devices}
        self._devices = {prefix.rstrip("."): device_named(device) for prefix, device in given.items()}

    def of(self, name: str) -> torch.device | None:
        """The device for `name`."""
        if not self._devices:
            return None
        while name not in self._devices:
            if not name:
                return None
            name = name.rpartition(".")[0]
        return self._devices[name]

    def __len__(self) -> int:
        return len(self._devices)

    def check(self, names: Iterable[str]) -> None:
        """ChoiceError if a prefix that is mapped is that of no name."""
        unused = set(self._devices) - {""}
        if not unused:
            return
        for name in names:
            while name:
                unused.discard(name)
                name = name.rpartition(".")[0]
        if unused:
            raise ChoiceError(f"the device map names {sorted(unused)[0]!r}, and nothing is called so or below it")
