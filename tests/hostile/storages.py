"""Class 4: what is said about storages and views of them, against what is there."""

from __future__ import annotations

import struct

from .case import Case, Tensor, converts, either, rejects
from .legacy import ONE, old_storage, old_tar, stream, tar_storages, tar_tensors
from .pickling import (
    EMPTY,
    MARK,
    NONE,
    TRUE,
    blob,
    call,
    dict_of,
    integer,
    list_of,
    name,
    persistent,
    pickled,
    real,
    storage,
    tensor,
    text,
    tuple_of,
)
from .zips import FLOATS, Archive, Member, members, torch_zip

W: dict[str, Tensor] = {"w": ("F32", (4,), FLOATS)}
SIGNED = struct.pack("<4f", -1.0, 2.0, -3.5, -0.25)


def one(**slots: object) -> bytes:
    return torch_zip(dict_of(("w", tensor(**slots))))  # type: ignore[arg-type]


def legacy(root: bytes = tensor(of=old_storage()), stored: object = ONE, **parts: bytes) -> bytes:
    return stream(dict_of(("w", root)), stored, **parts)  # type: ignore[arg-type]


_NUMBERS: dict[str, object] = {
    "negative": -1,
    "2-31": 1 << 31,
    "2-62": 1 << 62,
    "2-63": 1 << 63,
    "2-64+4": (1 << 64) + 4,
    "10-300": 10**300,
    "float": real(4.0),
    "text": "4",
    "none": NONE,
    "bytes": blob(b"\4"),
    "list": list_of(4),
}
_COUNTS = {**_NUMBERS, "bool": TRUE, "five": 5, "three": 3, "zero": 0}
_KEYS: dict[str, object] = {
    "missing": "7",
    "dots": "../data.pkl",
    "absolute": "/etc/passwd",
    "null": "0\0",
    "empty": "",
    "slash": "/0",
    "dot-slash": "./0",
    "long": "k" * 60_000,
    "newline": "0\n",
    "tuple": tuple_of("0"),
    "bytes": blob(b"0"),
    "none": NONE,
    "float": real(0.0),
    "case": "A",
    "space": " 0",
    "zero-padded": "00",
    "negative": -1,
    "huge": 1 << 8000,
    "escape": "\x1b[31m",
    "surrogate": "\ud800",
    "percent": "%30",
    "list": list_of("0"),
}
_CLASSES: dict[str, object] = {
    "not-torch": "os.FloatStorage",
    "unknown": "torch.ZapStorage",
    "tensor": "torch.FloatTensor",
    "text": text("torch.FloatStorage"),
    "none": NONE,
    "int": integer(5),
    "call": call("torch.FloatStorage"),
    "empty": name("torch."),
    "evil": "torch.load",
}
_PIDS = {
    "empty": EMPTY,
    "four": tuple_of("storage", name("torch.FloatStorage"), "0", "cpu"),
    "seven": tuple_of("storage", name("torch.FloatStorage"), "0", "cpu", 4, None, None),
    "tag": tuple_of("stowage", name("torch.FloatStorage"), "0", "cpu", 4),
    "text": text("storage"),
    "none": NONE,
    "tag-bytes": tuple_of(blob(b"storage"), name("torch.FloatStorage"), "0", "cpu", 4),
    "int": integer(0),
    "view-tuple": tuple_of("storage", name("torch.FloatStorage"), "0", "cpu", 4, ("v", 2, 4)),
    "view-negative": tuple_of("storage", name("torch.FloatStorage"), "0", "cpu", 4, ("v", -1, 2)),
    "view-text": tuple_of("storage", name("torch.FloatStorage"), "0", "cpu", 4, "v"),
    "view-bool": tuple_of("storage", name("torch.FloatStorage"), "0", "cpu", 4, ("v", False, True)),
    "self": b"]" + b"q\1" + b"h\1\x85",
}
_SIZES: dict[str, tuple[object, object]] = {
    "too-large": ((5,), (1,)),
    "too-far": ((2, 2), (4, 1)),
    "wraps": ((1 << 32, 1 << 32), (1 << 32, 1)),
    "wraps-62": ((1 << 62, 4), (4, 1)),
    "rank": ((4,), (1, 1)),
    "rank-more": ((2, 2), (1,)),
    "none": (NONE, (1,)),
    "int": (4, 1),
    "text": ("4", "1"),
    "dict": (dict_of(), dict_of()),
    "nested": (((4,),), ((1,),)),
    "float": ((real(4.0),), (1,)),
    "bool": ((TRUE,), (1,)),
    "stride-bool": ((4,), (TRUE,)),
    "stride-float": ((4,), (real(1.0),)),
    "stride-negative": ((4,), (-1,)),
    "size-negative": ((-4,), (1,)),
    "size-minus-1": ((-1, -4), (1, 1)),
    "stride-2-62": ((2,), (1 << 62,)),
    "stride-2-64": ((4,), ((1 << 64) + 1,)),
    "size-2-64": (((1 << 64) + 4,), (1,)),
    "65-dims": ((1,) * 65, (1,) * 65),
    "zero-elements-strides-2-63": ((0, 1 << 32, 1 << 31), (1, 1, 1)),
    "zero-elements-huge-rank": ((0,) * 1000, (1,) * 1000),
    "torch-size-of-int": (call("torch.Size", 4), (1,)),
    "set": (b"\x8f(K\4\x90", (1,)),
}
_META = {
    "neg-int": dict_of(("neg", 1)),
    "neg-text": dict_of(("neg", "yes")),
    "unknown": dict_of(("zap", True)),
    "list": list_of(1),
    "text": text("neg"),
    "pairs": list_of(("neg", True)),
}
_ORDERED_NEG = call("collections.OrderedDict") + MARK + text("neg") + TRUE + b"u"
_TWO_OF_FOUR = tar_storages(views=(tuple_of(3, 1, 1, 2),))
_QUICK = (b"little\n", b"LITTLE", b"middle", b"", b"big\0", b"\xff\xfe", b"x" * 300)


