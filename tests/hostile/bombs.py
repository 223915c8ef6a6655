"""Class 2: small files that ask for much: memory, time, depth, paths, digits."""

from __future__ import annotations

import gzip
import io
import struct
import zlib

from .case import Case, either, rejects
from .legacy import old_storage, stream
from .pickling import (
    BUILD,
    EMPTY,
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
    new,
    pickled,
    put,
    storage,
    tensor,
    text,
    tuple_of,
)
from .zips import FLOATS, Archive, Member, deflated, deflated_zip, members, torch_zip

T = tensor()
W = ("w", T)
BIG = integer(1 << 8000) + put(1) + POP


def laughs(base: bytes = EMPTY, levels: int = 60) -> bytes:
    """A tuple of itself twice, `levels` times over: 2**levels leaves in a few bytes."""
    return base + (put(0) + POP + get(0) + get(0) + b"\x86") * levels


def dag(bottom: bytes, levels: int) -> bytes:
    """Lists that hold the one below twice."""
    return bottom + put(0) + POP + (list_of(get(0), get(0)) + put(0) + POP) * levels + get(0)


def dup_dag(bottom: bytes, levels: int) -> bytes:
    return bottom + (b"2\x86") * levels


def module_dag(levels: int, bottom: bytes) -> bytes:
    shared = module("a.B", children=dict_of(("a", get(0)), ("b", get(0)))) + put(0) + POP
    return bottom + put(0) + POP + shared * levels + get(0)


def deep(opener: bytes, closer: bytes, levels: int) -> bytes:
    return opener * levels + NONE + closer * levels


def beside(bomb: bytes) -> bytes:
    return torch_zip(dict_of(W, ("x", bomb)))


def gzipped_zeros(megabytes: int) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    return out.getvalue()


def nested_bytes(levels: int) -> bytes:
    """A tensor whose storage is a stream whose tensor's storage is a stream ..."""
    root = tensor(of=old_storage())
    data = stream(old_storage())
    for _ in range(levels):
        data = stream(call("torch.storage._load_from_bytes", blob(data)), ())
    return pickled(dict_of(("w", tensor(of=call("torch.storage._load_from_bytes", blob(data)))))) if levels else root


def colliding_ints() -> bytes:
    """Keys that all have the same hash in CPython: multiples of 2**61 - 1."""
    step = (1 << 61) - 1
    return dict_of(*((k * step, NONE) for k in range(1, 40_000)))


def _packed_header(body: bytes) -> bytes:
    return gzip.compress(struct.pack("<Q", len(body)) + body, mtime=0)


_DIMS = integer(1) * 40_000
_LISTS = b"\x80\x02" + b"]" * (30 << 20)
_FULL = b"\x80\x02(" + b"]K\1a" * 490_000 + b"l."
_UNPACKED = {
    "nones": lambda: deflated_zip(b"N" * (100 << 20)),
    "lists": lambda: deflated_zip(b"]" * (60 << 20)),
    "marks": lambda: deflated_zip(b"(" * (200 << 20)),
    "dicts": lambda: deflated_zip(b"}" * (200 << 20)),
    "sets": lambda: deflated_zip(b"\x8f" * (60 << 20)),
    "memo": lambda: deflated_zip(b"N" + b"\x94" * (40 << 20)),
    "text": lambda: deflated_zip(text("\U0001f600" * (15 << 20)) + POP + dict_of(W)),
    "texts": lambda: deflated_zip((text("x" * (1 << 20))) * 100),
    "gzip-lists": lambda: gzip.compress(b"\x80\x02" + b"]" * (100 << 20), mtime=0),
    "gzip-header-objects": lambda: _packed_header(b'{"a":[' + b"{}," * (20 << 20) + b"1]}"),
    "gzip-header-names": lambda: _packed_header(b'{"' + b"a" * (90 << 20) + b'":1}'),
    "gzip-header-numbers": lambda: _packed_header(b'{"a":[' + b"0," * (40 << 20) + b"1]}"),
    "gzip-directory": lambda: gzip.compress(
        Archive(
            [
                Member("a/data.pkl", pickled(NONE), central={"comment": bytes(65535)}),
                *(Member(f"a/{i}", b"", central={"comment": bytes(65535)}) for i in range(2000)),
            ]
        ).build(),
        mtime=0,
    ),
    "many-in-one": lambda: Archive([Member(f"m{i}.pkl", _FULL, method=8) for i in range(40)]).build(),
    "gzip-in-deflate": lambda: Archive([Member("m.pkl.gz", gzip.compress(_LISTS, 0, mtime=0), method=8)]).build(),
    "deflate-in-deflate": lambda: Archive(
        [
            Member(
                "m.pt",
                Archive([Member("a/data.pkl", _LISTS, method=8, raw=deflated(_LISTS, level=0))]).build(),
                method=8,
            )
        ]
    ).build(),
    "gzip-line": lambda: gzip.compress(b"\x80\x02c" + b"a" * (200 << 20) + b"\nb\n.", mtime=0),
    "gzip-blob": lambda: gzip.compress(
        b"\x80\x02" + b"B" + struct.pack("<I", 200 << 20) + bytes(200 << 20) + b".", mtime=0
    ),
}

