"""Class 7: safetensors headers that lie, and what the reference reader lets pass."""

from __future__ import annotations

import json
import struct

from .case import Case, Tensor, converts, either, rejects
from .zips import FLOATS

W: dict[str, Tensor] = {"w": ("F32", (4,), FLOATS)}
FILE = "source.safetensors"


def file(header: bytes | dict[str, object], data: bytes = FLOATS, claim: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if claim is None else claim) + raw + data


def info(shape: object = (4,), offsets: object = (0, 16), dtype: object = "F32", **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(*args: object, **more: object) -> bytes:
    return file({"w": info(*args, **more)})  # type: ignore[arg-type]


def text(template: str, data: bytes = FLOATS) -> bytes:
    """A header from text, `W` in it standing for a sound description."""
    return file(template.replace("W", json.dumps(info())).encode("utf-8", "surrogatepass"), data)


_HEADERS = {
    "short": b"\x10\0\0\0",
    "eight-bytes": bytes(8),
    "length-zero": file({}, b"", 0) + b"{" * 20,
    "length-2-63": file({"w": info()}, claim=1 << 63),
    "length-2-64": file({"w": info()}, claim=(1 << 64) - 1),
    "length-past-end": file({"w": info()}, claim=10_000),
    "length-100m": file({"w": info()}, claim=100_000_001),
    "length-one-less": file({"w": info()}, claim=60),
    "length-one-more": file({"w": info()}, claim=66),
    "array": text("[W]"),
    "string": text('"w"'),
    "number": text("5"),
    "bom": text('\ufeff{"w":W}'),
    "not-json": text("{w:W}"),
    "cut-json": text('{"w":W'),
    "two-values": text('{"w":W}{}'),
    "tail-in-header": text('{"w":W}x'),
    "nul-padding": file(json.dumps({"w": info()}).encode() + bytes(8)),
    "not-utf8": file(b'{"\xff\xfe":1}'),
    "utf16": file('{"w":1}'.encode("utf-16")),
    "deep": file(b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep-objects": file(b'{"w":' * 100_000 + b"1" + b"}" * 100_000),
    "comma": text('{"w":W,}'),
    "comment": text('{"w":W /*x*/}'),
    "single-quotes": text("{'w':W}"),
    "control-in-name": text('{"\x01":W}'),
}
_TWICE = {
    "tensor": text('{"w":W,"w":W}'),
    "tensor-other": text('{"w":W,"w":' + json.dumps(info(offsets=(16, 32))) + "}", FLOATS * 2),
    "metadata": text('{"__metadata__":{},"__metadata__":{},"w":W}'),
    "metadata-key": text('{"__metadata__":{"a":"b","a":"c"},"w":W}'),
    "dtype": text('{"w":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "offsets": text('{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"data_offsets":[0,16]}}'),
    "escaped": text('{"w":W,"\\u0077":W}'),
    "unknown": text('{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":1,"x":2}}'),
}
_NUMBERS: dict[str, object] = {
    "negative": -4,
    "float": 4.0,
    "text": "4",
    "null": None,
    "bool": True,
    "list": [4],
    "2-62": 1 << 62,
    "2-63": 1 << 63,
    "2-64+4": (1 << 64) + 4,
    "object": {},
}
_METADATA = {
    "list": "[]",
    "string": '"a"',
    "number": '{"a":1}',
    "null-value": '{"a":null}',
    "nested": '{"a":{"b":"c"}}',
    "bool": '{"a":true}',
    "surrogate-value": '{"a":"\\ud800"}',
    "surrogate-key": '{"\\ud800":"a"}',
    "int": "5",
}

CASES: list[Case] = [
    *rejects("st-header", {key: lambda d=d: d for key, d in _HEADERS.items()}, file=FILE),  # type: ignore[misc]
    *rejects("st-twice", {key: lambda d=d: d for key, d in _TWICE.items()}, file=FILE),  # type: ignore[misc]
    *rejects("st-shape", {key: lambda v=v: one([v]) for key, v in _NUMBERS.items()}, file=FILE),  # type: ignore[misc]
    *rejects(
        "st-offset",
        {
            key: lambda v=v: one((4,), [0, v])  # type: ignore[misc]
            for key, v in _NUMBERS.items()
        },
        file=FILE,
    ),
    *rejects(
        "st-metadata",
        {
            key: lambda v=v: text('{"__metadata__":' + v + ',"w":W}')  # type: ignore[misc]
            for key, v in _METADATA.items()
        },
        file=FILE,
    ),
    *rejects(
        "st-number",
        {
            "5000-digits": lambda: text('{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,16]}}'),
            "1e400": lambda: text('{"w":{"dtype":"F32","shape":[1e400],"data_offsets":[0,16]}}'),
            "4e0": lambda: text('{"w":{"dtype":"F32","shape":[4e0],"data_offsets":[0,16]}}'),
            "nan": lambda: text('{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
            "infinity": lambda: text('{"w":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,16]}}'),
            "nan-unused": lambda: text('{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":NaN}}'),
            "leading-zero": lambda: text('{"w":{"dtype":"F32","shape":[04],"data_offsets":[0,16]}}'),
            "plus": lambda: text('{"w":{"dtype":"F32","shape":[+4],"data_offsets":[0,16]}}'),
        },
        file=FILE,
    ),
    *rejects(
        "st-tensor",
        {
            "null": lambda: text('{"w":null}'),
            "list": lambda: text('{"w":[]}'),
            "empty": lambda: text('{"w":{}}'),
            "no-dtype": lambda: text('{"w":{"shape":[4],"data_offsets":[0,16]}}'),
            "dtype-unknown": lambda: one(dtype="F99"),
            "dtype-lower": lambda: one(dtype="f32"),
            "dtype-null": lambda: one(dtype=None),
            "dtype-int": lambda: one(dtype=5),
            "dtype-surrogate": lambda: text('{"w":{"dtype":"\\ud800","shape":[4],"data_offsets":[0,16]}}'),
            "dtype-escape": lambda: one(dtype="\x1b[2J"),
            "f6": lambda: one((16,), dtype="F6_E2M3"),
            "f4-odd": lambda: file({"w": info((3,), (0, 2), "F4")}, b"ab"),
            "shape-dict": lambda: one({}),
            "shape-text": lambda: one("4"),
            "65-dims": lambda: one([1] * 64 + [4]),
            "100k-dims": lambda: one([1] * 100_000 + [4]),
            "offsets-three": lambda: one((4,), (0, 16, 32)),
            "offsets-one": lambda: one((4,), (0,)),
            "offsets-back": lambda: one((4,), (16, 0)),
            "too-small": lambda: one((3,)),
            "too-large": lambda: one((5,)),
            "product-wraps": lambda: one((1 << 32, 1 << 32, 4)),
            "product-huge": lambda: one([(1 << 62)] * 64),
        },
        file=FILE,
    ),
    *rejects(
        "st-range",
        {
            "hole-at-start": lambda: file({"w": info(offsets=(4, 20))}, FLOATS + bytes(4)),
            "hole": lambda: file({"a": info(), "b": info(offsets=(20, 36))}, FLOATS * 3),
            "overlap": lambda: file({"a": info(), "b": info(offsets=(8, 24))}, FLOATS * 2),
            "same-range": lambda: file({"a": info(), "b": info()}),
            "same-range-4000": lambda: file({f"w{i}": info() for i in range(4000)}),
            "tail-byte": lambda: file({"w": info()}, FLOATS + b"\0"),
            "tail-zip": lambda: file({"w": info()}, FLOATS + b"PK\5\6" + bytes(18)),
            "cut": lambda: file({"w": info()}, FLOATS[:-1]),
            "no-data": lambda: file({"w": info()}, b""),
            "empty-with-tail": lambda: file({}, b"tail"),
            "zero-size-inside": lambda: file({"a": info((0,), (8, 8)), "w": info()}),
            "zero-size-past-end": lambda: file({"a": info((0,), (99, 99)), "w": info()}),
        },
        file=FILE,
    ),
    *rejects(
        "st-name",
        {
            "surrogate": lambda: text('{"\\ud800":W}'),
            "only-metadata": lambda: text('{"__metadata__":{}}', b""),
            "no-tensors": lambda: file({}, b""),
        },
        file=FILE,
    ),
    *either(
        "st-odd",
        {
            "spaces-before": lambda: text('  {"w":W}'),
            "unknown-field": lambda: one(zap=1),
            "metadata-null": lambda: text('{"__metadata__":null,"w":W}'),
            "zero-size-shared": lambda: file({"a": info((0,), (0, 0)), "b": info((0,), (0, 0)), "w": info()}),
            "empty-name": lambda: text('{"":W}'),
            "name-escape": lambda: text('{"\\u001b[2J":W}'),
            "name-bidi": lambda: text('{"\u202e":W}'),
            "name-nul": lambda: text('{"\\u0000":W}'),
            "name-200k": lambda: file({"n" * 200_000: info()}),
            "metadata-escape": lambda: text('{"__metadata__":{"a\\u001b[2J":"\\u001b]0;x\\u0007"},"w":W}'),
            "metadata-names-tensor": lambda: text('{"__metadata__":{"v":"w","u":"v","w":"w"},"w":W}'),
            "metadata-format-is-tensor": lambda: text('{"__metadata__":{"format":"w"},"w":W}'),
            "metadata-100k": lambda: file({"__metadata__": {f"k{i}": "w" for i in range(100_000)}, "w": info()}),
            "metadata-1m-value": lambda: file({"__metadata__": {"a": "\x1b" * 1_000_000}, "w": info()}),
            "20k-tensors": lambda: file(
                {f"w{i}": info(offsets=(16 * i, 16 * i + 16)) for i in range(20_000)}, FLOATS * 20_000
            ),
            "20-modules-for-each-tensor": lambda: file(
                {f"x{i}{'.a' * 20}.w": info((0, i), (0, 0)) for i in range(30_000)}, b""
            ),
            # A decoder that is sent to where a space is counts the lines before it, for its error.
            "60k-tensors-on-lines": lambda: file(
                json.dumps({f"w{i}": info((0,), (0, 0)) for i in range(60_000)}, indent=0).encode(), b""
            ),
        },
        file=FILE,
    ),
    *converts("st-fine", {"plain": one, "crlf-in-json": lambda: text('{\r\n"w": W}\r\n')}, W, file=FILE),
    *converts("st-named", {"pt": one}, W),
]