def _byteorder(order: bytes, **wrong: int) -> bytes:
    records = [
        Member(m.name, order, local=wrong, central=wrong) if m.name.endswith("byteorder") else m
        for m in members(pickled(dict_of(("w", tensor()))))
    ]
    return Archive(records).build()


CASES: list[Case] = [
    *rejects("storage-numel", {key: lambda v=v: one(numel=v) for key, v in _COUNTS.items()}),  # type: ignore[misc]
    *rejects(
        "storage-offset",
        {
            key: lambda v=v: one(offset=v)
            for key, v in {**_NUMBERS, "bool": TRUE, "one": 1, "four": 4}.items()  # type: ignore[misc]
        },
    ),
    *rejects("storage-key", {key: lambda v=v: one(key=v) for key, v in _KEYS.items()}),  # type: ignore[misc]
    *rejects("storage-class", {key: lambda v=v: one(kind=v) for key, v in _CLASSES.items()}),  # type: ignore[misc]
    *rejects("storage-pid", {key: lambda v=v: one(of=v + b"Q") for key, v in _PIDS.items()}),  # type: ignore[misc]
    *rejects("storage-size", {key: lambda v=v: one(size=v[0], stride=v[1]) for key, v in _SIZES.items()}),  # type: ignore[misc]
    *rejects("storage-metadata", {key: lambda v=v: one(metadata=v) for key, v in _META.items()}),  # type: ignore[misc]
    *rejects("storage-byteorder", {str(i): lambda v=v: _byteorder(v) for i, v in enumerate(_QUICK[1:])}),  # type: ignore[misc]
    *rejects(
        "storage-key-of-a-record",
        {
            "none": lambda: torch_zip(dict_of(("w", tensor(key=NONE))), storages={"None": FLOATS}),
            "float": lambda: torch_zip(dict_of(("w", tensor(key=real(0.5)))), storages={"0.5": FLOATS}),
            "bool": lambda: torch_zip(dict_of(("w", tensor(key=TRUE))), storages={"True": FLOATS}),
            "tuple": lambda: torch_zip(dict_of(("w", tensor(key=tuple_of(0)))), storages={"(0,)": FLOATS}),
        },
        says="a storage's key is not a string",
    ),
    *rejects(
        "storage-record",
        {
            "15-bytes": lambda: torch_zip(dict_of(("w", tensor())), storages={"0": FLOATS[:15]}),
            "17-bytes": lambda: torch_zip(dict_of(("w", tensor())), storages={"0": FLOATS + b"!"}),
            "none": lambda: torch_zip(dict_of(("w", tensor())), storages={}),
            "empty": lambda: torch_zip(dict_of(("w", tensor())), storages={"0": b""}),
            "double": lambda: torch_zip(dict_of(("w", tensor(kind="torch.DoubleStorage")))),
            "two-sizes": lambda: torch_zip(dict_of(("w", tensor()), ("v", tensor((2,), numel=2)))),
            "byteorder-checksum": lambda: _byteorder(b"big", crc=1),
            "untyped-for-v2": lambda: one(kind="torch.UntypedStorage", numel=16),
        },
    ),
    *converts(
        "storage-neg",
        {
            "true": lambda: one(metadata=dict_of(("neg", True))),
            "ordered": lambda: one(metadata=_ORDERED_NEG),
        },
        {"w": ("F32", (4,), SIGNED)},
    ),
    Case(
        "storage-conj",
        lambda: one(size=(2,), numel=2, kind="torch.ComplexFloatStorage", metadata=dict_of(("conj", True))),
        "convert",
        {"w": ("C64", (2,), struct.pack("<4f", 1.0, 2.0, 3.5, -0.25))},
    ),
    Case(
        "storage-big-endian",
        lambda: _byteorder(b"big"),
        "convert",
        {"w": ("F32", (4,), struct.pack(">4f", 1.0, -2.0, 3.5, 0.25))},
    ),
    Case(
        "storage-transposed",
        lambda: one(size=(2, 2), stride=(1, 2)),
        "convert",
        {"w": ("F32", (2, 2), struct.pack("<4f", 1.0, 3.5, -2.0, 0.25))},
    ),
    Case(
        "storage-expanded", lambda: one(size=(2, 2), stride=(0, 1)), "convert", {"w": ("F32", (2, 2), FLOATS[:8] * 2)}
    ),
    Case("storage-zero-elements", lambda: one(size=(0, 3), stride=(3, 1)), "convert", {"w": ("F32", (0, 3), b"")}),
    *either(
        "storage-odd",
        {
            "zero-elements-2-62": lambda: one(size=(0, 1 << 62), stride=(1, 1)),
            "zero-elements-stride": lambda: one(size=(0, 2), stride=((1 << 63) - 1, (1 << 62) + 1)),
            "zero-elements-offset": lambda: one(size=(0,), offset=(1 << 63) - 1),
            "zero-elements-product": lambda: one(size=(1 << 40, 1 << 40, 0), stride=(1, 1, 1)),
            "neg-bool": lambda: one(kind="torch.BoolStorage", metadata=dict_of(("neg", True))),
            "conj-real": lambda: one(metadata=dict_of(("conj", True))),
            "neg-float8": lambda: torch_zip(
                dict_of(
                    (
                        "w",
                        call(
                            "torch._utils._rebuild_tensor_v3",
                            storage(kind="torch.UntypedStorage", numel=16),
                            0,
                            (16,),
                            (1,),
                            False,
                            None,
                            name("torch.float8_e4m3fnuz"),
                            dict_of(("neg", True)),
                        ),
                    )
                )
            ),
            "quantized": lambda: one(kind="torch.QInt8Storage", numel=16),
            "int-key": lambda: one(key=0),
            "cuda-class": lambda: one(kind="torch.cuda.FloatStorage"),
            "location-int": lambda: one(location=5),
            "torch-size": lambda: one(size=call("torch.Size", (4,))),
            "list-size": lambda: one(size=list_of(4), stride=list_of(1)),
            "byteorder-newline": lambda: _byteorder(b"little\n"),
        },
    ),
    *rejects(
        "storage-dtypes",
        {
            "two": lambda: torch_zip(
                dict_of(("w", tensor()), ("v", tensor((2,), kind="torch.DoubleStorage", numel=2)))
            ),
            "two-of-one-size": lambda: torch_zip(dict_of(("w", tensor()), ("v", tensor(kind="torch.IntStorage")))),
            "untyped-too": lambda: torch_zip(
                dict_of(("w", tensor()), ("v", storage(kind="torch.storage.UntypedStorage", numel=16)))
            ),
        },
        says="two dtypes",
    ),
    *rejects(
        "storage-legacy",
        {
            "numel-more": lambda: legacy(stored=[("0", 5, FLOATS)]),
            "numel-less": lambda: legacy(stored=[("0", 3, FLOATS)]),
            "numel-negative": lambda: legacy(stored=[("0", -1, FLOATS)]),
            "numel-2-62": lambda: legacy(tensor(of=old_storage(numel=1 << 60)), [("0", 1 << 60, FLOATS)]),
            "short": lambda: legacy(stored=[("0", 4, FLOATS[:15])]),
            "long": lambda: legacy(tail=b"\0"),
            "no-header": lambda: legacy(stored=[])[:-1],
            "key-missing": lambda: legacy(stored=[]),
            "key-twice": lambda: legacy(stored=[*ONE, *ONE]),
            "key-unused": lambda: legacy(stored=[*ONE, ("1", 4, FLOATS)]),
            "keys-int": lambda: legacy(keys=pickled(list_of(0))),
            "keys-dict": lambda: legacy(keys=pickled(dict_of(("0", 0)))),
            "keys-none": lambda: legacy(keys=pickled(NONE)),
            "two-dtypes-of-one-size": lambda: stream(
                dict_of(("w", tensor(of=old_storage())), ("v", tensor(of=old_storage(kind="torch.IntStorage"))))
            ),
            "two-sizes": lambda: stream(
                dict_of(("w", tensor(of=old_storage())), ("v", tensor((2,), of=old_storage(numel=2))))
            ),
            "two-dtypes": lambda: stream(
                dict_of(
                    ("w", tensor(of=old_storage())), ("v", tensor((2,), of=old_storage(kind="torch.DoubleStorage")))
                )
            ),
            "view-outside": lambda: legacy(tensor(of=old_storage(view=("v", 2, 4)))),
            "view-negative": lambda: legacy(tensor(of=old_storage(view=("v", -2, 4)))),
            "view-float": lambda: legacy(tensor(of=old_storage(view=("v", real(0.0), 4)))),
            "view-two": lambda: legacy(tensor(of=old_storage(view=("v", 0)))),
            "view-exceeded": lambda: legacy(tensor(of=old_storage(view=("v", 0, 2)))),
            "view-exceeded-offset": lambda: legacy(tensor((1,), offset=2, of=old_storage(view=("v", 1, 2)))),
            "magic-float": lambda: legacy(magic=pickled(real(1.0))),
            "version-1002": lambda: legacy(version=pickled(integer(1002))),
            "version-true": lambda: legacy(version=pickled(TRUE)),
            "system-list": lambda: legacy(system=pickled(list_of())),
            "cut-in-pickle": lambda: legacy()[:100],
            "twice": lambda: legacy() * 2,
        },
    ),
    Case(
        "storage-legacy-view",
        lambda: legacy(tensor((2,), of=old_storage(view=("v", 1, 2)))),
        "convert",
        {"w": ("F32", (2,), FLOATS[4:12])},
    ),
    *converts(
        "storage-legacy",
        {
            "plain": legacy,
            "persistent": lambda: legacy(tensor(of=persistent("storage", name("torch.FloatStorage"), "0", "cpu", 4))),
        },
        W,
    ),
    *converts("storage-tar", {"plain": old_tar}, W),
    Case(
        "storage-tar-view",
        lambda: old_tar(_TWO_OF_FOUR, tar_tensors(of=3, size=(2,))),
        "convert",
        {"w": ("F32", (2,), FLOATS[4:12])},
    ),
    *rejects(
        "storage-tar",
        {
            "count-negative": lambda: old_tar(tar_storages(count=-1)),
            "count-huge": lambda: old_tar(tar_storages(count=1 << 62)),
            "count-float": lambda: old_tar(tar_storages(count=real(1.0))),
            "count-none": lambda: old_tar(tar_storages(count=NONE)),
            "numel-negative": lambda: old_tar(tar_storages(numel=-1)),
            "numel-huge": lambda: old_tar(tar_storages(numel=(1 << 63) - 1)),
            "key-laughs": lambda: old_tar(tar_storages(EMPTY + (b"q\1" + b"0h\1h\1\x86") * 60)),
            "key-deep": lambda: old_tar(tar_storages(EMPTY + b"\x85" * 100_000)),
            "key-none": lambda: old_tar(tar_storages(NONE)),
            "view-key-laughs": lambda: old_tar(tar_storages(views=(tuple_of(3, EMPTY + b"q\1h\1\x86" * 60, 0, 1),))),
            "view-outside": lambda: old_tar(tar_storages(views=(tuple_of(3, 1, 2, 4),))),
            "view-negative": lambda: old_tar(tar_storages(views=(tuple_of(3, 1, -1, 2),))),
            "view-of-nothing": lambda: old_tar(tar_storages(views=(tuple_of(3, 9, 0, 1),))),
            "view-list": lambda: old_tar(tar_storages(views=(list_of(3, 1, 0, 1),))),
            "view-twice": lambda: old_tar(tar_storages(views=(tuple_of(1, 1, 0, 1),))),
            "view-exceeded": lambda: old_tar(_TWO_OF_FOUR, tar_tensors(of=3, size=(3,))),
            "view-preceded": lambda: old_tar(_TWO_OF_FOUR, tar_tensors(of=3, size=(2,), offset=-1)),
            "ndim-2-31": lambda: old_tar(tensors=tar_tensors(ndim=(1 << 31) - 1)),
            "ndim-negative": lambda: old_tar(tensors=tar_tensors(ndim=-1)),
            "ndim-65": lambda: old_tar(tensors=tar_tensors(ndim=65, size=(1,) * 65, stride=(1,) * 65)),
            "size-negative": lambda: old_tar(tensors=tar_tensors(size=(-4,))),
            "size-too-large": lambda: old_tar(tensors=tar_tensors(size=(5,))),
            "offset-negative": lambda: old_tar(tensors=tar_tensors(offset=-1)),
            "offset-too-large": lambda: old_tar(tensors=tar_tensors(offset=1)),
            "of-laughs": lambda: old_tar(tensors=tar_tensors(of=EMPTY + b"q\1h\1\x86" * 60)),
            "of-nothing": lambda: old_tar(tensors=tar_tensors(of=9)),
            "tensor-key-deep": lambda: old_tar(tensors=tar_tensors(EMPTY + b"\x85" * 100_000)),
            "tensor-tail": lambda: old_tar(tensors=tar_tensors() + b"\0"),
            "pid-missing": lambda: old_tar(root=pickled(dict_of(("w", integer(9) + b"Q")))),
            "pid-tuple": lambda: old_tar(root=pickled(dict_of(("w", EMPTY + b"Q")))),
            "pickle-tail": lambda: old_tar(root=pickled(dict_of(("w", integer(2) + b"Q"))) + b"N"),
        },
    ),
]
