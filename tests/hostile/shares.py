"""Class 2 again: what is shared is looked at once, however often it is referred to."""

from __future__ import annotations

import struct
from itertools import product

from .case import Case, converts, either, rejects
from .legacy import old_storage, stream
from .pickling import (
    BUILD,
    MARK,
    NONE,
    POP,
    blob,
    call,
    dict_of,
    get,
    integer,
    list_of,
    literal,
    module,
    name,
    put,
    storage,
    tensor,
    text,
    tuple_of,
)
from .zips import deflated_zip, torch_zip

T = tensor()
W = ("w", T)
DTYPE = call("numpy.dtype", "f4")


def order(mark: str, base: object = None) -> bytes:
    """The state of a dtype: its byte order, and what it is an array of."""
    return tuple_of(3, mark, base, None, None, -1, -1, 0) + BUILD


def array(shape: object, data: object, dtype: bytes = DTYPE, fortran: object = False) -> bytes:
    """A pickled numpy array."""
    head = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), b"C\x01b")
    return head + tuple_of(1, shape, dtype, fortran, data) + BUILD


def shared(what: bytes, index: int = 5) -> bytes:
    return what + put(index) + POP


def colliding_tensors(count: int) -> bytes:
    """Empty tensors whose strides, all different, have the same hash."""
    step = (1 << 61) - 1
    numbers = b"".join(shared(integer(k * step), 10 + k) for k in range(4))
    strides = list(product(range(4), repeat=7))[:count]
    tensors = (
        (f"w{i}", tensor((0,) * 7, MARK + b"".join(get(10 + k) for k in chosen) + b"t", of=get(5)))
        for i, chosen in enumerate(strides)
    )
    return torch_zip(shared(storage()) + numbers + dict_of(*tensors))


def _padded(number: int) -> tuple[int, ...]:
    """One of many shapes of 100,000 elements."""
    before, after = divmod(number, 40)
    return (
        (*(1,) * before, 100_000, *(1,) * (after % 20), *(1,) * 0)
        if after < 20
        else (*(1,) * before, 50_000, 2, *(1,) * (after - 20))
    )


def modules(count: int, **state: object) -> bytes:
    """A model of `count` children that share what is in memo 5 and 6."""
    child = {"_parameters": {}, "_buffers": {}, "_modules": {}, **state}
    one = name("a.B") + b")\x81" + literal(child) + BUILD
    return module(parameters=dict_of(W), children=dict_of(*((f"m{i}", one) for i in range(count))))


def _sourced(count: int) -> bytes:
    pid = tuple_of("module", name("a.B"), "f", get(5)) + b"Q"
    one = pid + b")\x81" + literal({"_parameters": {}, "_buffers": {}, "_modules": {}}) + BUILD
    return module(parameters=dict_of(W), children=dict_of(*((f"m{i}", one) for i in range(count))))


_MANY = dict_of(*((f"k{i}", None) for i in range(40_000)), W)
_NESTED = stream(list_of(*[1] * 50_000) + POP + old_storage())

_TURNED = struct.pack("<4I", 0, 2, 1, 3)

