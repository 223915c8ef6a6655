"""Tensors of this process as a source: where their bytes lie in memory, never a copy of them.

A storage of the host is read where it is. One of a device comes through a single bounded host
buffer, whatever the number of threads. Views of one storage are views of it here too, so ties,
slices and transposes are planned as those of a file are.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

from .checkpoint import Checkpoint, Dict, LostTensor, Object, Value
from .dtypes import BY_NAME
from .errors import UnreadableError, UnsupportedError, within
from .live_encoded import described
from .load.memory import bytes_of, view_of
from .load.slots import is_plain
from .tensor import Storage, strided

BOUNCE = 8 << 20  # Bytes of the host buffer for devices.
_DEPTH = 64  # Dicts in dicts.


class Bounce:
    """A host buffer through which the bytes of devices come, one thread at a time. Made when it is first needed."""

    def __init__(self, nbytes: int = BOUNCE) -> None:
        self.nbytes = nbytes
        self._lock = threading.Lock()
        self._host: torch.Tensor | None = None

    def copy(self, device: torch.Tensor, out: memoryview) -> None:
        """Fill `out` with the bytes of a flat tensor of bytes."""
        with self._lock:
            if self._host is None:
                self._host = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=device.device.type == "cuda")
            view = bytes_of(self._host)
            for at in range(0, len(out), self.nbytes):
                part = device[at : at + self.nbytes]
                self._host[: len(part)].copy_(part)  # Waits for it: the buffer is used again at once.
                out[at : at + len(part)] = view[: len(part)]


class LiveStorage:
    """The bytes of one torch storage, as a `Source`. It keeps the storage alive."""

    def __init__(self, storage: torch.UntypedStorage, name: str, bounce: Bounce) -> None:
        self.name, self.nbytes = name, storage.nbytes()
        self._storage, self._bounce = storage, bounce
        self._view = view_of(storage.data_ptr(), self.nbytes) if storage.device.type == "cpu" else None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if offset < 0 or end > self.nbytes:
            raise UnreadableError(f"bytes {offset} to {end} are needed, but there are only {self.nbytes}")
        if self._view is not None:
            buffer[:] = self._view[offset:end]
            return
        flat = torch.empty(0, dtype=torch.uint8, device=self._storage.device)
        flat.set_(self._storage, offset, (len(buffer),), (1,))
        self._bounce.copy(flat, buffer)


class Live:
    """Describes tensors, each storage once."""

    def __init__(self, bounce: Bounce | None = None) -> None:
        self._bounce = bounce or Bounce()
        self._storages: dict[int, tuple[torch.UntypedStorage, Storage]] = {}
        self._encodings: dict[int, tuple[torch.Tensor, Value]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all storages seen."""
        return sum(storage.nbytes for _, storage in self._storages.values())

    def tensor(self, tensor: torch.Tensor, name: str) -> Value:
        """What a tensor is; `LostTensor` where no plain tensors and no recipe can say it.

        UnsupportedError for one without values.
        """
        if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
            raise _without_values(name)
        dtype = BY_NAME.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            return LostTensor(f"of {tensor.dtype}, which is not known here")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or not is_plain(tensor):
            return self._encoded(tensor, name)
        tensor = tensor.detach()
        return strided(
            dtype,
            tuple(tensor.shape),
            self._storage(tensor.untyped_storage(), name),
            int(tensor.storage_offset()),
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )

    def _encoded(self, tensor: torch.Tensor, name: str) -> Value:
        """The same for the same object, as in a file."""
        if id(tensor) not in self._encodings:
            with within(name):
                found = described(tensor, lambda storage: self._storage(storage, name))
            if type(found) is LostTensor and found.empty:
                raise _without_values(name)
            self._encodings[id(tensor)] = tensor, found
        return self._encodings[id(tensor)][1]

    def _storage(self, storage: torch.UntypedStorage, name: str) -> Storage:
        key = storage._cdata
        if key not in self._storages:
            source = LiveStorage(storage, name, self._bounce)
            self._storages[key] = storage, Storage(source, 0, source.nbytes, name)
        return self._storages[key][1]


def _without_values(name: str) -> UnsupportedError:
    return UnsupportedError(f"{name} is on the meta device or not initialised: it has no values to save")


def checkpoint_of(state: Mapping[Any, Any], live: Live, *, is_state_dict: bool) -> Checkpoint:
    """The tree of a dict in memory, its tensors described by `live`.

    A dict that is a state dict is taken whole; in another, state dicts are looked for as in a file.
    """
    root = _tree(state, live, "", 0)
    if is_state_dict:
        root.attributes = Dict([("_metadata", Dict())])
    return Checkpoint("memory", root)


def _tree(node: Mapping[Any, Any], live: Live, prefix: str, depth: int) -> Dict:
    if depth > _DEPTH:
        raise UnsupportedError(f"{prefix[:-1]}: dicts are nested more than {_DEPTH} deep")
    found = Dict([(key, _value(value, live, f"{prefix}{key}", depth)) for key, value in node.items()])
    if hasattr(node, "_metadata"):
        found.attributes = Dict([("_metadata", Dict())])
    return found


def _value(value: Any, live: Live, name: str, depth: int) -> Value:
    if isinstance(value, torch.Tensor):
        return live.tensor(value, name)
    if isinstance(value, torch.nn.Module):  # As in a file, where a pickled module gives what its state_dict() would.
        value = value.state_dict()
    if isinstance(value, Mapping):
        return _tree(value, live, f"{name}.", depth + 1)
    if isinstance(value, (list, tuple)) and depth < _DEPTH:
        return [_value(item, live, f"{name}.{at}", depth + 1) for at, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    return Object(f"{type(value).__module__}.{type(value).__qualname__}")  # Named in the report, not looked into.
