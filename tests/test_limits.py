"""Every number of `Limits`: taken from who calls, held to the unit, and named by what refuses."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import sdconvert
from sdconvert import Limits
from sdconvert.checkpoint import StateDict
from sdconvert.dtypes import BY_NAME
from sdconvert.errors import UnreadableError
from sdconvert.plan import make_plan
from sdconvert.source import MemorySource
from sdconvert.strict_json import cost
from sdconvert.tensor import Piece, Storage, TensorRef

from .hostile.legacy import tar
from .hostile.pickling import FALSE, MARK, NONE, dict_of, integer, module, name, pickled, short_text, tensor, text
from .hostile.safetensors_files import file as safetensors_file
from .hostile.safetensors_files import info
from .hostile.zips import FLOATS, Archive, Member, deflated, members, torch_zip

ROOT = Path(__file__).parents[1]
INDEX = "m.safetensors.index.json"
W = ("w", tensor())
GOOD = torch_zip(dict_of(W))
ZEROS = bytes(100_000)
SPARE = torch_zip(dict_of(W), storages={"0": FLOATS, "1": ZEROS})


def beside(fragment: bytes) -> bytes:
    """A checkpoint with one tensor, and the value of `fragment` beside it."""
    return torch_zip(dict_of(W, ("x", fragment)))


def packed(data: bytes) -> bytes:
    """A checkpoint whose only storage, the bytes `data`, is deflated."""
    root = pickled(dict_of(("w", tensor((len(data),), kind="torch.ByteStorage", numel=len(data)))))
    records = [Member(m.name, m.data, method=8 * m.name.endswith("/0")) for m in members(root, {"0": data})]
    return Archive(records).build()


LONG = pickled(dict_of(W, ("x", NONE + b"0" + NONE * 100_000 + b"0" * 99_999)))
_WIDE = safetensors_file(json.dumps({"w": info()}).encode() + b" " * 100_000)


def packed_pickle(root: bytes) -> bytes:
    """A checkpoint whose pickle is deflated."""
    return Archive([Member(m.name, m.data, method=8 * (m.data is root)) for m in members(root)]).build()


def times(large: bytes, small: bytes) -> int:
    """How many times the length of `small` the length of `large` is, rounded up."""
    return -(-len(large) // len(small))


def index(shard: bytes) -> dict[str, bytes]:
    text = json.dumps({"metadata": {}, "weight_map": {"w": "m-00001-of-00001.safetensors"}}).encode()
    return {INDEX: text, "m-00001-of-00001.safetensors": shard}


SOUND = safetensors_file({"w": info()})
SHARDS = index(SOUND)
RECIPES = json.dumps({"version": 1, "tensors": {}})
WITH_RECIPES = safetensors_file({"__metadata__": {"sdconvert.encoded": RECIPES}, "w": info()})
_JSON = SHARDS[INDEX].decode()

Files = bytes | Mapping[str, bytes]
HELD: dict[str, tuple[str, int, Files]] = {
    "pickle": ("pickle_bytes", len(pickled(dict_of(W))), GOOD),
    "long-number": ("number_bytes", 100, beside(integer(1 << 8 * 99))),
    "longer-number": ("number_bytes", 300, beside(integer(1 << 8 * 299))),
    "digits": ("number_bytes", 50, beside(b"I" + b"9" * 50 + b"\n")),
    "text": ("text_bytes", 300, beside(text("x" * 300))),
    "text-beyond-the-window": ("text_bytes", 300_000, beside(text("x" * 300_000))),
    "text-of-8-bytes-length": ("text_bytes", 300, beside(b"\x8d" + struct.pack("<Q", 300) + b"x" * 300)),
    "short-text": ("text_bytes", 200, beside(short_text("x" * 200))),
    "text-of-python-2": ("text_bytes", 200, beside(b"U\xc8" + b"x" * 200)),
    "line": ("text_bytes", 300, beside(b"V" + b"x" * 300 + b"\n")),
    "line-beyond-the-window": ("text_bytes", 300_000, beside(b"V" + b"x" * 300_000 + b"\n")),
    "records": ("zip_members", 4, GOOD),
    "tensors": ("tensors", 5, torch_zip(dict_of(*((f"w{i}", tensor()) for i in range(5))))),
    "tensors-of-a-module": ("tensors", 5, torch_zip(module(parameters={f"w{i}": tensor() for i in range(5)}))),
    "tensors-of-a-header": ("tensors", 2, safetensors_file({"v": info(), "w": info(offsets=(16, 32))}, FLOATS * 2)),
    "name": ("name_bytes", 100, torch_zip(dict_of(("é" * 50, tensor())))),
    "name-with-prefix": ("name_bytes", 100, torch_zip(dict_of(W, ("a" * 98, dict_of(("b", tensor())))))),
    "name-of-a-header": ("name_bytes", 100, safetensors_file({"n" * 100: info()})),
    "class": ("name_bytes", 100, beside(name("a" * 40 + "." + "b" * 60))),
    "containers": ("nesting", 3, gzip.compress(tar([("m.pt", GOOD)]), mtime=0)),
    "shards": ("nesting", 2, SHARDS),
    "ratio-of-a-record": ("inflate_ratio", times(ZEROS, deflated(ZEROS)), packed(ZEROS)),
    "ratio-of-gzip": ("inflate_ratio", times(SPARE, gzip.compress(SPARE, mtime=0)), gzip.compress(SPARE, mtime=0)),
    "packed-pickle": ("inflate_slack", len(LONG) - 8 * len(deflated(LONG)), packed_pickle(LONG)),
    "packed-header": (
        "inflate_slack",
        len(_WIDE) - 8 - len(FLOATS) - 12 * len(gzip.compress(_WIDE, mtime=0)),
        gzip.compress(_WIDE, mtime=0),
    ),
    "record": ("inflate_bytes", 1000, packed(bytes(range(250)) * 4)),
    "gzip": ("inflate_bytes", len(GOOD), gzip.compress(GOOD, mtime=0)),
    "header": ("header_bytes", len(SOUND) - 8 - len(FLOATS), SOUND),
    "index": ("header_bytes", len(SHARDS[INDEX]), SHARDS),
    "index-in-memory": ("json_bytes", cost(_JSON) - sys.getsizeof(_JSON) + 3 * len(_JSON), SHARDS),
    "recipes": ("json_bytes", cost(RECIPES), WITH_RECIPES),
    "scattered": (
        "scattered_reads",
        100,
        torch_zip(dict_of(("w", tensor((100,), (5000,), numel=500_000))), storages={"0": bytes(2_000_000)}),
    ),
}
"""(limit, what the file needs of it, the file, or a directory's files of which the first is named)."""


def made(files: Files, directory: Path) -> Path:
    if isinstance(files, bytes):
        files = {"m.bin": files}
    for called, data in files.items():
        (directory / called).write_bytes(data)
    return directory / next(iter(files))


@pytest.mark.parametrize("case", HELD)
def test_what_needs_just_the_limit_is_taken_and_one_less_is_too_little(case: str, tmp_path: Path) -> None:
    limit, bound, files = HELD[case]
    source, output = made(files, tmp_path), tmp_path / "out.safetensors"
    with pytest.raises(UnreadableError, match=rf"Limits\.{limit}\b"):
        sdconvert.convert(source, output, limits=Limits(**{limit: bound - 1}))
    assert not output.exists()
    sdconvert.convert(source, output, limits=Limits(**{limit: bound}))


@pytest.mark.parametrize(("limit", "bound"), [("expansion", 10), ("expansion_slack", 144)])
def test_views_that_repeat_a_storage(limit: str, bound: int, tmp_path: Path) -> None:
    """40 times one element of a storage of 16 bytes: 160 bytes."""
    source = made(torch_zip(dict_of(("w", tensor((40,), (0,))))), tmp_path)
    least = {"expansion": 1, "expansion_slack": 0}
    with pytest.raises(UnreadableError, match="--max-expansion 11 allows it"):
        sdconvert.convert(source, limits=Limits(**{**least, limit: bound - 1}))
    sdconvert.convert(source, limits=Limits(**{**least, limit: bound}))


def test_a_tensor_in_many_pieces() -> None:
    storage = Storage(MemorySource(FLOATS), 0, len(FLOATS), "s")
    pieces = tuple(Piece(storage, i, (1,), (1,), i, (1,)) for i in range(4))
    weights = StateDict({"w": TensorRef(BY_NAME["float32"], (4,), pieces)}, "", "state_dict")
    assert make_plan(weights, limits=Limits(pieces=4)).nbytes == len(FLOATS)
    with pytest.raises(UnreadableError, match=r"w: it is in 4 parts, more than Limits\.pieces"):
        make_plan(weights, limits=Limits(pieces=3))


def test_one_value_of_a_header_may_take_a_third_of_what_a_document_may(tmp_path: Path) -> None:
    """It is told when a value is larger than what is read at once, a few MiB."""
    source = made(safetensors_file({"__metadata__": {"a": "x" * (4 << 20)}, "w": info()}), tmp_path)
    sdconvert.open(source, limits=Limits(json_bytes=3 * (16 << 20))).close()
    with pytest.raises(UnreadableError, match=r"Limits\.json_bytes"):
        sdconvert.open(source, limits=Limits(json_bytes=3 * (4 << 20)))


def test_every_limit_is_tried_here() -> None:
    tried = {limit for limit, _, _ in HELD.values()} | {"expansion", "expansion_slack", "pieces"}
    assert tried == {field.name for field in dataclasses.fields(Limits)}


UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "times": 1, "": 1}


