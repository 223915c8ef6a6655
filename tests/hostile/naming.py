"""Class 9: names that collide, are reserved, or would act on a terminal."""

from __future__ import annotations

from .case import Case, Tensor, converts, either, rejects
from .pickling import (
    BUILD,
    NONE,
    blob,
    call,
    dict_of,
    integer,
    list_of,
    module,
    name,
    pickled,
    real,
    storage,
    tensor,
    text,
    torch_names,
    tuple_of,
)
from .zips import FLOATS, Archive, Member, members, torch_zip

T = tensor()
V = tensor((2,))
NAN = real(float("nan"))


def named(*keys: object) -> bytes:
    """Different tensors, one under each key."""
    tensors = (tensor((n + 1,)) for n in range(len(keys)))
    return torch_zip(dict_of(*zip(keys, tensors, strict=True)))


def wide(key: str) -> dict[str, Tensor]:
    return {key: ("F32", (1,), FLOATS[:4])}


_COLLIDE: dict[str, tuple[object, ...]] = {
    "int-and-text": (1, "1"),
    "true-and-text": (True, "True"),
    "bytes-and-text": (blob(b"w"), "w"),
    "none-and-text": (NONE, "None"),
    "float-and-text": (real(1.5), "1.5"),
    "two-tuples": (tuple_of(1, 2), tuple_of("1", "2")),
    "two-huge": (1 << 5000, 1 << 5001),
    "bytes-and-latin": (blob(b"\xff"), "\xff"),
    "two-nan": (NAN, NAN),
    "two-classes": (name("a.B"), name("c.B")),
    "two-calls": (call("a.f"), call("a.g")),
    "two-tensors": (T, V),
    "tuple-and-text": (tuple_of(1), "1"),
    "long-tuple-and-text": (tuple_of(1, 2, 3, 4, 5), "<tuple>"),
}
_ONE: dict[str, tuple[tuple[object, ...], dict[str, Tensor]]] = {
    # What Python takes for one key: the first of them stays, with the last value.
    "one-and-true": ((1, True), {"1": ("F32", (2,), FLOATS[:8])}),
    "zero-and-false": ((0, False), {"0": ("F32", (2,), FLOATS[:8])}),
    "float-and-int": ((real(3.0), 3), {"3.0": ("F32", (2,), FLOATS[:8])}),
    "large": ((real(1e22), 10**22), {"1e+22": ("F32", (2,), FLOATS[:8])}),
    "twice": (("w", "w"), {"w": ("F32", (2,), FLOATS[:8])}),
}
_FLATTEN = {
    "dot": dict_of(("a.b", T), ("a", dict_of(("b", V)))),
    "list": dict_of(("a.0", T), ("a", list_of(V))),
    "deep": dict_of(("a.b.c", T), ("a", dict_of(("b.c", V)))),
    "int": dict_of(("a.1", T), ("a", dict_of((1, V)))),
    "empty": dict_of(("a.", T), ("a", dict_of(("", V)))),
    "module": module(parameters={"a.b": T}, children={"a": module(parameters={"b": V})}),
    "module-buffer": module(parameters={"w": T}, _buffers=dict_of(("w", V))),
    "module-bytes": module(parameters=dict_of((blob(b"\xff"), T), ("\xff", V))),
}
_BAD = {
    "surrogate": "\ud800",
    "surrogate-pair": "\ud83d\ude00",
    "metadata": "__metadata__",
    "long": "n" * 200_000,
}
_ODD = {
    "empty": "",
    "nul": "\0",
    "newline": "a\nb",
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "c1": "\x9b2J",
    "bidi": "\u202egnp.exe",
    "zero-width": "\u200b",
    "bom": "\ufeff",
    "line-separator": "\u2028",
    "tag": "\U000e0041",
    "private": "\ue000",
    "slash": "../../etc/passwd",
    "percent": "%s%n{0}",
    "quote": '"\\',
    "format": "format",
    "dots": "...",
    "space": " ",
    "emoji": "\U0001f600",
    "not-character": "\uffff",
    "backspace": "a\b\b",
    "carriage": "safe\rsdconvert: done",
    "4000": "n" * 4000,
    "combining": "a" + "\u0301" * 500,
    "dunder": "__class__",
    "js": "</script><script>",
    "del": "\x7f",
}

