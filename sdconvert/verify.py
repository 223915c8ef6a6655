"""Are the weights in one file the weights in another? Tensor by tensor, bit by bit, in constant memory.

Also a digest of the weights alone, so that two people can compare files by one line:
it does not depend on the container, on the order, or on which names are tied.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from .checkpoint import Encoding, StateDict, TensorRef
from .errors import printable, within
from .limits import DEFAULT_LIMITS, Limits
from .names import Names
from .opening import PathLike
from .opening import open as open_checkpoint
from .plan import check_cost
from .progress import Bar, bar_of
from .report import human
from .stream import CHUNK, Chunk, check_storages, in_threads, read_elements
from .tensor import Storage, expect

_SHOWN = 20
_HALF = CHUNK // 2  # The buffer of a thread holds a piece of each side.


@dataclass(frozen=True)
class Difference:
    """One way in which two files differ: the tensor's name, ``missing``, ``extra``, ``dtype``, ``shape``, ``values`` or
    ``recipe`` (how an encoded tensor is made of its parts), and where. ``missing`` is only in the first file, ``extra``
    only in the second."""

    name: str
    what: str
    detail: str

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.detail}")


@dataclass(frozen=True)
class Verification:
    """The outcome of comparing `first` and `second`: `tensors` names, `nbytes` bytes of the first file's tensors.

    `warnings` say of which bytes from a server nobody can tell that they are those of the file.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]
    tensors: int
    nbytes: int
    warnings: tuple[str, ...]
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether all names, dtypes, shapes and bits are the same."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON-ready data, with every difference."""
        return {
            "first": self.first,
            "second": self.second,
            "equal": self.equal,
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "differences": [{"name": d.name, "what": d.what, "detail": d.detail} for d in self.differences],
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        return "\n".join([*self._lines(), *(printable(f"  warning   {warning}") for warning in self.warnings)])

    def _lines(self) -> Iterator[str]:
        size = f"{self.tensors:,} tensors, {human(self.nbytes)}, {self.seconds:.2f} s"
        if self.equal:
            yield printable(f"equal: {self.first} and {self.second} hold the same weights ({size})")
            return
        count = len(self.differences)
        yield printable(f"different: {self.first} and {self.second} differ in {count:,} places ({size})")
        yield from (f"  {difference}" for difference in self.differences[:_SHOWN])
        if count > _SHOWN:
            yield f"  and {count - _SHOWN:,} more; --json lists all"


class _Piece(NamedTuple):
    """Elements `start` to `start + elements` of the same tensor on both sides."""

    name: str
    first: TensorRef
    second: TensorRef
    start: int
    elements: int


def verify(
    first: PathLike,
    second: PathLike,
    *,
    key: str | None = None,
    names: Names | None = None,
    threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Bar | bool | None = None,
) -> Verification:
    """Compare the weights of two sources, of any containers. Each is read once, by `threads` threads.

    `key` and `names` choose and rename the tensors of `first`, as for a conversion; `revision` is one of `first`,
    and `token` is for either, where they are on the Hub. NaNs are equal when their bits are; 0.0 and -0.0 are
    not. A source that cannot be read raises as `open` does.
    """
    began = time.perf_counter()
    with (
        open_checkpoint(first, revision=revision, token=token, limits=limits) as one,
        open_checkpoint(second, token=token, limits=limits) as other,
    ):
        ours, theirs = one.extract(key, names), other.state_dict
        differences, same = _compare_headers(ours, theirs)
        for opened, side in ((one, 0), (other, 1)):
            with within(opened.name):
                _check_cost(((name, pair[side]) for name, *pair in same), limits)
        expect((tensor for _, *pair in same for tensor in pair), checked=True)
        read: dict[Storage, list[Chunk]] = {}
        wrong: dict[str, list[int]] = {}  # The first differing element of each piece, by name.

        def work(piece: _Piece, buffer: memoryview, scratch: memoryview) -> int:
            if min(wrong.get(piece.name, [piece.start])) < piece.start:
                return 0  # An earlier element is known to differ.
            nbytes = piece.elements * piece.first.dtype.itemsize
            left, right = buffer[:nbytes], buffer[_HALF : _HALF + nbytes]
            for path, tensor, part in ((one.name, piece.first, left), (other.name, piece.second, right)):
                with within(f"{path}: {piece.name}"):
                    read_elements(tensor, piece.start, part, scratch, read)
            # bytes are compared by memcmp, memoryviews one by one.
            mine, yours = left.tobytes(), right.tobytes()
            if mine != yours:
                at = piece.start + _first_difference(mine, yours) // piece.first.dtype.itemsize
                wrong.setdefault(piece.name, []).append(at)
            return nbytes

        total = sum(tensor.nbytes for _, tensor, _ in same)
        with bar_of(progress)("comparing", total) as update:
            in_threads(work, _pieces(same), total, threads, update)
        doubts: list[str] = []
        for opened, side in ((one, 0), (other, 1)):
            with within(opened.name):
                check_storages(read, _storages([pair[side] for _, *pair in same]), threads=threads)
            doubts += (f"{opened.name}: {doubt}" for doubt in opened.check_unchanged())
        by_name = {name: tensor for name, tensor, _ in same}
        for name, places in wrong.items():
            where = _index(min(places), by_name[name].shape)
            differences.append(Difference(name, "values", f"its values differ, first at element {where}"))
        order = {name: number for number, name in enumerate([*ours, *theirs, *ours.encoded, *theirs.encoded])}
        differences.sort(key=lambda difference: order[difference.name])
        return Verification(
            one.name, other.name, tuple(differences), len(ours), ours.nbytes, tuple(doubts), time.perf_counter() - began
        )


def _compare_headers(
    ours: StateDict, theirs: StateDict
) -> tuple[list[Difference], list[tuple[str, TensorRef, TensorRef]]]:
    """What differs already by names, dtypes and shapes, and the pairs whose values are to be compared, each once."""
    differences: list[Difference] = []
    same: dict[tuple[TensorRef, TensorRef], str] = {}
    for name, tensor in ours.tensors.items():
        other = theirs.tensors.get(name)
        if other is None:
            differences.append(Difference(name, "missing", "is only in the first file"))
        elif other.dtype != tensor.dtype:
            differences.append(Difference(name, "dtype", f"is {tensor.dtype.name} and {other.dtype.name}"))
        elif other.shape != tensor.shape:
            differences.append(Difference(name, "shape", f"has shape {list(tensor.shape)} and {list(other.shape)}"))
        else:
            same.setdefault((tensor, other), name)
    for name in theirs:
        if name not in ours.tensors:
            differences.append(Difference(name, "extra", "is only in the second file"))
    for name in dict.fromkeys([*ours.encoded, *theirs.encoded]):
        recipes = [side.encoded.get(name) for side in (ours, theirs)]
        lines = [None if one is None else _recipe_line(name, one) for one in recipes]
        if lines[0] != lines[1]:
            kinds = " and ".join("no encoded tensor" if one is None else one.recipe["encoding"] for one in recipes)
            differences.append(Difference(name, "recipe", f"is made of its parts in different ways: {kinds}"))
    return differences, [(name, *pair) for pair, name in same.items()]


def _storages(tensors: Iterable[TensorRef]) -> Iterator[Storage]:
    return (piece.storage for tensor in tensors for piece in tensor.pieces)


def _check_cost(named: Iterable[tuple[str, TensorRef]], limits: Limits) -> None:
    """UnreadableError when reading these tensors, the same ones once, would cost far more than their storages are."""
    once = {tensor: name for name, tensor in named}
    tensors = {name: tensor for tensor, name in once.items()}
    check_cost(tensors, sum(tensor.nbytes for tensor in once), limits)


def _recipe_line(name: str, one: Encoding) -> bytes:
    """What a digest says of an encoded tensor beside its parts."""
    line = json.dumps([name, one.recipe, one.parts], separators=(",", ":"), sort_keys=True)
    return line.encode() + b"\n"


def _pieces(same: list[tuple[str, TensorRef, TensorRef]]) -> Iterator[_Piece]:
    for name, first, second in same:
        step = _HALF // first.dtype.itemsize
        for start in range(0, first.numel, step):
            yield _Piece(name, first, second, start, min(step, first.numel - start))


def _first_difference(one: bytes, other: bytes) -> int:
    """The first byte in which two strings of one length differ, by halving."""
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] != other[low:middle]:
            high = middle
        else:
            low = middle
    return low


