"""Class 6: files that are something else, and archives around what should not be there."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib

from .case import Case, Tensor, converts, either, rejects
from .legacy import MAGIC, old_tar, padded, stream, tar, tar_header, tar_member, tar_storages
from .pickling import NONE, blob, call, dict_of, integer, list_of, name, pickled, tensor, tuple_of
from .zips import FLOATS, Archive, Member, torch_zip

W: dict[str, Tensor] = {"w": ("F32", (4,), FLOATS)}
GOOD = torch_zip(dict_of(("w", tensor())))
LEGACY = stream(dict_of(("w", tensor())))
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
_MAGICS = {
    "empty": b"",
    "one-byte": b"\x80",
    "newline": b"\n",
    "zeros": bytes(4096),
    "ff": b"\xff" * 4096,
    "lfs": _LFS,
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "html-bom": b"\xef\xbb\xbf<html>",
    "json": b'{"a": 1}',
    "text": b"hello world\n",
    "text-escape": b"\x1b[2J\x1b]0;owned\x07 hello",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(100),
    "gguf": b"GGUF\3\0\0\0" + bytes(100),
    "ggml": b"lmgg" + bytes(100),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "npy": b"\x93NUMPY\1\0v\0{'descr': '|O'}" + bytes(60),
    "7z": b"7z\xbc\xaf\x27\x1c" + pickled(call("os.system", "touch PWNED")),
    "rar": b"Rar!\x1a\7\0" + bytes(100),
    "elf": b"\x7fELF" + bytes(100),
    "pdf": b"%PDF-1.7\n",
    "script": b"#!/bin/sh\ntouch PWNED\n",
    "onnx": b"\x08\x07\x12\x07pytorch" + bytes(100),
    "xz": lzma.compress(GOOD),
    "bzip2": bz2.compress(GOOD),
    "zlib": zlib.compress(GOOD),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(100),
    "pytorch1": b"PYTORCH1" + bytes(100),
    "tflite": bytes(4) + b"TFL3" + bytes(100),
    "utf16": "hello".encode("utf-16"),
    "pk-only": b"PK\3\4",
    "pk-empty": b"PK\5\6" + bytes(18),
    "pk-spanned": b"PK\7\x08" + GOOD,
    "exe": b"MZ" + bytes(200),
}
_GZIPS = {
    "garbage": b"\x1f\x8b\x08" + b"\xff" * 100,
    "header-only": gzip.compress(GOOD, mtime=0)[:10],
    "cut": gzip.compress(GOOD, mtime=0)[:-4],
    "cut-early": gzip.compress(GOOD, mtime=0)[:60],
    "tail": gzip.compress(GOOD, mtime=0) + b"tail",
    "tail-zeros": gzip.compress(GOOD, mtime=0) + bytes(100),
    "bad-crc": gzip.compress(GOOD, mtime=0)[:-8] + bytes(8),
    "empty": gzip.compress(b"", mtime=0),
    "text": gzip.compress(b"hello", mtime=0),
    "twice-whole": gzip.compress(GOOD, mtime=0) * 2,
    "reserved-flags": b"\x1f\x8b\x08\xe0" + gzip.compress(GOOD, mtime=0)[4:],
    "name-endless": b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 1000,
}
_TYPES = {
    "hard-link": b"1",
    "symlink": b"2",
    "char-device": b"3",
    "block-device": b"4",
    "fifo": b"6",
    "contiguous": b"7",
    "sparse": b"S",
    "unknown": b"Z",
}
_ABOUT = {"long-name": b"L", "long-link": b"K", "pax": b"x", "pax-global": b"g"}


def _base256(number: int) -> bytes:
    return b"\x80" + number.to_bytes(11, "big") if number >= 0 else b"\xff" + (number % (1 << 88)).to_bytes(11, "big")


def _many_storages(count: int) -> bytes:
    """Each is a pickle of its own."""
    each = (pickled(tuple_of(i, "cpu", name("torch.FloatStorage"))) + bytes(8) for i in range(count))
    return pickled(integer(count)) + b"".join(each) + pickled(list_of())


def _gnu_sparse() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("storages")
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "storages",
            "GNU.sparse.realsize": "999999999999",
        }
        info.size = 512
        file.addfile(info, io.BytesIO(b"99999999\n" + b"1\n" * 250 + b"\0" * 3))
    return out.getvalue()


CASES: list[Case] = [
    *rejects("container", {key: lambda d=d: d for key, d in _MAGICS.items()}),  # type: ignore[misc]
    *rejects("container-gzip", {key: lambda d=d: d for key, d in _GZIPS.items()}),  # type: ignore[misc]
    *rejects(
        "container-tar-type",
        {
            key: lambda k=k: tar(
                [],
                before=tar_header(b"storages", 0, k, link=b"/etc/passwd")  # type: ignore[misc]
                + old_tar()[:-1024],
            )
            for key, k in _TYPES.items()
        },
    ),
    *either(
        "container-tar-about-nothing",
        {
            key: lambda k=k: tar_header(b"x", 0, k) + old_tar()  # type: ignore[misc]
            for key, k in _ABOUT.items()
        },
    ),
    *rejects(
        "container-tar-size",
        {
            **{
                str(n): lambda n=n: tar([], before=tar_header(b"storages", field=_base256(n)))  # type: ignore[misc]
                for n in (1 << 33, 1 << 62, 1 << 64, 1 << 70, -1, -512, -(1 << 40))
            },
            **{
                f"long-name-{n}": lambda n=n: tar([], before=tar_header(b"x", 0, b"L", field=_base256(n)))  # type: ignore[misc]
                for n in (1 << 33, 1 << 62, -1, -512)
            },
            **{
                f"pax-{n}": lambda n=n: tar([], before=tar_header(b"x", 0, b"x", field=_base256(n)))  # type: ignore[misc]
                for n in (1 << 33, 1 << 62, -1, -512)
            },
            "octal-text": lambda: tar([], before=tar_header(b"storages", field=b"99999999999\0")),
            "octal-underscore": lambda: tar([], before=tar_header(b"storages", field=b"0000000_000\0")),
            "octal-minus": lambda: tar([], before=tar_header(b"storages", field=b"-0000001000\0")),
            "past-end": lambda: tar([], before=tar_header(b"storages", 1 << 20)),
        },
    ),
    *rejects(
        "container-tar",
        {
            "checksum": lambda: tar([], before=tar_header(b"storages", checksum=b"000000\0 ")),
            "checksum-text": lambda: tar([], before=tar_header(b"storages", checksum=b"zzzzzz\0 ")),
            "empty": lambda: tar_header(b"", 0) + bytes(1024),
            "other-files": lambda: tar([("a.txt", b"hello"), ("../evil", b"x")]),
            "outside": lambda: old_tar()[:-1024] + tar_member("../evil", b"x") + bytes(1024),
            "outside-absolute": lambda: old_tar()[:-1024] + tar_member("/etc/cron.d/x", b"x") + bytes(1024),
            "outside-directory": lambda: old_tar()[:-1024] + tar_header(b"../evil/", 0, b"5") + bytes(1024),
            "twice": lambda: old_tar()[:-1024] + tar_member("pickle", pickled(NONE)) + bytes(1024),
            "no-pickle": lambda: tar([("storages", tar_storages())]),
            "cut": lambda: old_tar()[:700],
            "10k-members": lambda: tar([(f"d{i}", b"") for i in range(11_000)]),
            "10k-directories": lambda: tar([], before=b"".join(tar_header(b"d/", 0, b"5") for _ in range(11_000))),
            "long-name-chain": lambda: tar([], before=(tar_header(b"x", 4, b"L") + padded(b"abc\0")) * 3000),
            "pax-chain": lambda: tar([], before=tar_header(b"x", 0, b"x") * 3000),
            "pax-digits": lambda: tar([], before=tar_header(b"x", 400_000, b"x") + padded(b"1" * 400_000)),
            "pax-length-lies": lambda: tar([], before=tar_header(b"x", 512, b"x") + padded(b"999999 path=storages\n")),
            "pax-size": lambda: tar(
                [], before=tar_header(b"x", 20, b"x") + padded(b"20 size=99999999999\n") + old_tar()[:-1024]
            ),
            "pax-global-size": lambda: tar_header(b"x", 15, b"g") + padded(b"15 size=000010\n") + old_tar(),
            "pax-global-path": lambda: tar_header(b"x", 15, b"g") + padded(b"15 path=pickle\n") + old_tar(),
            "gnu-sparse": _gnu_sparse,
            "second-archive": lambda: old_tar() + old_tar(),
            "20k-storages": lambda: old_tar(_many_storages(20_000), root=pickled(dict_of(("w", 1)))),
            "two-by-dots": lambda: old_tar()[:-1024] + tar_member("x/../pickle", pickled(NONE)) + bytes(1024),
            "two-by-root": lambda: old_tar()[:-1024] + tar_member("/pickle", pickled(NONE)) + bytes(1024),
            "two-by-case": lambda: old_tar()[:-1024] + tar_member("PICKLE", pickled(NONE)) + bytes(1024),
            "two-named-alike": lambda: old_tar()[:-1024] + tar_member("./pickle", pickled(NONE)) + bytes(1024),
        },
    ),
    *rejects(
        "container-zip-of",
        {
            "checkpoint-cut": lambda: Archive([Member("policy.pth", GOOD[:-9])]).build(),
            "checkpoint-changed": lambda: Archive([Member("policy.pth", GOOD, central={"crc": 5})]).build(),
            "torchscript-1.0": lambda: Archive([Member("a/model.json", b"{}"), Member("a/tensors/0", b"")]).build(),
            "pt2": lambda: Archive([Member("a/archive_format", b"pt2")]).build(),
            "package": lambda: Archive([Member("a/.data/extern_modules", b"os")]).build(),
            "keras": lambda: Archive([Member("config.json", b"{}"), Member("model.weights.h5", b"")]).build(),
        },
    ),
    *rejects(
        "container-pickle",
        {
            "joblib": lambda: pickled(call("joblib.numpy_pickle.NumpyArrayWrapper")) + bytes(64),
            "two": lambda: pickled(dict_of(("w", 1))) * 2,
            "sklearn": lambda: pickled(call("sklearn.linear_model._base.LinearRegression")),
            "proto-1": lambda: b"]q\0K\1a.",
            "persistent": lambda: pickled(dict_of(("w", tensor()))),
            "nothing": lambda: pickled(NONE),
            "magic-only": lambda: pickled(integer(MAGIC)),
            "nested-gzip": lambda: pickled(
                dict_of(
                    (
                        "w",
                        tensor(of=call("torch.storage._load_from_bytes", blob(gzip.compress(bytes(1 << 20), mtime=0)))),
                    )
                )
            ),
            "nested-zip": lambda: pickled(
                dict_of(("w", tensor(of=call("torch.storage._load_from_bytes", blob(GOOD)))))
            ),
            "nested-tar": lambda: pickled(
                dict_of(("w", tensor(of=call("torch.storage._load_from_bytes", blob(old_tar())))))
            ),
        },
    ),
    *either(
        "container-odd",
        {
            "legacy-with-zip-name": lambda: LEGACY,
            "jit-empty": lambda: Archive(
                [Member("a/data.pkl", pickled(NONE)), Member("a/constants.pkl", pickled(tuple_of()))]
            ).build(),
            "jit-code": lambda: Archive(
                [
                    Member("a/data.pkl", pickled(name("__torch__.M") + b")\x81" + dict_of(("w", tensor())) + b"b")),
                    Member("a/constants.pkl", pickled(tuple_of())),
                    Member("a/data/0", FLOATS),
                    Member("a/version", b"3"),
                    Member("a/code/__torch__.py", b"import os\nos.system('touch PWNED')\n"),
                ]
            ).build(),
            "gzip-in-gzip": lambda: gzip.compress(gzip.compress(GOOD, mtime=0), mtime=0),
            "gzip-two-members": lambda: gzip.compress(GOOD[:100], mtime=0) + gzip.compress(GOOD[100:], mtime=0),
            "tar-in-gzip": lambda: gzip.compress(old_tar(), mtime=0),
            "tar-directories": lambda: tar([], before=tar_header(b"x/", 0, b"5") + old_tar()[:-1024]),
            "tar-name-escape": lambda: old_tar()[:-1024] + tar_member("\x1b[2J\x07", b"x") + bytes(1024),
            "tar-no-end": lambda: old_tar()[:-1024],
            "polyglot-tar-legacy": lambda: stream(dict_of(("w", tensor())))[:500].ljust(512, b"\0") + bytes(1024),
            "proto-byte-struct": lambda: b"\x80" + struct.pack("<Q", 1),
        },
    ),
    *converts(
        "container-fine",
        {
            "legacy": lambda: LEGACY,
            "gzip": lambda: gzip.compress(GOOD, mtime=0),
            "tar": old_tar,
        },
        W,
    ),
    *converts("container-zip-of", {"one": lambda: Archive([Member("policy.pth", GOOD)]).build()}, W),
    *converts("container-named", {"text": lambda: GOOD}, W, file="model.txt"),
    *converts("container-named", {"safetensors": lambda: GOOD}, W, file="model.safetensors"),
]
