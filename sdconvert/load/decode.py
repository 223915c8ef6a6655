"""From a recipe and plain parts to the tensor that torch would have loaded.

Everything is checked before torch is called: a recipe may come from anybody's file. No class is
imported for one; those of tensor subclasses are taken from what torch itself allows
``torch.load(weights_only=True)`` (``torch.serialization.add_safe_globals``).
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from ..encodings import COMPRESSED, PACKED, PER_TENSOR, Fact, check
from ..errors import SdconvertError, UnreadableError, UnsupportedError
from ..tensor import contiguous_strides

if TYPE_CHECKING:
    import torch


def decode(recipe: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor of `recipe`, made of `parts` by role, on their device; it may share their memory.

    UnreadableError when they do not fit each other, UnsupportedError when the encoding is not known, or is of
    a class that is not there. ImportError when torch is not installed.
    """
    facts = {role: Fact(str(part.dtype).removeprefix("torch."), tuple(part.shape)) for role, part in parts.items()}
    check(recipe, facts)
    dense = {role: part.resolve_conj().resolve_neg().contiguous() for role, part in parts.items()}
    kind = recipe["encoding"]
    try:
        if kind == "quantized":
            return _quantized(recipe, dense)
        if kind == "nested":
            return _nested(recipe, dense)
        if kind == "jagged":
            return _jagged(recipe, dense)
        if kind == "subclass":
            return _subclass(recipe, dense)
        if kind in ("complex", "bits"):
            return _alone(recipe, dense)
        return _sparse(recipe, dense)
    except SdconvertError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, OverflowError, AssertionError) as error:
        text = " ".join(str(error).split())
        raise UnreadableError(f"{kind}: torch refuses it: {text[:300]}. It is damaged") from None


