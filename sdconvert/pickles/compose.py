"""A state dict as the pickle that ``torch.save`` writes of it, opcode for opcode.

Protocol 2, as Python's own pickler emits it: every object that could come again is put
into the memo under the next number, and fetched from there when it does; a mapping is
filled 1000 items at a time. A tensor is a call of ``_rebuild_tensor_v2`` on a storage class
that implies the dtype; dtypes without such a class go through ``_rebuild_tensor_v3``, on
bytes. Sources: ``torch/serialization.py`` (``persistent_id``), ``torch/_tensor.py``
(``_reduce_ex_internal``), ``Modules/_pickle.c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..dtypes import BY_STORAGE, DType
from ..tensor import Shape, contiguous_strides, numel

_BATCH = 1000  # Items that one SETITEMS takes: `BATCHSIZE` in Modules/_pickle.c.
_CLASSES = {dtype.name: name for name, dtype in BY_STORAGE.items()}


class SavedTensor(NamedTuple):
    """A contiguous tensor that fills the storage called `key`; two of one key are tied."""

    name: str
    key: str
    dtype: DType
    shape: Shape


def state_dict(tensors: Sequence[SavedTensor]) -> bytes:
    """The pickle of an OrderedDict of `tensors`, none of which requires a gradient."""
    pickle = _Pickle()
    pickle.once(_global("collections", "OrderedDict"))
    pickle.out += b")R"
    pickle.put()
    for begin in range(0, len(tensors), _BATCH):
        batch = tensors[begin : begin + _BATCH]
        pickle.out += b"(" if len(batch) > 1 else b""
        for tensor in batch:
            pickle.tensor(tensor)
        pickle.out += b"u" if len(batch) > 1 else b"s"
    pickle.out += b"."
    return bytes(pickle.out)


class _Pickle:
    """The opcodes so far, and which of them left something in the memo."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[bytes, int] = {}
        self.size = 0

    def put(self) -> None:
        """Give what is on top of the stack the next number."""
        self.out += b"q%c" % self.size if self.size < 256 else b"r" + self.size.to_bytes(4, "little")
        self.size += 1

    def once(self, opcodes: bytes) -> None:
        """What `opcodes` push: by them the first time, out of the memo from then on."""
        number = self.memo.get(opcodes)
        if number is None:
            self.memo[opcodes] = self.size
            self.out += opcodes
            self.put()
        else:
            self.out += b"h%c" % number if number < 256 else b"j" + number.to_bytes(4, "little")

    def sizes(self, numbers: tuple[int, ...]) -> None:
        """A tuple; the empty one is not worth a place in the memo."""
        if not numbers:
            self.out += b")"
            return
        opcodes = b"".join(map(_int, numbers))
        self.out += b"(" + opcodes + b"t" if len(numbers) > 3 else opcodes + b" \x85\x86\x87"[len(numbers) :][:1]
        self.put()

    def tensor(self, tensor: SavedTensor) -> None:
        """The name, and the call that makes the tensor."""
        name, key, dtype, shape = tensor
        kind = _CLASSES.get(dtype.name)
        count = numel(shape)
        self.out += _text(name)
        self.put()
        self.once(_global("torch._utils", "_rebuild_tensor_v2" if kind else "_rebuild_tensor_v3"))
        self.out += b"(("
        self.once(_text("storage"))
        self.once(_global("torch", kind) if kind else _global("torch.storage", "UntypedStorage"))
        self.once(_text(key))
        self.once(_text("cpu"))
        self.out += _int(count if kind else count * dtype.itemsize) + b"t"
        self.put()
        self.out += b"QK\0"  # The persistent id becomes the storage; the tensor begins at its start.
        self.sizes(shape)
        self.sizes(contiguous_strides(shape))
        self.out += b"\x89"  # requires_grad
        self.once(_global("collections", "OrderedDict"))  # No backward hooks.
        self.out += b")R"
        self.put()
        if not kind:
            self.once(_global("torch", dtype.name))
        self.out += b"t"
        self.put()
        self.out += b"R"
        self.put()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _int(number: int) -> bytes:
    """A whole number of 0 or more, in the shortest form that the pickler knows."""
    if number < 1 << 8:
        return b"K%c" % number
    if number < 1 << 16:
        return b"M" + number.to_bytes(2, "little")
    if number < 1 << 31:
        return b"J" + number.to_bytes(4, "little")
    size = number.bit_length() // 8 + 1  # Two's complement: a sign bit of 0 is part of it.
    return b"\x8a%c" % size + number.to_bytes(size, "little")
