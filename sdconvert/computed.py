"""Tensors whose elements are computed when they are read, by torch, a block at a time: dequantized ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from .dtypes import BY_NAME
from .encodings import PACKED, PER_TENSOR
from .gather import SCRATCH, fill
from .tensor import Shape, TensorRef, numel

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 16  # Elements, or entries of a sparse tensor, at a time.


def elements_of(tensor: TensorRef, start: int, count: int) -> torch.Tensor:
    """`count` elements of `tensor` from number `start` on."""
    import torch

    if not count:
        return torch.empty(0, dtype=getattr(torch, tensor.dtype.name))
    raw = bytearray(count * tensor.dtype.itemsize)
    fill(tensor, start, memoryview(raw), memoryview(bytearray(0 if tensor.is_plain else SCRATCH)))
    return torch.frombuffer(raw, dtype=getattr(torch, tensor.dtype.name))


class Computed(ABC):
    """A source of elements that `elements` computes."""

    def __init__(self, name: str, dtype: str, shape: Shape) -> None:
        self.name, self.itemsize = name, BY_NAME[dtype].itemsize
        self.nbytes = numel(shape) * self.itemsize

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on."""
        import torch

        step = BLOCK * self.itemsize
        for done in range(0, len(buffer), step):
            part = buffer[done : done + step]
            begin, skip = divmod(offset + done, self.itemsize)
            end = -(-(offset + done + len(part)) // self.itemsize)
            data = self.elements(begin, end).contiguous().view(torch.uint8)
            torch.frombuffer(part, dtype=torch.uint8).copy_(data[skip : skip + len(part)])

    @abstractmethod
    def elements(self, begin: int, end: int) -> torch.Tensor:
        """The row-major elements from number `begin` to `end`, as one dimension."""


class Dequantized(Computed):
    """float32 of a quantized tensor: every element by itself, with the scale and zero point of its channel."""

    def __init__(self, name: str, recipe: Any, parts: dict[str, TensorRef]) -> None:
        self.recipe, self.parts, self.shape = recipe, parts, tuple(recipe["shape"])
        super().__init__(name, "float32", self.shape)
        self.channels: tuple[torch.Tensor, torch.Tensor] | None = None
        if recipe["scheme"] != PER_TENSOR:
            scales, zeros = parts["scales"], parts["zero_points"]
            self.channels = (elements_of(scales, 0, scales.numel), elements_of(zeros, 0, zeros.numel))
            self.inner = numel(self.shape[recipe["axis"] + 1 :])

    def elements(self, begin: int, end: int) -> torch.Tensor:
        import torch

        if self.recipe["dtype"] in PACKED:
            integers = self.unpacked(begin, end)
        else:
            integers = elements_of(self.parts["int_repr"], begin, end - begin)
        if self.channels is None:
            make = torch._make_per_tensor_quantized_tensor
            return make(integers, self.recipe["scale"], self.recipe["zero_point"]).dequantize()
        # As if each element were a channel: then torch needs to know of no other.
        scales, zeros = self.channels
        channel = torch.arange(begin, end) // self.inner % len(scales)
        return torch._make_per_channel_quantized_tensor(integers, scales[channel], zeros[channel], 0).dequantize()

    def unpacked(self, begin: int, end: int) -> torch.Tensor:
        """Elements of less than 8 bits, the first of a byte in its lowest bits, one row right after the other."""
        import torch

        each = PACKED[self.recipe["dtype"]]
        bits, first = 8 // each, begin // each
        data = elements_of(self.parts["packed"], first, -(-end // each) - first)
        index = torch.arange(begin, end)
        return (data[index // each - first] >> (index % each * bits).to(torch.uint8)) & (1 << bits) - 1
