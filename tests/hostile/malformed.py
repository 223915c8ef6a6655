"""Class 3: pickles that no pickler wrote: underflows, bad targets, lying frames, broken text."""

from __future__ import annotations

import struct

from .case import Case, Tensor, converts, either, rejects
from .pickling import (
    BUILD,
    EMPTY,
    MARK,
    NONE,
    POP,
    blob,
    call,
    dict_of,
    frame,
    get,
    literal,
    name,
    pickled,
    put,
    short_text,
    tensor,
    text,
    tuple_of,
)
from .zips import FLOATS, Archive, members, torch_zip

T = tensor()
W: dict[str, Tensor] = {"w": ("F32", (4,), FLOATS)}
WEIGHTS = dict_of(("w", T))


def beside(fragment: bytes) -> bytes:
    return torch_zip(dict_of(("w", T), ("x", fragment)))


def raw(data: bytes) -> bytes:
    """An archive whose data.pkl is just these bytes."""
    return Archive(members(data)).build()


_STRUCTURE = {
    "empty": raw(b""),
    "stop-only": raw(b"."),
    "proto-only": raw(b"\x80\x02"),
    "no-stop": raw(b"\x80\x02" + WEIGHTS),
    "proto-255": raw(b"\x80\xff" + WEIGHTS + b"."),
    "proto-6": raw(b"\x80\x06" + WEIGHTS + b"."),
    "unknown-opcode": raw(b"\x80\x02" + WEIGHTS + b"\xff."),
    "opcode-zero": raw(b"\x80\x02\0" + WEIGHTS + b"."),
    "after-stop": raw(pickled(WEIGHTS) + b"N"),
    "zeros-after-stop": raw(pickled(WEIGHTS) + bytes(64)),
    "empty-root": torch_zip(dict_of()),
    "none-root": torch_zip(NONE),
    "string-root": torch_zip(text("w")),
    "truncated-argument": raw(b"\x80\x02X\x05\0\0\0ab"),
    "truncated-length": raw(b"\x80\x02X\x05"),
    "truncated-global": raw(b"\x80\x02ctorch._utils"),
}
_STACK = {
    "pop-empty": b"\x80\x020" + WEIGHTS + b".",
    "dup-empty": b"\x80\x022" + WEIGHTS + b".",
    "reduce-one": b"\x80\x02)R.",
    "build-one": b"\x80\x02}b.",
    "setitem-one": b"\x80\x02}s.",
    "setitems-alone": b"\x80\x02(K\1K\2u.",
    "append-alone": b"\x80\x02K\1a.",
    "appends-alone": b"\x80\x02(K\1e.",
    "tuple2-one": b"\x80\x02K\1\x86.",
    "tuple3-two": b"\x80\x02K\1K\2\x87.",
    "tuple-no-mark": b"\x80\x02K\1t.",
    "list-no-mark": b"\x80\x02K\1l.",
    "dict-no-mark": b"\x80\x02K\1d.",
    "setitems-no-mark": b"\x80\x02}K\1K\2u.",
    "appends-no-mark": b"\x80\x02]K\1e.",
    "additems-no-mark": b"\x80\x02\x8fK\1\x90.",
    "frozenset-no-mark": b"\x80\x02K\1\x91.",
    "pop-mark-no-mark": b"\x80\x021.",
    "obj-no-mark": b"\x80\x02ca\nb\no.",
    "obj-empty": b"\x80\x02(o.",
    "inst-no-mark": b"\x80\x02ia\nb\n.",
    "put-empty": b"\x80\x02q\0.",
    "memoize-empty": b"\x80\x04\x94.",
    "persid-empty": b"\x80\x02Q.",
    "stack-global-one": b"\x80\x04\x8c\1a\x93.",
    "across-mark": b"\x80\x02K\1(\x85t.",
    "stop-in-mark": b"\x80\x02" + WEIGHTS + b"(.",
}
_TARGETS = {
    "setitems-odd": b"}(K\1K\2K\3u",
    "dict-odd": b"(K\1d",
    "setitem-on-list": b"]K\1K\2s",
    "setitem-on-int": b"K\5K\1K\2s",
    "setitem-on-tuple": b")K\1K\2s",
    "append-on-dict": b"}K\1a",
    "append-on-tuple": b")K\1a",
    "append-on-text": text("a") + b"K\1a",
    "additems-on-list": b"](K\1\x90",
    "appends-on-set": b"\x8f(K\1e",
    "build-on-dict": b"}}b",
    "build-on-int": b"K\1}b",
    "build-on-text": text("a") + b"}b",
    "reduce-not-tuple": name("a.f") + b"K\1R",
    "reduce-list": name("a.f") + b"](K\1eR",
    "reduce-none": NONE + EMPTY + b"R",
    "reduce-int": b"K\1" + EMPTY + b"R",
    "newobj-not-tuple": name("a.f") + b"K\1\x81",
    "newobj-not-class": b"K\1" + EMPTY + b"\x81",
    "newobj-ex-not-tuple": name("a.f") + b"K\1}\x92",
    "newobj-ex-keywords-int": name("a.f") + EMPTY + b"K\1\x92",
    "newobj-ex-keywords-none": name("a.f") + EMPTY + NONE + b"\x92",
    "newobj-ex-keywords-list": name("a.f") + EMPTY + b"]\x92",
    "newobj-ex-keywords-tuple": name("a.f") + EMPTY + EMPTY + b"\x92",
    "key-list": b"}]K\1s",
    "key-dict": b"}}K\1s",
    "key-list-of-ordered-dict": call("collections.OrderedDict") + b"]K\1s",
    "key-list-of-object": name("a.f") + EMPTY + b"R]K\1s",
    "stack-global-ints": b"K\1K\2\x93",
    "stack-global-bytes": b"C\1aC\1b\x93",
    "inst-arguments": b"(K\1i\xff\n\xff\n",
    "ordered-dict-of-int": call("collections.OrderedDict", 5) + b"",
    "ordered-dict-of-odd": call("collections.OrderedDict", [[1, 2, 3]]),
    "string-no-quotes": b"Sabc\n",
    "string-one-quote": b"S'\n",
    "string-mixed-quotes": b"S'abc\"\n",
    "string-bad-escape": b"S'\\x1'\n",
    "string-no-newline": b"S'abc'",
    "unicode-bad-escape": b"V\\u12\n",
    "unicode-too-large": b"V\\U00110000\n",
    "binunicode-not-utf8": b"X\2\0\0\0\xff\xfe",
    "short-unicode-not-utf8": b"\x8c\2\xff\xfe",
    "global-not-utf8": b"c\xff\xfe\n\xff\n",
    "int-empty": b"I\n",
    "int-text": b"Iabc\n",
    "int-float": b"I1.5\n",
    "int-underscore": b"I1_000\n",
    "int-hex": b"I0x10\n",
    "int-minus": b"I-\n",
    "long-empty": b"LL\n",
    "float-text": b"Fabc\n",
    "float-empty": b"F\n",
    "get-text": b"gabc\n",
    "get-empty": b"g\n",
    "put-text": b"Npabc\n",
    "next-buffer": b"\x97",
    "readonly-buffer": blob(b"a") + b"\x98",
    "get-missing": get(200),
    "get-long-missing": get(1 << 31),
}
_FRAMES = {
    "too-long": b"\x80\x04\x95" + struct.pack("<Q", len(WEIGHTS) + 50) + WEIGHTS + b".",
    "too-short": b"\x80\x04\x95" + struct.pack("<Q", 10) + WEIGHTS + b".",
    "zero": b"\x80\x04" + frame(b"") * 3 + b"\x95" + struct.pack("<Q", 3) + WEIGHTS + b".",
    "nested": b"\x80\x04" + frame(frame(WEIGHTS + b".")),
    "stop-before-end": b"\x80\x04" + frame(WEIGHTS + b".NNNN"),
    "splits-argument": b"\x80\x04" + frame(b"X\5\0") + b"\0\0abcde" + b"0" + WEIGHTS + b".",
    "splits-text": b"\x80\x04" + frame(b"X\5\0\0\0ab") + b"cde" + b"0" + WEIGHTS + b".",
    "splits-line": b"\x80\x04" + frame(b"ca\nb") + b"\n0" + WEIGHTS + b".",
    "header-cut": b"\x80\x04\x95\1\0",
    "2-64": b"\x80\x04\x95" + b"\xff" * 8 + WEIGHTS + b".",
}
_ARGUMENTS = {
    "few": call("torch._utils._rebuild_tensor_v2", 1, 2),
    "many": call("torch._utils._rebuild_tensor_v2", *[1] * 20),
    "none": call("torch._utils._rebuild_tensor_v2"),
    "kwargs": name("torch._utils._rebuild_tensor_v2") + EMPTY + dict_of(("a", 1)) + b"\x92",
    "parameter-of-int": call("torch._utils._rebuild_parameter", 5, True, None),
    "parameter-of-none": call("torch._utils._rebuild_parameter", None, True, None),
    "parameter-empty": call("torch._utils._rebuild_parameter"),
    "from-type-list": call(
        "torch._tensor._rebuild_from_type_v2", name("torch._utils._rebuild_tensor_v2"), None, [], {}
    ),
    "from-type-none": call("torch._tensor._rebuild_from_type_v2", None, None, (), {}),
    "from-type-few": call("torch._tensor._rebuild_from_type_v2", name("torch._utils._rebuild_tensor_v2")),
    "v3-dtype-string": call("torch._utils._rebuild_tensor_v3", 1, 0, (4,), (1,), False, None, "float32"),
    "v3-dtype-unknown": call("torch._utils._rebuild_tensor_v3", 1, 0, (4,), (1,), False, None, name("torch.zap")),
    "load-from-int": tensor(of=call("torch.storage._load_from_bytes", 5)),
    "load-from-empty": tensor(of=call("torch.storage._load_from_bytes", b"C\0")),
    "load-from-text": tensor(of=call("torch.storage._load_from_bytes", "\u1234")),
    "encode-not-latin": tensor(of=call("torch.storage._load_from_bytes", call("_codecs.encode", "\u1234", "latin1"))),
    "encode-other": tensor(of=call("torch.storage._load_from_bytes", call("_codecs.encode", "a", "rot13"))),
    "device-few": call("torch._utils._rebuild_device_tensor_from_cpu_tensor", T),
    "device-int": call("torch._utils._rebuild_device_tensor_from_numpy", 5, name("torch.float32"), "cpu", False),
    "tensor-changed": T + dict_of(("a", 1)) + BUILD,
    "old-tensor-state": call("torch.FloatTensor") + tuple_of(1, 2, 3, 4) + BUILD,
}