def _dtype(recipe: Mapping[str, Any]) -> torch.dtype:
    import torch

    dtype = getattr(torch, recipe["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedError(f"this torch has no {recipe['dtype']}")
    return dtype


def _quantized(recipe: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """As ``torch._utils._rebuild_qtensor``, the one way that keeps every scheme and every dtype."""
    import torch

    integers = parts["packed" if recipe["dtype"] in PACKED else "int_repr"]
    if recipe["scheme"] == PER_TENSOR:
        quantizer: tuple[Any, ...] = (torch.per_tensor_affine, recipe["scale"], recipe["zero_point"])
    else:
        quantizer = (torch.per_channel_affine, parts["scales"], parts["zero_points"], recipe["axis"])
    if integers.storage_offset() or integers.untyped_storage().nbytes() != integers.nbytes:
        integers = integers.clone()
    make, rebuild = cast("Any", torch.storage.TypedStorage), cast("Any", torch._utils._rebuild_qtensor)
    storage = make(wrap_storage=integers.untyped_storage(), dtype=_dtype(recipe), _internal=True)
    shape = tuple(recipe["shape"])
    hooks: OrderedDict[Any, Any] = OrderedDict()
    result: torch.Tensor = rebuild(storage, 0, shape, contiguous_strides(shape), quantizer, False, hooks)
    return result


def _sparse(recipe: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Every index is inside, which `check` cannot see. Compressed indices need not be sorted: torch saves and loads
    such tensors, too, though its own check of invariants would refuse them."""
    import torch

    kind, shape = recipe["encoding"], tuple(recipe["shape"])
    if kind in COMPRESSED:
        compressed, plain, values = (parts[role] for role in ("compressed_indices", "plain_indices", "values"))
        batch = compressed.dim() - 1
        block = values.shape[batch + 1 : batch + 3] if kind in ("sparse_bsr", "sparse_bsc") else (1, 1)
        across = 1 - COMPRESSED[kind]
        most = shape[batch + across] // block[across]
        ends = compressed[..., 0].any() or (compressed[..., -1] != plain.shape[-1]).any()
        if ends or (compressed.diff() < 0).any() or (plain < 0).any() or (plain >= most).any():
            raise UnreadableError(f"{kind}: an index is out of range. It is damaged")
        result: torch.Tensor = torch.sparse_compressed_tensor(
            compressed, plain, values, shape, layout=getattr(torch, kind), check_invariants=False
        )
        return result
    return torch.sparse_coo_tensor(
        parts["indices"], parts["values"], shape, check_invariants=True, is_coalesced=recipe["is_coalesced"]
    )


def _nested(recipe: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """torch does not look where its tensors lie, so every one is checked to be inside of the buffer."""
    import torch

    buffer, sizes, strides, offsets = (parts[role] for role in ("buffer", "sizes", "strides", "offsets"))
    for size, stride, offset in zip(sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True):
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min([*size, *stride, offset]) < 0 or (0 not in size and last >= len(buffer)):
            raise UnreadableError("nested: one of its tensors lies outside of its buffer. It is damaged")
    return torch._nested_view_from_buffer(buffer, sizes, strides, offsets)


def _jagged(recipe: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    import torch

    values, offsets, lengths = parts["values"], parts["offsets"], parts.get("lengths")
    dim = recipe["ragged_dim"]
    ends = offsets.tolist()
    if ends[0] != 0 or any(a > b for a, b in pairwise(ends)) or ends[-1] > values.shape[dim - 1]:
        raise UnreadableError("jagged: its offsets do not go up from 0 to the end of its values. It is damaged")
    if lengths is not None:
        rows = zip(ends, lengths.tolist(), ends[1:], strict=False)
        if any(n < 0 or begin + n > end for begin, n, end in rows):
            raise UnreadableError("jagged: a length reaches beyond the next offset. It is damaged")
    make = getattr(torch.nested, "nested_tensor_from_jagged", None)
    if make is None:
        raise UnsupportedError("this torch has no nested tensors of the jagged layout; 2.4 and later have")
    result: torch.Tensor = make(
        values,
        offsets=offsets,
        lengths=lengths,
        jagged_dim=dim,
        min_seqlen=recipe["min_length"],
        max_seqlen=recipe["max_length"],
    )
    return result


def _alone(recipe: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    import torch

    (part,) = parts.values()
    if recipe["encoding"] == "complex":
        if part.data_ptr() % (2 * part.element_size()):
            part = part.clone()  # torch's code for complex128 faults on what is not aligned to 16 bytes.
        return torch.view_as_complex(part)
    return part.view(_dtype(recipe))


def _subclass(recipe: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """As ``torch._tensor._rebuild_from_type_v2`` of ``_rebuild_wrapper_subclass``."""
    import torch

    known = _Classes()
    cls = known.named(recipe["class"])
    if not isinstance(cls, type) or not issubclass(cls, torch.Tensor):
        raise UnreadableError(f"subclass: {recipe['class'][:200]} is not a class of tensors. It is damaged")
    state = known.value(recipe["state"], parts)
    first = next(iter(parts.values()))
    args = (
        cls,
        _dtype(recipe),
        tuple(recipe["shape"]),
        tuple(recipe["strides"]),
        0,
        torch.strided,
        first.device,
        False,
    )
    result: torch.Tensor = torch._tensor._rebuild_from_type_v2(  # type: ignore[no-untyped-call]
        torch._utils._rebuild_wrapper_subclass, cls, args, state
    )
    return result


class _Classes:
    """The classes and functions that torch allows by name."""

    def __init__(self) -> None:
        import torch

        listed: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()
        self.allowed: dict[str, Any] = {}
        for one in listed:
            value, name = one if isinstance(one, tuple) else (one, f"{one.__module__}.{one.__qualname__}")
            self.allowed[name] = value
        self.allowed |= {"collections.OrderedDict": OrderedDict, "torch.Size": torch.Size, "torch.device": torch.device}

    def named(self, name: str) -> Any:
        import torch

        if name in self.allowed:
            return self.allowed[name]
        module, _, last = name.rpartition(".")
        value = getattr(torch, last, None) if module == "torch" else None
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.qscheme):
            return value
        raise UnsupportedError(
            f"it is made of {name[:200]}, which this torch does not know. Import the package that defines it, or allow "
            f"it with torch.serialization.add_safe_globals([{name[:200]}])"
        )

    def value(self, node: Any, parts: Mapping[str, torch.Tensor]) -> Any:
        """What a node of a state stands for; `check` has seen that it is one."""
        if isinstance(node, list):
            return [self.value(item, parts) for item in node]
        if not isinstance(node, dict):
            return node
        (kind, content), *_ = node.items()
        if kind == "tensor":
            return parts[content]
        if kind == "encoded":
            inside = f"{content}."
            inner = {role.removeprefix(inside): part for role, part in parts.items() if role.startswith(inside)}
            return decode(node["recipe"], inner)
        if kind == "dict":
            return {self.value(key, parts): self.value(value, parts) for key, value in content}
        if kind in ("tuple", "set"):
            return {"tuple": tuple, "set": set}[kind](self.value(item, parts) for item in content)
        if kind == "float":
            return float(content)
        if kind == "global":
            return self.named(content)
        if kind == "member":
            return self.member(node["of"], content)
        return self.call(content, self.value(node["args"], parts), self.value(node["state"], parts))

    def member(self, name: str, member: str) -> enum.Enum:
        """One of an enumeration that torch allows."""
        cls = self.named(name)
        if not isinstance(cls, type) or not issubclass(cls, enum.Enum) or member not in cls.__members__:
            raise UnreadableError(f"subclass: {name[:200]} has no member {member[:200]}. It is damaged")
        return cls[member]

    def call(self, name: str, args: list[Any], state: Any) -> Any:
        """What unpickling makes of a class and its state, for classes that torch allows."""
        cls = self.named(name)
        if not callable(cls):
            raise UnreadableError(f"subclass: {name[:200]} cannot be called. It is damaged")
        if state is None:
            return cls(*args)
        result = cls.__new__(cls, *args) if isinstance(cls, type) else cls(*args)
        if hasattr(result, "__setstate__"):
            result.__setstate__(state)
            return result
        if not isinstance(state, dict):
            raise UnreadableError(f"subclass: the state of {name[:200]} is not a dict. It is damaged")
        result.__dict__.update(state)
        return result