def test_the_page_gives_every_default() -> None:
    """``| `a`, `b` (what they are) | 1 KiB, 64 MiB |``; one number for several names is that of each."""
    page = (ROOT / "docs" / "security.md").read_text()
    told: dict[str, int] = {}
    for names, values in re.findall(r"^\| (`.*?) \| (.*) \|$", page.partition("## Limits")[2], re.MULTILINE):
        limits = re.findall(r"`(\w+)`", names)
        numbers = re.findall(r"(\d[\d,]*\d|\d)(?: (KiB|MiB|GiB|TiB|times))?", values)
        told |= zip(limits, [int(n.replace(",", "")) * UNITS[u] for n, u in numbers] * len(limits), strict=False)
    assert told == dataclasses.asdict(Limits())


def _parameters(depth: int) -> bytes:
    """A tensor inside of `depth` - 1 calls that make parameters of it."""
    return (
        (name("torch._utils._rebuild_parameter") + MARK) * (depth - 1) + tensor() + (FALSE + NONE + b"tR") * (depth - 1)
    )


def _modules(below: int) -> bytes:
    inner = module(parameters={"w": tensor()})
    for _ in range(below):
        inner = module(children={"a": inner})
    return inner


def _dicts(below: int) -> bytes:
    inner = dict_of(W)
    for _ in range(below):
        inner = dict_of(("a", inner), W)
    return inner


