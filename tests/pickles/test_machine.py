"""The pickle machine builds what was pickled, calls nothing, and says where a pickle goes wrong."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import threading
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdconvert.errors import SdconvertError, UnreadableError, UnsupportedError
from sdconvert.limits import Limits
from sdconvert.pickles.machine import run
from sdconvert.pickles.nodes import Call, Global, Pairs, PersId
from sdconvert.source import MemorySource
from tests.pickles.thawing import loosened, run_bytes, thaw

PROTOCOLS = range(6)

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 900), 1 << 900),
    st.sampled_from([0, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, -(1 << 31), -(1 << 31) - 1, -1]),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters(codec="utf-16", exclude_categories=[]), max_size=20),
    st.sampled_from(["", "x" * 255, "x" * 256, "\ud800", "line\nfeed\\u0041", "\0\x1a\r"]),
    st.binary(max_size=20),
    st.sampled_from([b"", b"x" * 255, b"y" * 256, b"z" * 5000, bytes(range(256))]),
    st.binary(max_size=8).map(bytearray),
)
hashable = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4).map(tuple), st.frozensets(inner, max_size=4)),
    max_leaves=6,
)
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(hashable, inner, max_size=5),
        st.sets(hashable, max_size=5),
        st.frozensets(hashable, max_size=5),
    ),
    max_leaves=25,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(value=values)
@example(value=list(range(3000)))
@example(value={str(i): (i, i) for i in range(1500)})
@example(value=[b"b" * 70_000, "t" * 70_000, bytearray(70_000), 1 << 3000])
def test_what_was_pickled_is_built(protocol: int, value: Any) -> None:
    data = pickle.dumps(value, protocol)
    pickled = run_bytes(data)
    assert pickled.end == len(data)
    built = thaw(pickled.root)
    expected = loosened(value)
    assert built == expected
    assert repr(built) == repr(expected) or "{" in repr(value)  # 1, 1.0 and True are equal; a set has no order.


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(value=values)
def test_and_the_python_pickler_which_does_not_frame_alike(protocol: int, value: Any) -> None:
    data = pickletools.optimize(pickle.dumps(value, protocol))
    assert thaw(run_bytes(data).root) == loosened(value)
    pure = pickle._dumps(value, protocol)  # type: ignore[attr-defined]
    assert thaw(run_bytes(pure).root) == loosened(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(edges=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=25), kinds=st.integers(0, 255))
@example(edges=[(0, 0)], kinds=0)
@example(edges=[(0, 1), (1, 0), (0, 1)], kinds=1)
def test_what_is_shared_is_shared_and_what_is_cyclic_is_cyclic(
    protocol: int, edges: list[tuple[int, int]], kinds: int
) -> None:
    containers: list[Any] = [{} if kinds >> i & 1 else [] for i in range(8)]
    for number, (owner, member) in enumerate(edges):
        if type(containers[owner]) is dict:
            containers[owner][number] = containers[member]
        else:
            containers[owner].append(containers[member])
    assert is_same_graph(containers, run_bytes(pickle.dumps(containers, protocol)).root)


def is_same_graph(value: Any, node: Any) -> bool:
    """Whether two graphs have the same shape: a walk in step, each container paired with exactly one."""
    pairs: dict[int, int] = {}
    todo = [(value, node)]
    while todo:
        left, right = todo.pop()
        known = pairs.get(id(left))
        if known is not None:
            if known != id(right):
                return False
            continue
        pairs[id(left)] = id(right)
        if type(left) is dict:
            if type(right) is not Pairs or list(left) != [key for key, _ in right.pairs]:
                return False
            todo += zip(left.values(), (item for _, item in right.pairs), strict=True)
        else:
            if type(right) is not list or len(right) != len(left):
                return False
            todo += zip(left, right, strict=True)
    return len(set(pairs.values())) == len(pairs)


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


# Pickles written by hand, one or more for every opcode; Python's unpickler says what each means.
BY_HAND = {
    "INT": b"I-12\n.",
    "INT bool": b"(I01\nI00\nt.",
    "LONG": b"L123456789012345678901234567890L\n.",
    "LONG without L": b"L-5\n.",
    "FLOAT": b"F-1.5e-3\n.",
    "FLOAT inf": b"(Finf\nF-inf\nt.",
    "STRING": b"S'it\\'s \\x41\\n'\n.",
    "STRING double quotes": b'S"a\'b"\n.',
    "UNICODE": b"Vp\\u00e9 \\U0001f600 \\\\u0041\n.",
    "NONE": b"N.",
    "LIST": b"(I1\nI2\nl.",
    "EMPTY_LIST APPEND": b"]I1\na.",
    "APPENDS": b"](I1\nI2\ne.",
    "APPENDS nothing": b"](e.",
    "DICT": b"(I1\nI2\nI3\nI4\nd.",
    "SETITEM": b"}I1\nI2\ns.",
    "SETITEMS twice the same key": b"}(I1\nI2\nI1\nI3\nu.",
    "TUPLE": b"(I1\nI2\nt.",
    "EMPTY_TUPLE": b").",
    "TUPLE1": b"I1\n\x85.",
    "TUPLE2": b"I1\nI2\n\x86.",
    "TUPLE3": b"I0\nI1\nI2\nI3\n\x87.",
    "POP": b"I1\nI2\n0.",
    "POP a mark": b"I1\n(0.",
    "POP_MARK": b"I1\n(I2\nI3\n1.",
    "DUP": b"]2\x86.",
    "PUT GET": b"I7\np3\n0g3\n.",
    "BINPUT BINGET": b"I7\nq\x030h\x03.",
    "LONG_BINPUT LONG_BINGET": b"I7\nr\x00\x00\x01\x000j\x00\x00\x01\x00.",
    "memo is a reference": b"]q\x00h\x00\x86h\x00I1\na0.",
    "memo from 1 on": b"I7\nq\x01I8\nq\x02]q\x03(h\x01h\x02h\x03t.",
    "memo with a gap, then the next": b"I7\nq\x00I8\nq\x05I9\n\x94(h\x00h\x05h\x02t.",
    "memo written over": b"I7\nq\x00I8\nq\x01I9\nq\x00p1\n(h\x00h\x01g0\nt.",
    "PUT after MEMOIZE": b"\x80\x04I7\n\x94I8\nr\x01\x00\x00\x00I9\n\x94(h\x00h\x01j\x02\x00\x00\x00t.",
    "MEMOIZE": b"\x80\x04]\x94h\x00\x86.",
    "BININT": b"J\xff\xff\xff\xff.",
    "BININT1": b"K\xff.",
    "BININT2": b"M\xff\xff.",
    "LONG1": b"\x8a\x02\xff\x00.",
    "LONG1 nothing": b"\x8a\x00.",
    "LONG1 negative": b"\x8a\x01\x80.",
    "LONG4": b"\x8b\x02\x00\x00\x00\x00\x80.",
    "BINFLOAT": b"G" + struct.pack(">d", -0.1) + b".",
    "BINUNICODE": b"X" + u32(3) + "é1".encode() + b".",
    "SHORT_BINUNICODE": b"\x8c\x03" + "é1".encode() + b".",
    "BINUNICODE8": b"\x8d" + u64(3) + "é1".encode() + b".",
    "SHORT_BINSTRING": b"U\x03abc.",
    "BINSTRING": b"T" + u32(3) + b"abc.",
    "BINBYTES": b"B" + u32(3) + b"\0\xff\x80.",
    "SHORT_BINBYTES": b"C\x03\0\xff\x80.",
    "BINBYTES8": b"\x8e" + u64(3) + b"\0\xff\x80.",
    "BYTEARRAY8": b"\x96" + u64(3) + b"\0\xff\x80.",
    "NEWTRUE NEWFALSE": b"\x88\x89\x86.",
    "EMPTY_SET ADDITEMS": b"\x8f(I1\nI2\nI1\n\x90.",
    "FROZENSET": b"(I1\nI2\n\x91.",
    "PROTO": b"\x80\x00I1\n.",
    "PROTO again": b"\x80\x02\x80\x05N.",
    "FRAME": b"\x80\x04\x95" + u64(2) + b"N.",
    "FRAME two of them": b"\x80\x04\x95" + u64(1) + b"]" + b"\x95" + u64(4) + b"K\x01a.",
    "FRAME that is empty": b"\x80\x04\x95" + u64(0) + b"N.",
    "REDUCE": b"cbuiltins\ncomplex\n(K\x01K\x02tR.",
    "REDUCE of a set": b"c__builtin__\nset\n](K\x01e\x85R.",
    "STACK_GLOBAL REDUCE": b"\x80\x04\x8c\x08builtins\x8c\x09frozenset\x93](K\x01e\x85R.",
    "NEWOBJ": b"cbuiltins\nbytes\n)\x81.",
    "OBJ": b"(cbuiltins\ncomplex\nK\x01K\x02o.",
    "INST": b"(K\x01K\x02ibuiltins\ncomplex\n.",
    "a long line": b"V" + b"x" * 700_000 + b"\n.",
    "a text across windows": b"](" + (b"X" + u32(1000) + b"x" * 1000) * 600 + b"e.",
    "a text longer than a window": b"(X" + u32(700_000) + b"x" * 700_000 + b"K\x01t.",
    "bytes longer than a window": b"(B" + u32(700_000) + b"x" * 700_000 + b"K\x01t.",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_every_opcode_means_what_python_says(name: str) -> None:
    data = BY_HAND[name]
    theirs = loosened(pickle.loads(data))
    pickled = run_bytes(data)
    assert pickled.end == len(data)
    assert thaw(pickled.root) == theirs
    assert repr(thaw(pickled.root)) == repr(theirs)


def global_of(node: Any) -> str:
    assert type(node) is Global
    return node.full


def test_global_is_a_name() -> None:
    assert global_of(run_bytes(b"cos\nsystem\n.").root) == "os.system"
    assert global_of(run_bytes(b"\x80\x04\x8c\x02os\x8c\x0cpath.lexists\x93.").root) == "os.path.lexists"


def test_every_global_is_seen_once_in_order_even_when_it_is_dropped() -> None:
    pickled = run_bytes(b"cb\nx\n0ca\ny\n0cb\nx\n0(icc\nz\n.")
    assert [name.full for name in pickled.globals] == ["b.x", "a.y", "cc.z"]


def test_persistent_ids_of_any_shape_are_kept() -> None:
    pickled = run_bytes(b"((P17 a\nX\x01\x00\x00\x00k\x8c\x01vK\x05tQt.")
    first, second = pickled.persistent
    assert (first.pid, type(second)) == ("17 a", PersId)
    assert second.pid == (first, "k", "v", 5)
    assert pickled.root == (second,)


def test_build_setitems_and_appends_stay_with_the_object() -> None:
    node = run_bytes(b"cm\nC\n)\x81(K\x01e(K\x02K\x03u}b]b.").root
    assert type(node) is Call
    assert (global_of(node.func), node.args, node.items, node.pairs) == ("m.C", (), [1], [(2, 3)])
    assert [thaw(state) for state in node.states] == [{}, []]


def test_newobj_ex_keeps_its_keywords() -> None:
    node = run_bytes(b"\x80\x04cm\nC\nK\x01\x85}X\x01\0\0\0kK\x02s\x92.").root
    assert (node.args, thaw(node.kwargs)) == ((1,), {"k": 2})


def test_a_call_of_a_call_is_two_calls() -> None:
    node = run_bytes(b"cm\npartial\n)R)R.").root
    assert type(node) is Call
    assert type(node.func) is Call


def test_every_opcode_of_every_protocol_is_known() -> None:
    """Each either occurs in a pickle above, or is refused by name below."""
    extra = [b"\x80\x04cm\nC\n)}\x92.", b"cm\nC\n)\x81}b.", b"Pid\n.", b"K\x01Q."]
    seen = {op.name for data in [*BY_HAND.values(), *extra] for op, _, _ in pickletools.genops(data)}
    refused = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert seen | refused == {op.name for op in pickletools.opcodes}
    for data in extra:
        run_bytes(data)


@pytest.mark.parametrize("data", [b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\0\0\0.", b"\x97.", b"]\x98."])
def test_values_that_are_not_in_the_file_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedError, match="not in the file"):
        run_bytes(data)


class Bomb:
    """Calls `act` when it is unpickled."""

    def __init__(self, act: Any, *args: Any) -> None:
        self.act, self.args = act, args

    def __reduce__(self) -> Any:
        return self.act, self.args


def test_odd_escapes_are_read_as_python_reads_them_and_no_warning_is_raised() -> None:
    assert run_bytes(rb"S'\q\8\777\101\x41\v\\'" + b"\n.").root == b"\\q\\8\xffAA\x0b\\"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_called(protocol: int, tmp_path: Any) -> None:
    data = pickle.dumps([Bomb(os.mkdir, str(tmp_path / "pwned")), Bomb(partial, os.mkdir, "x")], protocol)
    pickled = run_bytes(data)
    assert {name.full for name in pickled.globals} >= {f"{os.mkdir.__module__}.mkdir", "functools.partial"}
    assert list(tmp_path.iterdir()) == []
    pickle.loads(data)  # The bomb is a real one.
    assert (tmp_path / "pwned").is_dir()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_imported(protocol: int) -> None:
    data = pickle.dumps([timedelta(3), Decimal("1.5"), threading.Thread], protocol)
    data += b""
    forged = data.replace(b"datetime", b"datetimX").replace(b"decimal", b"decimaX")
    assert any(name.module == "datetimX" for name in run_bytes(forged).globals)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_depth_is_no_recursion(protocol: int) -> None:
    opening, closing = (b"]" if protocol else b"(l"), b"a"
    depth = 100_000
    head = b"\x80%c" % protocol if protocol > 1 else b""
    node = run_bytes(head + opening * depth + closing * (depth - 1) + b".").root
    for _ in range(depth - 1):
        (node,) = node
    assert node == []


def test_what_doubles_in_a_pickle_does_not_double_here() -> None:
    bomb = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(200)) + b"."
    assert len(run_bytes(bomb).root) == 2


DAMAGED = {
    "nothing on the stack": b".",
    "REDUCE of nothing": b"R.",
    "REDUCE of one": b")R.",
    "REDUCE of a number": b"K\x01)R.",
    "REDUCE with a list": b"cm\nC\n]R.",
    "APPEND to nothing": b"K\x01a.",
    "APPEND to a number": b"K\x01K\x02a.",
    "APPEND to a dict": b"}K\x02a.",
    "SETITEM on a list": b"]K\x01K\x02s.",
    "SETITEMS odd": b"}(K\x01K\x02K\x03u.",
    "DICT odd": b"(K\x01d.",
    "ADDITEMS to a list": b"](K\x01\x90.",
    "BUILD on a list": b"]}b.",
    "TUPLE without MARK": b"K\x01t.",
    "LIST without MARK": b"K\x01l.",
    "DICT without MARK": b"d.",
    "APPENDS without MARK": b"]K\x01e.",
    "SETITEMS without MARK": b"}u.",
    "POP_MARK without MARK": b"N1.",
    "POP of nothing": b"0.",
    "TUPLE1 of nothing": b"\x85.",
    "TUPLE2 of one": b"N\x86.",
    "TUPLE3 of two": b"NN\x87.",
    "DUP of nothing": b"2.",
    "OBJ of nothing": b"(o.",
    "PUT of nothing": b"p0\n.",
    "BINPUT of nothing": b"q\x00.",
    "MEMOIZE of nothing": b"\x94.",
    "GET unknown": b"g5\n.",
    "BINGET unknown": b"h\x05.",
    "LONG_BINGET unknown": b"j\x05\0\0\0.",
    "GET of words": b"gfive\n.",
    "STACK_GLOBAL of numbers": b"K\x01K\x02\x93.",
    "INT of words": b"Iseven\n.",
    "INT of nothing": b"I\n.",
    "FLOAT of words": b"Fx\n.",
    "STRING without quotes": b"Sabc\n.",
    "STRING half quoted": b"S'abc\n.",
    "STRING bad escape": b"S'\\xZZ'\n.",
    "UNICODE bad escape": b"V\\uZZZZ\n.",
    "BINUNICODE not UTF-8": b"X\x01\0\0\0\xff.",
    "LONG4 negative length": b"\x8b\xff\xff\xff\xff.",
    "BINSTRING negative length": b"T\xff\xff\xff\xff.",
    "BINBYTES8 huge": b"\x8e" + u64((1 << 64) - 1) + b".",
    "BINUNICODE huge": b"X\xff\xff\xff\xffabc.",
    "protocol of the future": b"\x80\x06N.",
    "no opcode": b"\xff.",
    "zero byte": b"\0.",
    "a mark left open": b"K\x01(.",
    "FRAME longer than the file": b"\x80\x04\x95" + u64(100) + b"N.",
    "FRAME in a FRAME": b"\x80\x04\x95" + u64(11) + b"\x95" + u64(2) + b"N.",
    "FRAME too short": b"\x80\x04\x95" + u64(1) + b"K\x01.",
    "FRAME ends after STOP": b"\x80\x04\x95" + u64(4) + b"N.NN",
    "FRAME ends inside a text": b"\x80\x04\x95" + u64(4) + b"\x8c\x05abcde.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_said_with_its_byte(name: str) -> None:
    with pytest.raises(UnreadableError, match=r"near byte \d+"):
        run_bytes(DAMAGED[name])


WHOLE = [pickle.dumps({"a": [1, 2.5, (None, "é" * 300), b"x" * 5000, {3, 4}], "b": 1 << 80}, p) for p in PROTOCOLS]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_is_cut_short_is_unreadable_wherever_it_is_cut(protocol: int) -> None:
    data = WHOLE[protocol]
    run_bytes(data)
    for end in range(len(data)):
        with pytest.raises(UnreadableError):
            run_bytes(data[:end])


def test_the_end_is_found_whatever_follows() -> None:
    for data in WHOLE:
        for tail in (b"", b"\0", b"garbage" * 100, data):
            assert run_bytes(data + tail).end == len(data)


def test_a_pickle_may_start_anywhere() -> None:
    for data in WHOLE:
        pickled = run(MemorySource(b"#" * 1000 + data), 1000)
        assert pickled.end == 1000 + len(data)


def test_frames_and_windows_do_not_depend_on_each_other() -> None:
    value = [b"x" * 100_000, "y" * 100_000, list(range(100_000))] * 2
    assert thaw(run_bytes(pickle.dumps(value, 4)).root) == loosened(value)


@pytest.mark.parametrize(
    ("framed", "claim", "after", "says"),
    [
        (b"J\1\0", 3, b"\0\0.", "an opcode crosses the end of its frame"),
        (b"X\5\0\0\0ab", 7, b"cde.", "a value crosses the end of its frame"),
        (b"B\x88\x13\0\0" + bytes(4990), 4995, bytes(10) + b".", "a value crosses the end of its frame"),
        (b"ca\nb", 4, b"\n.", "a value crosses the end of its frame"),
        (b"N.", 5, b"abc", "its last frame does not end where it said"),
        (b"N", 1, b"\x95" + bytes(7), "a value of 8 bytes is announced, only 7 are left"),
        (b"\x95\1\0\0\0\0\0\0\0N", 10, b".", "a frame starts inside a frame"),
        (b"N.", 3, b"", "a value of 3 bytes is announced, only 2 are left"),
        (b"N.", (1 << 64) - 1, b"", "only 2 are left"),
    ],
)
def test_a_frame_is_held_to_its_word(framed: bytes, claim: int, after: bytes, says: str) -> None:
    """Of the first eight, CPython's two unpicklers, in C and in Python, agree about two."""
    with pytest.raises(UnreadableError, match=says):
        run_bytes(b"\x80\x04\x95" + claim.to_bytes(8, "little") + framed + after)


@settings(max_examples=400)
@given(data=st.binary(max_size=60), tail=st.sampled_from([b".", b"]a.", b"t.", b"R."]))
def test_noise_is_read_or_refused_and_nothing_else(data: bytes, tail: bytes) -> None:
    try:
        assert run_bytes(data + tail).end <= len(data + tail)
    except SdconvertError as error:
        assert "\n" not in str(error)


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes]), max_size=25),
    st.binary(max_size=5),
)
def test_opcodes_in_any_order_are_read_or_refused_and_nothing_else(ops: list[bytes], noise: bytes) -> None:
    try:
        run_bytes(b"K\x01]}(" + noise.join(ops) + b".")
    except SdconvertError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(pickle_bytes=100), b"](" + b"K\x01" * 200 + b"e."),
        (Limits(number_bytes=8), pickle.dumps(1 << 100, 2)),
        (Limits(number_bytes=8), b"I123456789\n."),
        (Limits(text_bytes=10), pickle.dumps("x" * 300_000, 2)),
    ],
)
def test_limits_hold(limits: Limits, data: bytes) -> None:
    run_bytes(data)
    with pytest.raises(UnreadableError):
        run(MemorySource(data + bytes(1 << 19)), limits=limits)
