"""A state dict as the pickle that ``torch.save`` writes of it, opcode for opcode.

Protocol 2, as Python's own pickler emits it: every object that could come again is put
into the memo under the next number, and fetched from there when it does; a mapping is
filled 1000 items at a time. A tensor is a call of ``_rebuild_tensor_v2`` on a storage class
that implies the dtype; dtypes without such a class go through ``_rebuild_tensor_v3``, on
bytes. Quantized, sparse and nested tensors are calls of their own (`WholeTensor`).
Sources: ``torch/serialization.py`` (``persistent_id``), ``torch/_tensor.py``
(``_reduce_ex_internal``), ``Modules/_pickle.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..dtypes import BY_NAME, BY_STORAGE, DType
from ..encodings import COMPRESSED, PER_TENSOR
from ..tensor import Shape, contiguous_strides, numel

_BATCH = 1000  # Items that one SETITEMS takes: `BATCHSIZE` in Modules/_pickle.c.


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


_CLASSES = {dtype.name: _global("torch", name) for name, dtype in BY_STORAGE.items()}
_UNTYPED = _global("torch.storage", "UntypedStorage")
_TYPED_TENSOR = _global("torch._utils", "_rebuild_tensor_v2")
_UNTYPED_TENSOR = _global("torch._utils", "_rebuild_tensor_v3")
_ORDERED_DICT = _global("collections", "OrderedDict")
_STORAGE, _CPU = _text("storage"), _text("cpu")
_TUPLES = (b")", b"\x85", b"\x86", b"\x87")  # By their length; a longer one needs a mark.


class SavedTensor(NamedTuple):
    """A contiguous tensor that fills the storage called `key`; two of one key are tied."""

    name: str
    key: str
    dtype: DType
    shape: Shape


class WholeTensor(NamedTuple):
    """An encoded tensor of one of the `NATIVE` kinds; its parts by their roles."""

    name: str
    recipe: Mapping[str, Any]
    parts: Mapping[str, SavedTensor]


NATIVE = frozenset({"quantized", "sparse_coo", *COMPRESSED, "nested"})
"""Kinds of encoded tensors that torch itself saves by calls which ``weights_only=True`` allows everywhere."""


def state_dict(tensors: Sequence[SavedTensor | WholeTensor], metadata: Mapping[str, str]) -> bytes:
    """The pickle of an OrderedDict of `tensors`, none of which requires a gradient.

    Like what ``Module.state_dict()`` gives, it has the attribute ``_metadata``, by which readers
    know a state dict from any other dict. Modules' versions are not in every source, and
    ``load_state_dict`` takes a missing one as unknown: only `metadata` is in it.
    """
    pickle = _Pickle()
    pickle.once(_ORDERED_DICT)
    pickle.out += b")R"
    pickle.put()
    for begin in range(0, len(tensors), _BATCH):
        batch = tensors[begin : begin + _BATCH]
        pickle.out += b"(" if len(batch) > 1 else b""
        for tensor in batch:
            pickle.out += _text(tensor.name)
            pickle.put()
            if isinstance(tensor, WholeTensor):
                pickle.whole(tensor)
            else:
                pickle.tensor(tensor)
        pickle.out += b"u" if len(batch) > 1 else b"s"
    pickle.out += b"}"
    pickle.put()
    pickle.once(_text("_metadata"))
    pickle.once(_ORDERED_DICT)
    pickle.out += b")R"
    pickle.put()
    for key, value in metadata.items():
        for text in (key, value):
            pickle.out += _text(text)
            pickle.put()
        pickle.out += b"s"
    pickle.out += b"sb."
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
            self.out += _TUPLES[0]
            return
        opcodes = b"".join(map(_int, numbers))
        self.out += opcodes + _TUPLES[len(numbers)] if len(numbers) < len(_TUPLES) else b"(" + opcodes + b"t"
        self.put()

    def tensor(self, tensor: SavedTensor) -> None:
        """The call that makes the tensor."""
        _, key, dtype, shape = tensor
        storage_class = _CLASSES.get(dtype.name)
        elements = numel(shape)
        self.once(_TYPED_TENSOR if storage_class else _UNTYPED_TENSOR)
        self.out += b"("
        self.storage(storage_class or _UNTYPED, key, elements if storage_class else elements * dtype.itemsize)
        self.sizes(shape)
        self.sizes(contiguous_strides(shape))
        self.out += b"\x89"  # requires_grad
        self.once(_ORDERED_DICT)  # No backward hooks.
        self.out += b")R"
        self.put()
        if not storage_class:
            self.once(_global("torch", dtype.name))
        self.made(b"t")

    def storage(self, storage_class: bytes, key: str, numel: int) -> None:
        """The persistent id of a storage, and the offset at which a tensor begins in it."""
        self.out += b"("
        self.once(_STORAGE)
        self.once(storage_class)
        self.once(_text(key))
        self.once(_CPU)
        self.out += _int(numel) + b"t"
        self.put()
        self.out += b"QK\0"  # It becomes the storage; the tensor begins at its start.

    def made(self, closing: bytes) -> None:
        """The call of what lies below its arguments, which `closing` makes a tuple."""
        self.out += closing
        self.put()
        self.out += b"R"
        self.put()

    def whole(self, tensor: WholeTensor) -> None:
        """The call that makes an encoded tensor of its parts."""
        kind, shape = tensor.recipe["encoding"], tuple(tensor.recipe["shape"])
        if kind == "quantized":
            self.quantized(tensor, shape)
        elif kind == "nested":
            self.once(_global("torch._utils", "_rebuild_nested_tensor"))
            self.out += b"("
            for role in ("buffer", "sizes", "strides", "offsets"):
                self.tensor(tensor.parts[role])
            self.made(b"t")
        else:
            self.once(_global("torch._utils", "_rebuild_sparse_tensor"))
            self.layout(f"torch.{kind}")
            self.out += b"("
            coo = kind == "sparse_coo"
            for role in ("indices", "values") if coo else ("compressed_indices", "plain_indices", "values"):
                self.tensor(tensor.parts[role])
            self.once(_global("torch", "Size"))
            self.sizes(shape)
            self.made(b"\x85")
            self.out += {True: b"\x88", False: b"\x89", None: b"N"}[tensor.recipe["is_coalesced"]] if coo else b""
            self.out += b"t"
            self.put()
            self.made(b"\x86")

    def quantized(self, tensor: WholeTensor, shape: Shape) -> None:
        """The storage is that of the integers, by the name of the quantized type."""
        recipe, parts = tensor.recipe, tensor.parts
        integers = parts.get("int_repr") or parts["packed"]
        self.once(_global("torch._utils", "_rebuild_qtensor"))
        self.out += b"("
        self.storage(_CLASSES[BY_NAME[recipe["dtype"]].name], integers.key, numel(integers.shape))
        self.sizes(shape)
        self.sizes(contiguous_strides(shape))
        if recipe["scheme"] == PER_TENSOR:
            self.once(_global("torch", recipe["scheme"]))
            self.out += b"G" + struct.pack(">d", recipe["scale"]) + _int(recipe["zero_point"]) + b"\x87"
        else:
            self.out += b"("
            self.once(_global("torch", recipe["scheme"]))
            self.tensor(parts["scales"])
            self.tensor(parts["zero_points"])
            self.out += _int(recipe["axis"]) + b"t"
        self.put()
        self.out += b"\x89"
        self.once(_ORDERED_DICT)
        self.out += b")R"
        self.put()
        self.made(b"t")

    def layout(self, name: str) -> None:
        """A ``torch.layout``, made once."""
        marker = b"layout " + name.encode()
        if marker in self.memo:
            self.once(marker)
            return
        self.once(_global("torch.serialization", "_get_layout"))
        self.once(_text(name))
        self.made(b"\x85")
        self.memo[marker] = self.size - 1


def _int(number: int) -> bytes:
    """A whole number, in the shortest form that the pickler knows."""
    if 0 <= number < 1 << 8:
        return b"K%c" % number
    if 0 <= number < 1 << 16:
        return b"M" + number.to_bytes(2, "little")
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + number.to_bytes(4, "little", signed=True)
    size = number.bit_length() // 8 + 1  # Two's complement: a sign bit of 0 is part of it.
    return b"\x8a%c" % size + number.to_bytes(size, "little", signed=True)