CASES: list[Case] = [
    *converts(
        "share-array",
        {
            "fortran": lambda: torch_zip(
                dict_of(("w", array((2, 2), blob(struct.pack("<4I", *range(4))), fortran=True)))
            ),
            "fortran-int": lambda: torch_zip(
                dict_of(("w", array((2, 2), blob(struct.pack("<4I", *range(4))), fortran=1)))
            ),
        },
        {"w": ("F32", (2, 2), _TURNED)},
    ),
    *either(
        "share",
        {
            "siblings": lambda: torch_zip(
                shared(list_of(*[T] * 3000))
                + dict_of(("state_dict", dict_of(W)), *((f"a{i}", get(5)) for i in range(12_000)))
            ),
            "big-dict": lambda: torch_zip(shared(_MANY) + list_of(*[get(5)] * 3000)),
            "big-dict-beside": lambda: torch_zip(
                shared(dict_of(*((f"k{i}", None) for i in range(40_000))))
                + dict_of(("state_dict", dict_of(W)), ("x", list_of(*[get(5)] * 3000)))
            ),
            "module-nones": lambda: torch_zip(
                shared(dict_of(*((f"s{i}", None) for i in range(30_000)))) + modules(5000, _parameters=get(5))
            ),
            "module-hidden": lambda: torch_zip(
                shared(list_of(*(f"s{i}" for i in range(30_000)))) + modules(5000, _non_persistent_buffers_set=get(5))
            ),
            "module-hooks": lambda: torch_zip(
                shared(dict_of(*((i, name("a.hook")) for i in range(30_000)))) + modules(5000, _state_dict_hooks=get(5))
            ),
            "module-source": lambda: torch_zip(shared(text("x = 1\n" * 60_000)) + _sourced(8000)),
            "module-state": lambda: torch_zip(
                shared(
                    dict_of(("_parameters", dict_of(W)), *((f"s{i}", None) for i in range(30_000)), ("_modules", {}))
                )
                + list_of(*[name("a.B") + b")\x81" + get(5) + BUILD] * 4000)
            ),
            "nested-text": lambda: torch_zip(
                shared(text(_NESTED.decode("latin-1")))
                + dict_of(
                    *(
                        (
                            f"w{i}",
                            tensor(of=call("torch.storage._load_from_bytes", call("_codecs.encode", get(5), "latin1"))),
                        )
                        for i in range(4000)
                    )
                )
            ),
            "nested-bytes": lambda: torch_zip(
                shared(blob(_NESTED))
                + dict_of(*((f"w{i}", tensor(of=call("torch.storage._load_from_bytes", get(5)))) for i in range(3000)))
            ),
            "colliding-tensors": lambda: colliding_tensors(12_000),
            "array-text": lambda: torch_zip(
                shared(text("x" * 100_000)) + dict_of(*((f"a{i}", array((25_000,), get(5))) for i in range(3000)))
            ),
            "array-short-text": lambda: torch_zip(
                shared(text("x" * 4000)) + dict_of(*((f"a{i}", array((1000,), get(5))) for i in range(8000)))
            ),
            "dims-shared": lambda: torch_zip(
                shared(MARK + integer(1) * 60_000 + b"t")
                + shared(storage(), 6)
                + dict_of(*((f"w{i}", tensor(get(5), get(5), of=get(6))) for i in range(3000)))
            ),
            "dims-list-shared": lambda: torch_zip(
                shared(list_of(*[1] * 60_000))
                + shared(storage(), 6)
                + dict_of(*((f"w{i}", tensor(get(5), get(5), of=get(6))) for i in range(3000)))
            ),
            "candidates": lambda: torch_zip(
                shared(list_of(*[T] * 5000))
                + dict_of(*((f"c{i}", dict_of(("a.b", T), ("s", get(5)))) for i in range(1000)))
            ),
            "candidates-wrapped": lambda: torch_zip(
                shared(list_of(*[T] * 5000))
                + list_of(*[dict_of(("state_dict", dict_of(("a.b", T), ("s", get(5)))))] * 1500)
            ),
            "prefix": lambda: torch_zip(
                shared(T) + dict_of(("a.b", T), ("p" * 60_000, dict_of(*((str(i), get(5)) for i in range(9000)))))
            ),
            "prefix-4000": lambda: torch_zip(
                shared(T) + dict_of(("a.b", T), ("p" * 4000, dict_of(*((str(i), get(5)) for i in range(60_000)))))
            ),
            "prefix-deep": lambda: torch_zip(
                shared(T)
                + dict_of(("a.b", T), ("p" * 4000, _prefixed(150, dict_of(*((str(i), get(5)) for i in range(20_000))))))
            ),
            "prefix-module": lambda: torch_zip(
                shared(T) + module(children={"p" * 60_000: module(parameters={str(i): get(5) for i in range(9000)})})
            ),
            "prefix-skipped": lambda: torch_zip(
                dict_of(("a.b", T), ("p" * 4000, dict_of(*((str(i), 1) for i in range(9000)), W)))
            ),
            "global-control": lambda: deflated_zip(name("a." + "\x01" * (3 << 20)) + POP + dict_of(W)),
            "key-control": lambda: deflated_zip(dict_of(W, ("\x01" * (10 << 20), 1))),
            "storage-key-long": lambda: torch_zip(dict_of(("w", tensor(key="\x1b" * 1_000_000)))),
            "tensor-name-long": lambda: torch_zip(
                dict_of(("w" * 1_000_000, tensor(kind="torch.QInt8Storage", numel=16)))
            ),
        },
    ),
    *either(
        "share-extras",
        {
            "text": lambda: torch_zip(shared(text("x" * 100_000)) + dict_of(W, ("s", list_of(*[get(5)] * 50_000)))),
            "keys": lambda: torch_zip(
                shared(dict_of(("k" * 60_000, 1))) + dict_of(W, ("s", list_of(*[get(5)] * 50_000)))
            ),
            "laughs": lambda: torch_zip(
                list_of() + put(0) + POP + (list_of(get(0), get(0)) + put(0) + POP) * 60 + dict_of(W, ("s", get(0)))
            ),
            "cycle": lambda: torch_zip(dict_of(W, ("s", b"]" + put(0) + get(0) + b"a"))),
            "numbers": lambda: torch_zip(dict_of(W, ("s", [1 << 8000, float("nan"), float("inf"), "\ud800", NONE]))),
            "numbers-shared": lambda: torch_zip(
                shared(list_of(*[1 << 4000] * 500)) + dict_of(W, ("s", list_of(*[get(5)] * 20_000)))
            ),
            "classes-shared": lambda: torch_zip(
                shared(call("a." + "C" * 4000)) + dict_of(W, ("s", list_of(*[get(5)] * 200_000)))
            ),
            "controls": lambda: torch_zip(
                shared(text("\x01" * 100_000)) + dict_of(W, ("s", list_of(*[get(5)] * 50_000)))
            ),
            "lists": lambda: torch_zip(
                shared(list_of(*[NONE] * 100_000)) + dict_of(W, ("s", list_of(*[get(5)] * 50_000)))
            ),
            "key-shared": lambda: torch_zip(
                shared(text("k" * 100_000)) + dict_of(W, ("s", list_of(*[b"}" + get(5) + b"Ns"] * 50_000)))
            ),
            "keys-alike": lambda: torch_zip(dict_of(W, ("s", dict_of((1, 1), ("1", 2), (True, 3), ("\ud800", 4))))),
        },
        args=("--extras", "extras.json"),
    ),
    *rejects(
        "share-grows",
        {
            "array-bytes": lambda: torch_zip(
                shared(blob(bytes(400_000))) + dict_of(*((f"a{i}", array(_padded(i), get(5))) for i in range(1500)))
            ),
            "array-codecs": lambda: torch_zip(
                shared(text("x" * 400_000))
                + dict_of(
                    *((f"a{i}", array(_padded(i), call("_codecs.encode", get(5), "latin1"))) for i in range(1500))
                )
            ),
        },
        says="--max-expansion",
    ),
    *rejects(
        "share-array",
        {
            "fortran-text": lambda: torch_zip(dict_of(("w", array((2, 2), blob(bytes(range(16))), fortran="yes")))),
            "dtype-twice": lambda: torch_zip(
                dict_of(("w", array((1,), blob(b"abcd"), DTYPE + order("<") + order(">"))))
            ),
            "dtype-array": lambda: torch_zip(
                dict_of(("w", array((1,), blob(b"abcd"), DTYPE + order("<", tuple_of(DTYPE, (2,))))))
            ),
            "dims-huge": lambda: torch_zip(dict_of(("w", array((1 << 8000,) * 3, blob(b"abcd"))))),
            "dims-40k": lambda: torch_zip(
                shared(integer(1 << 8000)) + dict_of(("w", array(MARK + get(5) * 40_000 + b"t", blob(b"abcd"))))
            ),
            "negative": lambda: torch_zip(dict_of(("w", array((-1, -1), blob(b"abcd"))))),
            "bool": lambda: torch_zip(dict_of(("w", array((True,), blob(b"abcd"))))),
            "short": lambda: torch_zip(dict_of(("w", array((2,), blob(b"abcd"))))),
            "long": lambda: torch_zip(dict_of(("w", array((1,), blob(b"abcdefgh"))))),
        },
    ),
]


def _prefixed(levels: int, inside: bytes) -> bytes:
    for _ in range(levels):
        inside = dict_of(("p" * 25, inside))
    return inside
