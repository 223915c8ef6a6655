"""Class 2 once more: what is named a million times may not be copied a million times."""

from __future__ import annotations

from .case import Case, converts, either, rejects
from .legacy import old_storage, stream
from .pickling import (
    BUILD,
    FALSE,
    MARK,
    NONE,
    blob,
    call,
    dict_of,
    get,
    list_of,
    module,
    name,
    new,
    tensor,
    text,
    tuple_of,
)
from .shares import T, W, shared
from .zips import FLOATS, torch_zip

_SUFFIX = ("a.b", T)


def _nones(count: int = 40_000) -> bytes:
    return dict_of(*((i, None) for i in range(count)))


def _beside(items: bytes, times: int, first: bytes) -> bytes:
    """A sound tensor beside a list of `items`, `times` times, all sharing what `first` put in the memo."""
    return torch_zip(first + dict_of(W, ("x", list_of(*[items] * times))))


def _chain(levels: int, inside: bytes) -> bytes:
    """Dicts inside each other, under the key in memo 5."""
    return (b"}" + get(5)) * levels + inside + b"s" * levels


def _parameters(levels: int, inside: bytes) -> bytes:
    return (name("torch._utils._rebuild_parameter") + MARK) * levels + inside + b"\x89NtR" * levels


def _load(data: bytes) -> bytes:
    return call("torch.storage._load_from_bytes", blob(data))


def _towers(levels: int, floors: int) -> bytes:
    """Checkpoints inside each other, each of them at the bottom of many calls."""
    inner = stream(_parameters(floors, tensor(of=old_storage())))
    for _ in range(levels):
        inner = stream(_parameters(floors, _load(inner)), stored=())
    return torch_zip(dict_of(("w", _parameters(floors, _load(inner)))))


_LONG = shared(text("k" * 500_000))
_ARGS = shared(tuple_of(*[1] * 60_000))
_MANY_FLAGS = call("collections.OrderedDict") + MARK + b"".join(text(f"k{i}") + FALSE for i in range(40_000)) + b"u"

CASES: list[Case] = [
    *rejects(
        "growth",
        {
            "states-of-one": lambda: torch_zip(
                shared(_nones()) + dict_of(W, ("x", new("a.B") + (get(5) + BUILD) * 20_000))
            ),
            "states-of-many": lambda: _beside(new("a.B") + get(5) + BUILD + get(5) + BUILD, 5000, shared(_nones())),
            "pairs-of-dicts": lambda: _beside(call("collections.OrderedDict", get(5)), 5000, shared(_nones())),
            "pairs-of-lists": lambda: _beside(
                call("collections.OrderedDict", get(5)), 5000, shared(list_of(*((i, None) for i in range(40_000))))
            ),
            "arguments": lambda: _beside(get(6) + get(5) + b"R", 20_000, _ARGS + shared(name("a.f"), 6)),
            "arguments-of-new": lambda: _beside(get(6) + get(5) + b"\x81", 20_000, _ARGS + shared(name("a.f"), 6)),
            "arguments-of-known": lambda: _beside(
                get(6) + get(5) + b"R", 20_000, _ARGS + shared(name("copyreg._reconstructor"), 6)
            ),
            "arguments-of-dict": lambda: _beside(
                get(6) + get(5) + b"R", 20_000, _ARGS + shared(name("collections.OrderedDict"), 6)
            ),
            "flags": lambda: torch_zip(
                shared(_MANY_FLAGS) + dict_of(*((f"w{i}", tensor(metadata=get(5))) for i in range(5000)))
            ),
            "key-of-tensors": lambda: torch_zip(
                _LONG + shared(T, 6) + list_of(*[b"}" + get(5) + get(6) + b"s"] * 20_000)
            ),
            "key-of-parameters": lambda: torch_zip(
                _LONG
                + shared(T, 6)
                + module(children={f"m{i}": module(parameters=b"}" + get(5) + get(6) + b"s") for i in range(3000)})
            ),
            "key-of-nothing": lambda: torch_zip(
                _LONG
                + dict_of(_SUFFIX, *((f"x{i}", b"}(" + get(5) + NONE + text("w") + T + b"u") for i in range(3000)))
            ),
            "path-to-weights": lambda: torch_zip(
                _LONG + _chain(20, dict_of(("state_dict", dict_of(W)), *((i, None) for i in range(20_000))))
            ),
            "path-to-candidates": lambda: torch_zip(
                _LONG + _chain(20, dict_of(*((i, dict_of(_SUFFIX)) for i in range(2000))))
            ),
            "towers": lambda: _towers(7, 30),
        },
    ),
    *either(
        "growth",
        {
            "keyword-arguments": lambda: _beside(name("a.f") + b")" + get(5) + b"\x92", 8000, shared(_nones())),
            "key-of-training": lambda: torch_zip(
                shared(text("optim" * 100_000))
                + shared(T, 6)
                + dict_of(_SUFFIX, ("x", list_of(*[b"}" + get(5) + get(6) + b"s"] * 20_000)))
            ),
            "key-of-4000": lambda: torch_zip(
                shared(text("optim" * 800))
                + shared(T, 6)
                + dict_of(_SUFFIX, ("x", list_of(*[b"}" + get(5) + get(6) + b"s"] * 40_000)))
            ),
            "siblings-of-4000": lambda: torch_zip(
                shared(text("k" * 4000))
                + _chain(1, dict_of(("state_dict", dict_of(W)), *((i, None) for i in range(100_000))))
            ),
            "class-of-4000": lambda: torch_zip(
                shared(call("a." + "C" * 4000)) + dict_of(*((i, get(5)) for i in range(60_000)), W)
            ),
            "empty-dicts": lambda: torch_zip(dict_of(W, ("x", list_of(b"}" * 800_000)))),
            "tuples": lambda: torch_zip(dict_of(W, ("x", NONE + b"\x85" * 700_000))),
        },
    ),
    *converts("growth-fine", {"towers": lambda: _towers(3, 3)}, {"w": ("F32", (4,), FLOATS)}),
]