CASES: list[Case] = [
    *rejects("name-collide", {key: lambda k=k: named(*k) for key, k in _COLLIDE.items()}),  # type: ignore[misc]
    *rejects("name-flatten", {key: lambda r=r: torch_zip(r) for key, r in _FLATTEN.items()}),  # type: ignore[misc]
    *rejects("name-bad", {key: lambda n=n: named(n) for key, n in _BAD.items()}),  # type: ignore[misc]
    *(Case(f"name-one-key-{key}", lambda k=k: named(*k), "convert", w) for key, (k, w) in _ONE.items()),  # type: ignore[misc]
    *(Case(f"name-odd-{key}", lambda n=n: named(n), "convert", wide(n)) for key, n in _ODD.items()),  # type: ignore[misc]
    *either(
        "name",
        {
            "tensor-as-key": lambda: torch_zip(dict_of((T, T))),
            "storage-as-key": lambda: torch_zip(dict_of((storage(), T))),
            "dict-as-key": lambda: torch_zip(dict_of((dict_of(), T))),
            "int": lambda: named(5),
            "negative": lambda: named(-5),
            "huge": lambda: named(1 << 8000),
            "nan": lambda: named(NAN),
            "bytes": lambda: named(blob(b"w")),
            "none": lambda: named(NONE),
            "bool": lambda: named(True),
            "alias-format": lambda: torch_zip(dict_of(("w", T), ("format", T))),
            "alias-metadata": lambda: torch_zip(dict_of(("w", T), ("__metadata__", T))),
            "alias-escape": lambda: torch_zip(dict_of(("w", T), ("\x1b[2J", T), ("\n", T))),
            "skipped-escape": lambda: torch_zip(dict_of(("w", T), ("\x1b[2J", 5), ("\r", call("a.\x1b[1m")))),
            "module-name-escape": lambda: torch_zip(module("a.\x1b[2J", parameters={"w": T})),
            "module-hook-escape": lambda: torch_zip(
                module(parameters={"w": T}, _state_dict_hooks=dict_of((0, name("a.\x1b[2J"))))
            ),
            "module-int-name": lambda: torch_zip(module(parameters=dict_of((5, T)))),
            "key-escape": lambda: torch_zip(dict_of(("\x1b[2J", dict_of(("state_dict", dict_of(("w", T))))), ("b", 1))),
            "candidates-escape": lambda: torch_zip(
                dict_of(("\x1b[2J", dict_of(("a.b", T))), ("\x9b", dict_of(("a.b", V))))
            ),
            "lost-escape": lambda: torch_zip(dict_of(("\x1b[2J", tensor(kind="torch.QInt8Storage", numel=16)))),
            "dtype-escape": lambda: torch_zip(
                dict_of(
                    (
                        "w",
                        call(
                            "torch._utils._rebuild_tensor_v3",
                            storage(),
                            0,
                            (4,),
                            (1,),
                            False,
                            None,
                            name("torch.\x1b[2J"),
                        ),
                    )
                )
            ),
            "record-escape": lambda: Archive(
                [*members(pickled(dict_of(("w", T)))), Member("archive/\x1b[2J\n", b"")]
            ).build(),
            "root-escape": lambda: Archive(members(pickled(dict_of(("w", T))), folder="\x1b[2J")).build(),
            "version-escape": lambda: Archive(
                [
                    Member(m.name, b"\x1b[2J\n3") if m.name.endswith("version") else m
                    for m in members(pickled(dict_of(("w", T))))
                ]
            ).build(),
            "code-like": lambda: named(*torch_names()),
            "metadata-attribute": lambda: torch_zip(
                call("collections.OrderedDict")
                + b"("
                + text("w")
                + T
                + b"u"
                + dict_of(("_metadata", {"\x1b[2J": 1}))
                + BUILD
            ),
            "int-subclass": lambda: torch_zip(dict_of((call("a.Int", 5), T))),
            "many-ints": lambda: torch_zip(dict_of(*((integer(i), T) for i in range(5000)))),
        },
    ),
    *converts("name-fine", {"renamed-not": lambda: named("w")}, wide("w")),
]