def _index(at: int, shape: tuple[int, ...]) -> list[int]:
    """The index of row-major element number `at`."""
    index: list[int] = []
    for size in reversed(shape):
        at, place = divmod(at, size)
        index.insert(0, place)
    return index


def digest(
    source: PathLike,
    *,
    key: str | None = None,
    names: Names | None = None,
    threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Bar | bool | None = None,
) -> str:
    """A digest of the weights alone: ``sdconvert-1:`` and 64 hexadecimal digits.

    It is the SHA-256 of one line for each name, aliases too, in the order of their code points: the
    JSON array [name, dtype as torch calls it, shape, SHA-256 of the row-major little-endian bytes
    in hexadecimal], without spaces and in ASCII, each ending in a newline. Parts of encoded tensors are such names;
    behind them comes a line for each encoded tensor: [name, recipe, names of its parts by role], with sorted keys.
    """
    with open_checkpoint(source, revision=revision, token=token, limits=limits) as opened:
        weights = opened.extract(key, names)
        with within(opened.name):
            _check_cost(weights.tensors.items(), limits)
        unique = dict.fromkeys(weights.tensors.values())
        found: dict[TensorRef, str] = {}
        read: dict[Storage, list[Chunk]] = {}
        expect(unique, checked=True)

        def work(tensor: TensorRef, buffer: memoryview, scratch: memoryview) -> int:
            state = hashlib.sha256()
            step = len(buffer) // tensor.dtype.itemsize
            for start in range(0, tensor.numel, step):
                part = buffer[: min(step, tensor.numel - start) * tensor.dtype.itemsize]
                read_elements(tensor, start, part, scratch, read)
                state.update(part)
            found[tensor] = state.hexdigest()
            return tensor.nbytes

        total = sum(tensor.nbytes for tensor in unique)
        with within(opened.name), bar_of(progress)("digesting", total) as update:
            in_threads(work, iter(unique), total, threads, update)
            check_storages(read, _storages(unique), threads=threads)
        opened.check_unchanged()
        whole = hashlib.sha256()
        for name in sorted(weights.tensors):
            tensor = weights.tensors[name]
            line = [name, tensor.dtype.name, list(tensor.shape), found[tensor]]
            whole.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        for name in sorted(weights.encoded):
            whole.update(_recipe_line(name, weights.encoded[name]))
        return f"sdconvert-1:{whole.hexdigest()}"
