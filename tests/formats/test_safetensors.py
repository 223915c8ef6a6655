"""safetensors headers against the reference reader: what it refuses is refused, and what both take is the same."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

import sdconvert
from sdconvert.checkpoint import Dict
from sdconvert.errors import SdconvertError, UnreadableError
from sdconvert.formats import safetensors as reader
from sdconvert.limits import DEFAULT_LIMITS
from sdconvert.source import MemorySource, read
from sdconvert.tensor import TensorRef
from tests.hostile.pickling import dict_of, tensor, tuple_of
from tests.hostile.zips import torch_zip

DATA = bytes(range(16))
W = '{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
Found = dict[str, tuple[str, list[int], bytes]]


def file(header: str | bytes, data: bytes = DATA) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data


def by_reference(data: bytes) -> Found | None:
    """What the reference reader has; None when it refuses."""
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (about["dtype"], list(about["shape"]), bytes(about["data"])) for name, about in found}


def by_us(data: bytes) -> Found | None:
    """The same by the reader of this package, without the aliases that metadata may declare."""
    source = MemorySource(data)
    try:
        root = reader.read(source, None, DEFAULT_LIMITS).root  # type: ignore[arg-type] - there is nothing inside
    except SdconvertError as error:
        assert str(error).isprintable()
        return None
    assert type(root) is Dict
    found: Found = {}
    for name, ref in root.pairs:
        assert type(name) is str
        assert type(ref) is TensorRef
        storage = ref.pieces[0].storage
        shape = [*ref.shape[:-1], ref.shape[-1] * 2] if ref.dtype.packed > 1 else list(ref.shape)
        if storage.name == name:
            found[name] = (ref.dtype.code or "", shape, read(source, storage.offset, storage.nbytes))
    return found


def agree(data: bytes) -> bool:
    """Whether both take it. AssertionError when only the reference refuses, or both take it and differ."""
    theirs, ours = by_reference(data), by_us(data)
    assert ours is None or theirs == ours, data
    return ours is not None


def one(shape: str = "[4]", offsets: str = "[0,16]", more: str = "") -> str:
    return f'{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}{more}}}}}'


REFUSED = {
    "minus-zero": one(offsets="[-0,16]"),
    "minus-zero-shape": f'{{"w":{{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}},"v":{W}}}',
    "fraction": one("[4.0]"),
    "exponent": one(offsets="[0,1.6e1]"),
    "leading-zero": one("[04]"),
    "plus": one("[+4]"),
    "no-digits": one("[-]"),
    "dot": one("[4.]"),
    "2-64": one("[18446744073709551616]"),
    "unknown-too-large": one(more=',"x":' + "9" * 400),
    "unknown-exponent": one(more=',"x":[{"y":1e999}]'),
    "unknown-half-pair": one(more=',"x":"\\ud800"'),
    "unknown-key-half-pair": one(more=',"x":{"\\ud800":1}'),
    "unknown-deep": one(more=',"x":' + "[" * 126 + "]" * 126),
    "name-half-pair": f'{{"\\ud800":{W}}}',
    "name-not-utf8": b'{"\xff":' + W.encode() + b"}",
    "name-overlong": b'{"\xc0\x80":' + W.encode() + b"}",
    "name-utf8-surrogate": b'{"\xed\xa0\x80":' + W.encode() + b"}",
    "name-raw-control": f'{{"\x1f":{W}}}',
    "bom": "\ufeff" + one(),
    "tail-nul": one() + "\0",
    "tail-form-feed": one() + "\f",
    "tail-no-break-space": one() + "\xa0",
    "metadata-twice": f'{{"__metadata__":{{}},"__metadata__":{{}},"w":{W}}}',
    "metadata-null-twice": f'{{"__metadata__":null,"__metadata__":null,"w":{W}}}',
    "field-twice": one(more=',"shape":[4]'),
    "empty-by-wrapping": f'{{"w":{W},"z":{{"dtype":"F32","shape":[{1 << 62},{1 << 62},0],"data_offsets":[16,16]}}}}',
}
"""What the reference reader refuses."""

STRICTER = {
    "name-twice": f'{{"w":{W},"w":{W}}}',
    "metadata-key-twice": f'{{"__metadata__":{{"a":"1","a":"2"}},"w":{W}}}',
    "unknown-twice": one(more=',"x":1,"x":2'),
    "fields-by-position": '{"w":["F32",[4],[0,16]]}',
    "dtype-as-variant": '{"w":{"dtype":{"F32":null},"shape":[4],"data_offsets":[0,16]}}',
    "99-dimensions": one("[" + "1," * 98 + "4]"),
    "empty-2-63": f'{{"w":{W},"z":{{"dtype":"F32","shape":[0,{1 << 63}],"data_offsets":[16,16]}}}}',
    "empty-wide": f'{{"w":{W},"z":{{"dtype":"F32","shape":[0,{1 << 62},{1 << 62}],"data_offsets":[16,16]}}}}',
}
"""What it takes, and is refused here: readers differ in what it is, or torch could not hold it."""

TAKEN = {
    "plain": one(),
    "spaces-of-all-kinds": f"\n\r\t {one()}",
    "only-a-newline": f"\n{one()}",
    "spaces": f'  {{ "w" :\t{W}\r\n}} \n',
    "unknown": one(more=',"x":[{"y":-0,"z":-1.5e300}]'),
    "unknown-100-deep": one(more=',"x":' + "[" * 100 + "]" * 100),
    "escapes": '{"\\u0077\\ud83d\\ude00\\/":' + W + "}",
    "keys-escaped": one().replace("dtype", "\\u0064type"),
    "metadata-null": f'{{"__metadata__":null,"w":{W}}}',
    "metadata-escaped": f'{{"__met\\u0061data__":{{"a":"b"}},"w":{W}}}',
    "scalar": '{"v":{"dtype":"I64","shape":[],"data_offsets":[8,16]},'
    '"w":{"dtype":"C64","shape":[],"data_offsets":[0,8]}}',
    "f4": '{"w":{"dtype":"F4","shape":[32],"data_offsets":[0,16]}}',
    "empty-before": f'{{"z":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"w":{W}}}',
    "empty-after": f'{{"z":{{"dtype":"F32","shape":[9,0],"data_offsets":[16,16]}},"w":{W}}}',
    "empty-wide": f'{{"w":{W},"z":{{"dtype":"F32","shape":[0,{1 << 62},1],"data_offsets":[16,16]}}}}',
}


@pytest.mark.parametrize("header", REFUSED.values(), ids=REFUSED)
def test_what_the_reference_refuses_is_refused(header: str | bytes) -> None:
    assert by_reference(file(header)) is None
    assert by_us(file(header)) is None


@pytest.mark.parametrize("header", STRICTER.values(), ids=STRICTER)
def test_what_is_refused_beyond_it(header: str) -> None:
    assert by_reference(file(header)) is not None
    assert by_us(file(header)) is None


@pytest.mark.parametrize("header", TAKEN.values(), ids=TAKEN)
def test_what_both_take_is_the_same(header: str) -> None:
    assert agree(file(header))


_NUMBERS = ("-0", "0", "1", "4", "15", "16", "17", "1.0", "4e0", "04", "-1", str(1 << 53), str(1 << 62), str(1 << 63))
_NUMBERS += (str((1 << 64) - 1), str(1 << 64), "9" * 400, "1e999", "null", "true", '"4"', "[]", "{}", "NaN")
_PIECES = (*'{}[],:"\\ \t\n\r0-+.eE', *_NUMBERS, '"w"', '"shape"', '"dtype"', '"data_offsets"', '"__metadata__"')
_PIECES += (
    W,
    f'"v":{W},',
    '"F64"',
    '"BOOL"',
    "\\ud800",
    "\\udc00",
    "\\u0000",
    "\x00",
    "\x1f",
    "\x7f",
    "\ufeff",
    "\xa0",
)
_PIECES += (',"x":1', ',"x":{"a":[1,{}]}', '"\\u0077"', "\U0001f600", "/", "\\/", "\\x", '"__metadata__":{"a":"w"},')
_SEEDS = (*[*TAKEN.values()] * 8, *STRICTER.values(), *(one for one in REFUSED.values() if type(one) is str))


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9.eE+]+|\s+|.', re.DOTALL)


def mutated(chance: random.Random) -> bytes:
    """A header with one or two things done to its signs, and the data as long as it was or nearly."""
    signs = _TOKEN.findall(chance.choice(_SEEDS))
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(signs))
        match chance.randrange(8):
            case 0:
                signs.insert(at, chance.choice(_PIECES))
            case 1:
                signs[at] = chance.choice(_PIECES)
            case 2:
                del signs[at : at + chance.randint(1, 3)]
            case 3:
                signs[at:at] = signs[(start := chance.randrange(len(signs))) : start + chance.randint(1, 12)]
            case 4:
                signs[at:at] = [chance.choice(" \t\n\r\f\0\xa0")]
            case 5 | 6:
                numbers = [place for place, sign in enumerate(signs) if sign[-1].isdigit()]
                signs[chance.choice(numbers or [at])] = chance.choice(_NUMBERS)
            case 7:
                inside = [place for place, sign in enumerate(signs) if sign[:1] == '"'] or [at]
                place = chance.choice(inside)
                signs[place] = signs[place][:1] + chance.choice(_PIECES) + signs[place][1:]
        signs = signs or ["{}"]
    raw = bytearray("".join(signs).encode("utf-8", "surrogatepass"))
    if raw and chance.random() < 0.1:
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return file(bytes(raw), chance.choice((DATA, DATA, DATA, DATA, DATA + b"x", DATA[:8], b"")))


def test_mutations_never_are_taken_where_the_reference_refuses() -> None:
    chance = random.Random(5)
    taken = sum(agree(mutated(chance)) for _ in range(20_000))
    assert taken > 500


_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "BF16", "I8", "BOOL", "F4", "F8_E4M3", "C64", "F6_E2M3", "U64", "f32"]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, -1, 1.0, None, 1 << 62, 1 << 64]), max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 24, 32, -1, 8.0]), min_size=2, max_size=2)
        | st.tuples(st.just(0), st.sampled_from([4, 8, 16])),
    },
    optional={"x": st.text(max_size=2) | st.integers() | st.floats(allow_nan=True)},
)


@given(st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), _TENSOR, max_size=2), st.sampled_from([0, 8, 16]))
def test_headers_of_any_numbers(header: dict[str, object], nbytes: int) -> None:
    agree(file(json.dumps(header), bytes(nbytes)))


def test_a_header_beyond_the_limit_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(file(one() + " " * 100_000_000))
    with pytest.raises(UnreadableError, match=r"Limits\.header_bytes"):
        sdconvert.open(path)


@pytest.mark.parametrize("shape", [(1 << 31, 1 << 31, 0), (1 << 32, 1 << 32, 0), (0, 1 << 40, 1 << 22), (1 << 62, 0)])
def test_empty_tensors_of_wide_shapes_are_written_only_if_they_can_be_read(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    sizes = tuple_of(*shape)
    data = torch_zip(dict_of(("w", tensor()), ("z", tensor(sizes, tuple_of(*[1] * len(shape))))))
    path, output = tmp_path / "w.pt", tmp_path / "w.safetensors"
    path.write_bytes(data)
    try:
        sdconvert.convert(path)
    except UnreadableError as error:
        assert "64 bits" in str(error)
        assert not output.exists()
    else:
        assert agree(output.read_bytes())
