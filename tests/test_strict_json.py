"""JSON that is read strictly, and with little memory."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdconvert.errors import UnreadableError
from sdconvert.source import MemorySource
from sdconvert.strict_json import cost, members, parse, parse_text

MOST = 1 << 30
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def listed(text: str | bytes, most: int = MOST) -> list[tuple[str, object]]:
    data = text.encode() if isinstance(text, str) else text
    return list(members(MemorySource(b"ab" + data), 2, len(data), "header", most))


@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 1]), st.booleans())
def test_members_are_those_of_the_object(value: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    assert listed(text) == list(value.items())
    assert parse(MemorySource(text), 0, len(text), "text", MOST) == value


@pytest.mark.parametrize("size", [(1 << 20) - 5, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("filler", ["a", "\u20ac", "\\u20ac", "1"], ids=["ascii", "wide", "escaped", "number"])
def test_values_across_the_edge_of_what_is_read_at_once(size: int, filler: str) -> None:
    count = size // len(filler.encode())
    value = int(filler * 1000) if filler == "1" else json.loads(f'"{filler * count}"')
    before = " " * size if filler == "1" else ""
    text = f'{{"a": 1, "b": {before}{json.dumps(value, ensure_ascii=filler != chr(0x20AC))}, "c": [12, {{}}]}}'
    assert listed(text) == [("a", 1), ("b", value), ("c", [12, {}])]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a { is missing"),
        ("[]", "a { is missing"),
        ('{"a":1', "a } is missing"),
        ('{"a":1}x', "something follows"),
        ('{"a":1}\0', "something follows"),
        ('{"a":1,}', "not JSON"),
        ("{1:1}", "a name is not a string"),
        ('{"a" 1}', "a : is missing"),
        ('{"a":01}', "a } is missing"),
        ('{"a":NaN}', "NaN is not JSON"),
        ('{"a":{"b":1,"b":1}}', "a name is there twice"),
        ('{"a":"\x01"}', "not JSON"),
        ('{"a":' + "[" * 100_000, "not JSON"),
        ('{"a":' + "9" * 5000 + "}", "not JSON"),
        (b'{"\xff":1}', "not JSON"),
        (b'{"a":1}\xc3', "not JSON"),
        ("\ufeff{}", "a { is missing"),
        ('{"a":tru', "not JSON"),
    ],
)
def test_what_is_no_json(text: str | bytes, says: str) -> None:
    with pytest.raises(UnreadableError, match=says):
        listed(text)


def test_no_integer_is_minus_zero() -> None:
    for text in ('{"a":-0}', '{"a":[1,-0]}', '{"a": -0 }', '{"a":[-0,1]}'):
        for value in (dict(listed(text)), parse_text(text, "text", MOST)):
            assert repr(value).count("-0.0") == 1
    assert listed('{"x,-0":[-1,-10]}') == [("x,-0", [-1, -10])]


def test_what_would_take_too_much_is_refused_before_it_does() -> None:
    text = '{"a":[' + "[]," * 2_000_000 + "1]}"
    data = text.encode()
    tracemalloc.start()
    try:
        for read in (
            lambda: parse(MemorySource(data), 0, len(data), "text", 20 << 20),
            lambda: parse_text(text, "text", 20 << 20),
            lambda: listed(data, 20 << 20),
        ):
            tracemalloc.reset_peak()
            with pytest.raises(UnreadableError, match=r"Limits\.json_bytes"):
                read()
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "unit", ["{},", "[],", "[[[[[]]]]],", '{"":{}},', "1234,", "1e9,", '"ab",', '{"a":"b","c":[]},']
)
def test_what_it_takes_is_told_beforehand(unit: str) -> None:
    text = '{"a":[' + unit * 50_000 + "1]}"
    tracemalloc.start()
    try:
        parse_text(text, "text", MOST)
        assert tracemalloc.get_traced_memory()[1] < cost(text) * 1.1
    finally:
        tracemalloc.stop()


def test_members_never_are_in_memory_together() -> None:
    text = json.dumps(
        {f"tensor.{i}": {"dtype": "F32", "shape": [1], "data_offsets": [i, i + 4]} for i in range(60_000)}
    )
    data = text.encode()
    source = MemorySource(data)
    tracemalloc.start()
    try:
        assert sum(1 for _ in members(source, 0, len(data), "header", 1 << 20)) == 60_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
