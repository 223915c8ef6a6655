"""Sparse tensors as sources of all their elements, zeros too, computed when they are read.

COO tensors whose indices go up, and CSR, are looked up where they lie, of any size. Few entries in any
other order are kept in memory, sorted. Adding up and zeros are torch's: `to_dense` of the part that is asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .computed import BLOCK, Computed, elements_of
from .errors import UnreadableError
from .tensor import Shape, TensorRef, numel

if TYPE_CHECKING:
    import torch

_LISTED = 1 << 20  # Entries that are kept in memory: 16 MiB of indices.
_LISTED_BYTES = 32 << 20  # Bytes of their values.
_CELL = 4 << 20  # Bytes of the dense part at one index of a hybrid tensor.


class _Sparse(Computed):
    """A sparse tensor, row-major: what `entries` finds in a range of indices, and zeros between."""

    def __init__(self, name: str, recipe: Any, parts: dict[str, TensorRef], sparse: int) -> None:
        self.shape = tuple(recipe["shape"])
        self.dtype = recipe["dtype"]
        super().__init__(name, self.dtype, self.shape)
        self.values = parts["values"]
        self.cell = numel(self.shape[sparse:])  # Elements at one index.

    def elements(self, begin: int, end: int) -> torch.Tensor:
        import torch

        first, last = begin // self.cell, -(-end // self.cell)
        result = torch.zeros(last - first, self.cell, dtype=getattr(torch, self.dtype))
        for index, values in self.entries(first, last):
            if len(index):
                low = int(index.min())
                size = (int(index.max()) + 1 - low, self.cell)
                part = torch.sparse_coo_tensor((index - low)[None], values, size, check_invariants=False).to_dense()
                result[low - first : low - first + size[0]] += part
        return result.flatten()[begin - first * self.cell : end - first * self.cell]

    @abstractmethod
    def entries(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The indices from `first` up to `last` that have values, as row-major numbers, with those values."""

    def some(self, start: int, count: int) -> torch.Tensor:
        """The values of `count` entries from number `start` on."""
        return elements_of(self.values, start * self.cell, count * self.cell).reshape(count, self.cell)