FIXED: dict[str, tuple[Callable[[int], bytes], int, str]] = {
    "dimensions": (lambda n: dict_of(("w", tensor((4,) + (1,) * (n - 1), (1,) * n))), 64, "65 dimensions"),
    "calls": (lambda n: dict_of(("w", _parameters(n))), 16, "nested too deeply"),
    "flags": (
        lambda n: dict_of(("w", tensor(metadata=dict_of(*((f"k{i}", False) for i in range(n)))))),
        64,
        "more than 64",
    ),
    "way": (lambda n: dict_of(("k" * (n - 10), dict_of(("state_dict", dict_of(W))))), 4096, "more than 4096"),
    "modules": (_modules, 200, "nested beyond reason"),
    "dicts": (_dicts, 200, "nested beyond reason"),
}
"""What has no setting: (the object that needs so much, how much there may be, what is said of one more)."""


@pytest.mark.parametrize("what", FIXED)
def test_what_has_no_setting_is_held_to_the_unit_too(what: str, tmp_path: Path) -> None:
    build, bound, says = FIXED[what]
    sdconvert.convert(made(torch_zip(build(bound)), tmp_path), tmp_path / "out.safetensors")
    with pytest.raises(UnreadableError, match=says):
        sdconvert.convert(made(torch_zip(build(bound + 1)), tmp_path), tmp_path / "more.safetensors")
    page = (ROOT / "docs" / "security.md").read_text()
    assert f"{bound:,} " in page.partition("has no setting")[2].partition("## ")[0]