CASES: list[Case] = [
    *rejects(
        "bomb-gone",
        {
            "gzip-twice": lambda: gzip.compress(gzipped_zeros(2000), mtime=0),
            "gzip-thrice": lambda: gzip.compress(gzip.compress(gzipped_zeros(100), mtime=0), mtime=0),
            "gzip-many-members": lambda: gzip.compress(b"", mtime=0) * 35_000,
            "gzip-quine-depth": lambda: _gzip_times(torch_zip(dict_of(W)), 12),
            "deflate-200-mb": lambda: Archive(
                [Member("a/data.pkl", pickled(NONE)), Member("a/data/0", b"", method=8, raw=_zeros(200))]
            ).build(),
            "tensors-laugh": lambda: torch_zip(dag(list_of(T), 60)),
            "length-binunicode8": lambda: beside(b"\x8d" + struct.pack("<Q", 1 << 62)),
            "length-binbytes8": lambda: beside(b"\x8e" + struct.pack("<Q", 1 << 63)),
            "length-bytearray8": lambda: beside(b"\x96" + struct.pack("<Q", 1 << 40)),
            "length-binbytes": lambda: beside(b"B" + struct.pack("<I", 0xFFFFFFFF)),
            "length-binunicode": lambda: beside(b"X" + struct.pack("<I", 0xFFFFFFFF)),
            "length-binstring-negative": lambda: beside(b"T" + struct.pack("<i", -5)),
            "length-long4-negative": lambda: beside(b"\x8b" + struct.pack("<i", -1)),
            "length-long4": lambda: beside(b"\x8b" + struct.pack("<i", 0x7FFFFFFF)),
            "long4-200k": lambda: beside(b"\x8b" + struct.pack("<i", 200_000) + b"\x7f" * 200_000),
            "int-200k-digits": lambda: beside(b"I" + b"9" * 200_000 + b"\n"),
            "long-200k-digits": lambda: beside(b"L" + b"9" * 200_000 + b"L\n"),
            "frame-2-63": lambda: torch_zip(b"\x95" + struct.pack("<Q", 1 << 63) + dict_of(W), proto=4),
            "put-24-digits": lambda: beside(b"Np" + b"9" * 24 + b"\n"),
            "put-negative": lambda: beside(b"Np-1\n"),
            "get-missing": lambda: beside(get(77_777)),
            "expand-10-12": lambda: torch_zip(dict_of(("w", tensor((10**12,), (0,))))),
            "expand-2-31": lambda: torch_zip(dict_of(("w", tensor((1 << 31,), (0,))))),
            "expand-64-dims": lambda: torch_zip(dict_of(("w", tensor((2,) * 60, (0,) * 60)))),
            "expand-windows": lambda: torch_zip(
                dict_of(("w", tensor((30_000, 30_000), (1, 1), numel=60_000))), storages={"0": bytes(240_000)}
            ),
            "shared-storage": lambda: torch_zip(
                storage(numel=100_000)
                + put(5)
                + POP
                + dict_of(*((f"w{i}", tensor((99_999 - i, 1), of=get(5))) for i in range(4000))),
                storages={"0": bytes(400_000)},
            ),
            "dims-40k-ones": lambda: torch_zip(dict_of(("w", tensor(MARK + _DIMS + b"t", MARK + _DIMS + b"t")))),
            "dims-40k-huge": lambda: torch_zip(
                BIG + dict_of(("w", tensor(MARK + get(1) * 40_000 + b"t", MARK + _DIMS + b"t")))
            ),
            "dims-huge": lambda: torch_zip(dict_of(("w", tensor((1 << 8000,) * 3, (1 << 8000,) * 3)))),
            "dims-40k-chunked": lambda: torch_zip(
                dict_of(
                    (
                        "w",
                        tensor(
                            MARK + _DIMS + literal((2048, 1024))[1:],
                            MARK + _DIMS + literal((1, 2048))[1:],
                            numel=1 << 21,
                        ),
                    )
                ),
                storages={"0": bytes(1 << 23)},
            ),
            "module-cycle": lambda: torch_zip(
                new("a.B")
                + put(0)
                + dict_of(("_parameters", dict_of(W)), ("_buffers", {}), ("_modules", dict_of(("a", get(0)))))
                + BUILD
            ),
            "dict-cycle-tensor": lambda: torch_zip(b"}" + put(0) + MARK + text("a.b") + T + text("x") + get(0) + b"u"),
        },
    ),
    *rejects("bomb-unpacked", _UNPACKED),
    *rejects(
        "bomb-unpacked-told",
        {"nones": lambda: deflated_zip(b"N" * (4 << 20))},
        says="that it may have (Limits.inflate_slack)",
    ),
    *either(
        "bomb",
        {
            "laughs": lambda: beside(laughs()),
            "laughs-dup": lambda: beside(dup_dag(EMPTY, 60)),
            "laughs-key": lambda: torch_zip(dict_of(W, (laughs(), 1))),
            "laughs-key-tensor": lambda: torch_zip(dict_of(W, (laughs(), T))),
            "laughs-deep": lambda: beside(dag(list_of(1), 5000)),
            "laughs-args": lambda: beside(call("os.system", laughs())),
            "laughs-set": lambda: beside(b"\x8f(" + laughs() + b"\x90"),
            "laughs-grad": lambda: torch_zip(dict_of(("w", tensor(grad=laughs())))),
            "laughs-location": lambda: torch_zip(dict_of(("w", tensor(location=laughs())))),
            "laughs-key-of-storage": lambda: torch_zip(dict_of(("w", tensor(key=laughs())))),
            "laughs-numel": lambda: torch_zip(dict_of(("w", tensor(numel=laughs())))),
            "laughs-size": lambda: torch_zip(dict_of(("w", tensor(size=laughs())))),
            "laughs-dtype": lambda: torch_zip(
                dict_of(("w", call("torch._utils._rebuild_tensor_v3", storage(), 0, (4,), (1,), False, None, laughs())))
            ),
            "laughs-below-64": lambda: torch_zip(dag(list_of(T), 70)),
            "laughs-training": lambda: torch_zip(dag(dict_of(("optimizer", list_of(T))), 40)),
            "laughs-training-complete": lambda: torch_zip(
                dag(dict_of(("optimizer", list_of(T))), 40)[:-2] + dict_of(("a.b", T), ("x", get(0)))
            ),
            "laughs-modules": lambda: torch_zip(module_dag(60, module())),
            "laughs-modules-weights": lambda: torch_zip(module_dag(60, module(parameters=dict_of(W)))),
            "cycle-list": lambda: torch_zip(b"]" + put(0) + get(0) + b"a" + T + b"a"),
            "cycle-dict": lambda: torch_zip(b"}" + put(0) + text("a") + get(0) + b"s" + text("w") + T + b"s"),
            "cycle-tuple": lambda: torch_zip(b"](" + put(0)[:0] + b"]" + put(0) + get(0) + b"\x85a" + T + b"e"),
            "cycle-build": lambda: beside(new("a.B") + put(0) + get(0) + BUILD),
            "cycle-call-args": lambda: beside(b"]" + put(0) + call("a.f", get(0)) + b"a"),
            "cycle-ordered": lambda: beside(
                b"]"
                + put(0)
                + call("collections.OrderedDict", get(0))
                + put(1)
                + text("k")
                + get(1)
                + b"\x86"
                + b"0"
                + get(0)
                + b"a"
            ),
            "cycle-pid": lambda: torch_zip(b"]" + put(0) + b"(" + text("storage") + get(0) + b"tQ" + b"a"),
            "deep-lists": lambda: beside(deep(b"](", b"e", 100_000)),
            "deep-tuples": lambda: beside(NONE + b"\x85" * 200_000),
            "deep-tuples-key": lambda: torch_zip(dict_of(W, (NONE + b"\x85" * 200_000, 1))),
            "deep-tuples-size": lambda: torch_zip(dict_of(("w", tensor(size=NONE + b"\x85" * 100_000)))),
            "deep-dicts": lambda: torch_zip((b"}" + b"K\1") * 40_000 + T + b"s" * 40_000),
            "deep-marks": lambda: beside(MARK * 200_000 + NONE + b"t" * 200_000),
            "deep-calls": lambda: beside(name("a.f") + (EMPTY + b"R") * 100_000),
            "deep-nested-calls": lambda: beside(name("a.f") * 20_000 + EMPTY + b"R\x85" * 19_999 + b"R"),
            "deep-parameters": lambda: torch_zip(dict_of(("w", _parameters(2000)))),
            "deep-from-type": lambda: torch_zip(dict_of(("w", _from_types(500)))),
            "stack-300k": lambda: torch_zip(NONE * 300_000 + dict_of(W)),
            "memoize-300k": lambda: torch_zip(b"N" + b"\x94" * 300_000 + POP + dict_of(W), proto=4),
            "put-index-max": lambda: beside(NONE + put(0xFFFFFFFF)),
            "colliding-keys": lambda: beside(colliding_ints()),
            "codecs-4000": lambda: torch_zip(
                text("x" * 300_000)
                + put(3)
                + POP
                + dict_of(W, ("x", list_of(*[call("_codecs.encode", get(3), "latin1")] * 4000)))
            ),
            "codecs-zlib": lambda: beside(call("_codecs.decode", blob(zlib.compress(bytes(1 << 20))), "zlib")),
            "bytearray-10-12": lambda: beside(call("builtins.bytearray", 10**12)),
            "range-list": lambda: beside(call("builtins.list", call("builtins.range", 10**12))),
            "str-multiply": lambda: beside(call("operator.mul", "x", 10**12)),
            "storage-call": lambda: beside(call("torch.FloatStorage", 10**12)),
            "ones-call": lambda: beside(call("torch.ones", 10**12)),
            "load-from-bytes-500": lambda: nested_bytes(500),
            "deflated-records": lambda: Archive(
                [
                    Member(one.name, one.data, method=8)
                    for one in members(
                        pickled(
                            dict_of(*((f"w{i}", tensor((1_000_000,), key=str(i), numel=1_000_000)) for i in range(60)))
                        ),
                        {str(i): bytes(4_000_000) for i in range(60)},
                    )
                ]
            ).build(),
            "deflated-calls": lambda: deflated_zip(
                name("a.f") + put(5) + POP + dict_of(W, ("x", list_of(*[get(5) + EMPTY + b"R"] * 250_000)))
            ),
            "deflated-dicts": lambda: deflated_zip(dict_of(W, ("x", list_of(b"}" * 1_040_000)))),
            "deflated-tuples": lambda: deflated_zip(dict_of(W, ("x", list_of(*[NONE + b"\x85"] * 520_000)))),
            "expand-many-dims": lambda: torch_zip(dict_of(("w", tensor((2,) * 26, (0,) * 26)))),
            "neg-bytes": lambda: torch_zip(
                dict_of(
                    (
                        "w",
                        tensor((1 << 28,), (0,), kind="torch.ByteStorage", numel=16, metadata=dict_of(("neg", True))),
                    )
                )
            ),
            "gather-sparse": lambda: deflated_zip(
                dict_of(("w", tensor((150, 150, 150), (13_001, 13_003, 13_005), numel=149 * 39_009 + 1))),
                storages={"0": bytes(4 * (149 * 39_009 + 1))},
            ),
            "distinct-globals": lambda: torch_zip(b"".join(name(f"m{i}.n") for i in range(60_000)) + dict_of(W)),
            "zip-3000-records": lambda: Archive(
                members(pickled(dict_of(W)), {str(i): FLOATS for i in range(3000)})
            ).build(),
        },
    ),
]


def _zeros(megabytes: int) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(engine.compress(bytes(1 << 20)) for _ in range(megabytes)) + engine.flush()


def _gzip_times(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = gzip.compress(data, mtime=0)
    return data


def _parameters(levels: int) -> bytes:
    return (name("torch._utils._rebuild_parameter") + MARK) * levels + T + (b"\x89N" + b"tR") * levels


def _from_types(levels: int) -> bytes:
    again = name("torch._tensor._rebuild_from_type_v2")
    inner = tuple_of(storage(), 0, (4,), (1,), False, None)
    one = name("torch._utils._rebuild_tensor_v2")
    for _ in range(levels):
        inner, one = tuple_of(one, name("a.T"), inner, None), again
    return one + inner + b"R"