CASES: list[Case] = [
    *rejects("malformed", {key: lambda d=d: d for key, d in _STRUCTURE.items()}),  # type: ignore[misc]
    *rejects("malformed-stack", {key: lambda d=d: raw(d) for key, d in _STACK.items()}),  # type: ignore[misc]
    *rejects(
        "malformed-op",
        {
            key: lambda d=d: beside(d)
            for key, d in _TARGETS.items()  # type: ignore[misc]
            if key not in ("ordered-dict-of-int", "inst-arguments")
        },
    ),
    *either(
        "malformed-op",
        {
            key: lambda d=d: beside(d)
            for key, d in _TARGETS.items()  # type: ignore[misc]
            if key in ("ordered-dict-of-int", "inst-arguments")
        },
    ),
    *rejects("malformed-frame", {key: lambda d=d: raw(d) for key, d in _FRAMES.items()}),  # type: ignore[misc]
    *either(
        "malformed-args",
        {
            key: lambda d=d: torch_zip(dict_of(("w", T), ("v", d)))  # type: ignore[misc]
            for key, d in _ARGUMENTS.items()
        },
    ),
    *converts(
        "malformed-fine",
        {
            "mark-used-up": lambda: torch_zip(MARK + NONE + b"1" + WEIGHTS),
            "protocol-0-values": lambda: beside(b"(I1\nF1.5\nS'a'\nVb\nL5L\nI01\nI00\nNtp7\n0g7\n"),
            "list-opcode": lambda: beside(b"(K\1K\2l"),
            "dict-opcode": lambda: beside(b"(K\1K\2d"),
            "frozenset-opcode": lambda: beside(b"(K\1K\2\x91"),
            "set-opcode": lambda: beside(b"\x8f(K\1\x90"),
            "memo-overwritten": lambda: torch_zip(
                NONE + put(1) + POP + text("w") + put(1) + POP + b"}" + get(1) + T + b"s"
            ),
            "two-frames": lambda: raw(b"\x80\x04" + frame(NONE + b"0") + frame(WEIGHTS + b".")),
            "proto-twice": lambda: raw(b"\x80\x02\x80\x04" + WEIGHTS + b"."),
            "short-text-key": lambda: torch_zip(b"}" + short_text("w") + T + b"s"),
            "nan-and-infinity": lambda: beside(literal([float("nan"), float("inf")])),
            "duplicate-key-last-wins": lambda: torch_zip(dict_of(("w", 1), ("w", T))),
        },
        W,
    ),
]