class _Ordered(_Sparse):
    """A COO tensor whose indices go up: of every block the first index is kept, the rest is looked up."""

    def __init__(self, name: str, recipe: Any, parts: dict[str, TensorRef]) -> None:
        self.indices = parts["indices"]
        self.dims, self.count = self.indices.shape
        super().__init__(name, recipe, parts, self.dims)
        self.firsts: list[int] = []

    def numbers(self, start: int, count: int) -> torch.Tensor:
        """The row-major numbers of some entries' indices. UnreadableError when one is outside."""
        import torch

        number = torch.zeros(count, dtype=torch.int64)
        for dim, size in enumerate(self.shape[: self.dims]):
            index = elements_of(self.indices, dim * self.count + start, count)
            if count and (int(index.min()) < 0 or int(index.max()) >= size):
                raise UnreadableError(f"an index of dimension {dim} is outside of its {size}. It is damaged")
            number = number * size + index
        return number

    def is_ordered(self) -> bool:
        """Look at all indices once: whether they go up, none twice."""
        before = -1
        for start in range(0, self.count, BLOCK):
            number = self.numbers(start, min(BLOCK, self.count - start))
            if int(number[0]) <= before or bool((number.diff() <= 0).any()):
                return False
            self.firsts.append(int(number[0]))
            before = int(number[-1])
        return True

    def entries(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for block, low in enumerate(self.firsts):
            if low >= last or (block + 1 < len(self.firsts) and self.firsts[block + 1] <= first):
                continue
            start = block * BLOCK
            number = self.numbers(start, min(BLOCK, self.count - start))
            begin, end = (int((number < limit).sum()) for limit in (first, last))
            yield number[begin:end], self.some(start + begin, end - begin)


class _Rows(_Sparse):
    """A CSR tensor: the entries of a row lie together."""

    def __init__(self, name: str, recipe: Any, parts: dict[str, TensorRef]) -> None:
        super().__init__(name, recipe, parts, 2)
        self.ends, self.plain = parts["compressed_indices"], parts["plain_indices"]
        limits = [int(elements_of(self.ends, at, 1)) for at in (0, self.ends.numel - 1)]
        if limits != [0, self.plain.numel]:
            raise UnreadableError("its rows do not begin at 0 and end with its values. It is damaged")

    def entries(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        columns = self.shape[1]
        row = first // columns
        ends = elements_of(self.ends, row, (last - 1) // columns + 2 - row).long()
        if int(ends[0]) < 0 or bool((ends.diff() < 0).any()) or int(ends[-1]) > self.plain.numel:
            raise UnreadableError("its rows do not follow each other. It is damaged")
        stop, step = int(ends[-1]), max(1, BLOCK // self.cell)
        for start in range(int(ends[0]), stop, step):
            count = min(step, stop - start)
            column = elements_of(self.plain, start, count).long()
            if int(column.min()) < 0 or int(column.max()) >= columns:
                raise UnreadableError(f"an index is outside of its {columns} columns. It is damaged")
            rows = torch.searchsorted(ends, torch.arange(start, start + count), right=True) - 1
            number = (row + rows) * columns + column
            inside = (number >= first) & (number < last)
            yield number[inside], self.some(start, count)[inside]


class _Listed(_Sparse):
    """A few entries in any order, in memory. Those of one index are added up as torch does it."""

    def __init__(
        self, name: str, recipe: Any, parts: dict[str, TensorRef], sparse: int, numbers: list[torch.Tensor]
    ) -> None:
        import torch

        super().__init__(name, recipe, parts, sparse)
        self.number, self.order = torch.cat(numbers).sort(stable=True)
        self.all = self.some(0, len(self.number))

    def entries(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        begin, end = (int(torch.searchsorted(self.number, limit)) for limit in (first, last))
        yield self.number[begin:end], self.all[self.order[begin:end]]


def sparse_source(name: str, recipe: Any, parts: dict[str, TensorRef]) -> _Sparse | str:
    """The source of a sparse tensor, or why there is none."""
    import torch

    kind, shape, values = recipe["encoding"], tuple(recipe["shape"]), parts["values"]
    compressed = kind != "sparse_coo"
    if compressed and len(parts["compressed_indices"].shape) > 1:
        return f"--densify knows {kind} of one matrix, not of batches"
    sparse = 2 if compressed else parts["indices"].shape[0]
    if numel(shape[sparse:]) * values.dtype.itemsize > _CELL:
        return f"its dense dimensions take more than {_CELL} bytes for each index"
    try:
        one = torch.zeros(1, dtype=getattr(torch, recipe["dtype"]))
        torch.sparse_coo_tensor(torch.zeros(1, 1).long(), one, (1,), check_invariants=False).to_dense()
    except NotImplementedError:
        return f"torch cannot make a sparse tensor of {recipe['dtype']} dense"
    if kind == "sparse_csr":
        return _Rows(name, recipe, parts)
    count = values.shape[0]
    few = count <= _LISTED and values.nbytes <= _LISTED_BYTES
    if kind == "sparse_csc":
        if not few:
            return f"its {count} values lie by columns, which takes memory to put right"
        return _Listed(name, recipe, parts, 2, [_columns(shape, parts)])
    ordered = _Ordered(name, recipe, parts)
    if ordered.is_ordered():
        return ordered
    if not few:
        return f"its {count} values are not coalesced, and too many to sort in memory"
    numbers = [ordered.numbers(start, min(BLOCK, count - start)) for start in range(0, count, BLOCK)]
    return _Listed(name, recipe, parts, sparse, numbers)


def _columns(shape: Shape, parts: dict[str, TensorRef]) -> torch.Tensor:
    """The row-major numbers of a CSC tensor's entries."""
    import torch

    ends, rows = parts["compressed_indices"], parts["plain_indices"]
    count, limit = rows.numel, ends.numel
    end, row = elements_of(ends, 0, limit).long(), elements_of(rows, 0, count).long()
    if int(end[0]) != 0 or int(end[-1]) != count or bool((end.diff() < 0).any()):
        raise UnreadableError("its columns do not follow each other. It is damaged")
    if count and (int(row.min()) < 0 or int(row.max()) >= shape[0]):
        raise UnreadableError(f"an index is outside of its {shape[0]} rows. It is damaged")
    column = torch.searchsorted(end, torch.arange(count), right=True) - 1
    return row * shape[1] + column
