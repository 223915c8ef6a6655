"""Tensors of this process that are not plain: what ``torch.save`` would write of each is read as a file's is.

So the recipe is the one that a conversion of that file would find. Only the pickle is made, in memory: the bytes of
storages stay where they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pickle import Pickler, PicklingError  # For writing. Nothing here can unpickle.
from typing import Any

import torch

from .checkpoint import LostTensor, TypedStorage, Value
from .dtypes import BY_NAME
from .errors import UnreadableError
from .pickles.machine import run
from .pickles.nodes import Node
from .pickles.rebuild import resolve
from .source import MemorySource
from .tensor import Storage

_PROTOCOL = 2  # torch.save's own.
_LONGEST = 16 << 20  # Bytes of the pickle: what a tensor carries along beside its storages.
_REFUSALS = (PicklingError, AttributeError, TypeError, NotImplementedError, RuntimeError, RecursionError)


class _Bounded(io.BytesIO):
    """Memory that takes no more than a recipe can be made of."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > _LONGEST:
            raise PicklingError(f"its attributes take more than {_LONGEST} bytes")
        return super().write(data)


class _Pickler(Pickler):
    """Writes a number for each storage; `found` are the storages of these numbers."""

    def __init__(self, out: io.BytesIO, storage_of: Callable[[torch.UntypedStorage], Storage]) -> None:
        super().__init__(out, protocol=_PROTOCOL)
        self._storage_of = storage_of
        self.found: list[TypedStorage] = []

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, torch.storage.TypedStorage):
            untyped, dtype = obj._untyped_storage, BY_NAME.get(str(obj.dtype).removeprefix("torch."))
            if dtype is None:
                raise PicklingError(f"{obj.dtype} is not known here")
        elif isinstance(obj, torch.UntypedStorage):
            untyped, dtype = obj, None
        else:
            return None
        storage = self._storage_of(untyped)
        self.found.append(TypedStorage(storage, dtype, 0, storage.nbytes // (dtype.itemsize if dtype else 1)))
        return len(self.found) - 1


def described(tensor: torch.Tensor, storage_of: Callable[[torch.UntypedStorage], Storage]) -> Value:
    """The `EncodedTensor` of a tensor; `TensorRef` of a subclass that has its own values; `LostTensor` where
    ``torch.save`` would fail, or where no recipe holds what it writes."""
    out = _Bounded()
    pickler = _Pickler(out, storage_of)
    try:
        pickler.dump(tensor)
    except _REFUSALS as error:
        return LostTensor(f"a {type(tensor).__name__}, which cannot be pickled: {' '.join(str(error).split())[:200]}")

    def load(number: Node) -> TypedStorage:
        if type(number) is not int or not 0 <= number < len(pickler.found):
            raise UnreadableError("a tensor's attributes name a storage that is not there")
        return pickler.found[number]

    return resolve(run(MemorySource(out.getvalue())).root, load)[0]
