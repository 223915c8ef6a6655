"""What each opcode does to the stack; the definitions are in CPython's ``pickletools``."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from ..errors import UnsupportedError
from .nodes import Bag, Blob, Call, Pairs, PersId, kind_of
from .stack import Machine

I32 = struct.Struct("<i").unpack_from
U32 = struct.Struct("<I").unpack_from
U64 = struct.Struct("<Q").unpack_from
_F64 = struct.Struct(">d").unpack_from


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.?)", re.DOTALL)
_ESCAPED = {
    b"\\": b"\\", b"'": b"'", b'"': b'"', b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r",
    b"t": b"\t", b"v": b"\v",
}  # fmt: skip


def text(machine: Machine, raw: bytes) -> str:
    try:
        return str(raw, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise machine.damaged("a string is not UTF-8") from None


def long_text(m: Machine, unpack: Callable[[bytes, int], tuple[int, ...]], width: int) -> None:
    count = unpack(m.take(width), 0)[0]
    m.stack.append(text(m, m.take_text(count)))


def _python2_text(raw: bytes | Blob) -> str | bytes | Blob:
    """A str of Python 2 was bytes: text if it is ASCII, else left for whoever knows what it is."""
    return str(raw, "ascii") if isinstance(raw, bytes) and raw.isascii() else raw


def _quoted(m: Machine) -> None:
    line = m.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise m.damaged("a string has no quotes")
    try:
        raw = _ESCAPE.sub(_unescaped, line[1:-1])
    except KeyError:
        raise m.damaged("a string has a bad escape") from None
    m.stack.append(_python2_text(raw))


def _unescaped(match: re.Match[bytes]) -> bytes:
    """As Python's unpickler reads an escape. Its own decoder warns of odd ones, and a warning can be an error."""
    code = match[1]
    if code[:1].isdigit() and code < b"8":
        return bytes([int(code, 8) & 0xFF])
    if len(code) == 3:
        return bytes.fromhex(code[1:].decode())
    if code in (b"", b"x"):
        raise KeyError(code)
    return _ESCAPED.get(code, match[0])


def _escaped(m: Machine) -> None:
    try:
        m.stack.append(str(m.line(), "raw-unicode-escape"))
    except UnicodeDecodeError:
        raise m.damaged("a string has a bad escape") from None


def _decimal(m: Machine) -> None:
    line = m.line()
    if line in (b"00", b"01"):
        m.stack.append(line == b"01")
        return
    digits = line.removesuffix(b"L")
    if len(digits) > m.limits.number_bytes:
        raise m.damaged(f"an integer of {len(digits)} digits is longer than Limits.number_bytes")
    if not digits.removeprefix(b"-").isdigit():
        raise m.damaged("an integer is not one")
    m.stack.append(int(digits))


def _decimal_float(m: Machine) -> None:
    try:
        m.stack.append(float(m.line()))
    except ValueError:
        raise m.damaged("a float is not one") from None


def _long(m: Machine, width: int) -> None:
    count = m.take(1)[0] if width == 1 else I32(m.take(4), 0)[0]
    if count > m.limits.number_bytes:
        raise m.damaged(f"an integer of {count} bytes is longer than Limits.number_bytes")
    m.stack.append(int.from_bytes(m.take(count), "little", signed=True))


def _index(m: Machine) -> int:
    line = m.line()
    if not line.isdigit() or len(line) > 10:
        raise m.damaged("a memo index is not a reasonable number")
    return int(line)


def _frame(m: Machine) -> None:
    count = U64(m.take(8), 0)[0]
    if m.frame_end is not None:
        raise m.damaged("a frame starts inside a frame")
    m.frame_end = m.claim(count) + count
    m.set_safe()


def _proto(m: Machine) -> None:
    version = m.take(1)[0]
    if version > 5:
        raise m.damaged(f"protocol {version} does not exist")


def _global(m: Machine) -> None:
    module = text(m, m.line())
    m.stack.append(m.name(module, text(m, m.line())))


def _stack_global(m: Machine) -> None:
    name = m.stack.pop()
    m.stack[-1] = m.name(m.stack[-1], name)


def _inst(m: Machine) -> None:
    module = text(m, m.line())
    func = m.name(module, text(m, m.line()))
    args = tuple(m.pop_mark())
    m.stack.append(m.call(func, args))


def _obj(m: Machine) -> None:
    items = m.pop_mark()
    m.stack.append(m.call(items[0], tuple(items[1:])))


def _newobj(m: Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args)


def _newobj_ex(m: Machine) -> None:
    kwargs, args = m.stack.pop(), m.stack.pop()
    if type(kwargs) not in (Pairs, Call):
        raise m.damaged("a call's keyword arguments are not a dict")
    m.stack[-1] = m.call(m.stack[-1], args, kwargs)


def _build(m: Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is not Call:
        raise m.damaged(f"a state is given to what is no object: {kind_of(target)}")
    target.build(state)


def _persid(m: Machine) -> None:
    pid = PersId(text(m, m.line()))
    m.persistent.append(pid)
    m.stack.append(pid)


def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.put_pairs([key, value])


def _append(m: Machine) -> None:
    m.put_items([m.stack.pop()], list)


def _dict(m: Machine) -> None:
    flat = m.pop_mark()
    m.stack.append(Pairs())
    m.put_pairs(flat)


def _list(m: Machine) -> None:
    items = m.pop_mark()  # First: it replaces the stack.
    m.stack.append(items)


def _frozenset(m: Machine) -> None:
    items = m.pop_mark()
    m.stack.append(Bag(items))


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _pop_mark(m: Machine) -> None:
    m.pop_mark()


def _tuple3(m: Machine) -> None:
    m.stack[-3:] = [(m.stack[-3], m.stack[-2], m.stack[-1])]


def _put(m: Machine) -> None:
    m.put(_index(m), m.stack[-1])


def _get(m: Machine) -> None:
    index = _index(m)
    if type(m.memo) is list and index >= len(m.memo):
        raise KeyError(index)
    m.stack.append(m.memo[index])


def _refuse(what: str) -> Callable[[Machine], None]:
    def act(m: Machine) -> None:
        raise UnsupportedError(f"the pickle uses {what} at byte {m.base + m.pos}, whose values are not in the file")

    return act


OPCODES: dict[int, Callable[[Machine], None]] = {
    op[0]: act
    for op, act in {
        b"\x80": _proto,
        b"\x95": _frame,
        b"0": _pop,
        b"1": _pop_mark,
        b"2": lambda m: m.stack.append(m.stack[-1]),
        b"N": lambda m: m.stack.append(None),
        b"\x88": lambda m: m.stack.append(True),
        b"I": _decimal,
        b"L": _decimal,
        b"F": _decimal_float,
        b"G": lambda m: m.stack.append(_F64(m.take(8), 0)[0]),
        b"\x8a": lambda m: _long(m, 1),
        b"\x8b": lambda m: _long(m, 4),
        b"S": _quoted,
        b"V": _escaped,
        b"U": lambda m: m.stack.append(_python2_text(m.take_text(m.take(1)[0]))),
        b"T": lambda m: m.stack.append(_python2_text(m.take_bytes(I32(m.take(4), 0)[0]))),
        b"\x8c": lambda m: m.stack.append(text(m, m.take_text(m.take(1)[0]))),
        b"\x8d": lambda m: long_text(m, U64, 8),
        b"B": lambda m: m.stack.append(m.take_bytes(U32(m.take(4), 0)[0])),
        b"C": lambda m: m.stack.append(m.take(m.take(1)[0])),
        b"\x8e": lambda m: m.stack.append(m.take_bytes(U64(m.take(8), 0)[0])),
        b"\x96": lambda m: m.stack.append(m.take_bytes(U64(m.take(8), 0)[0])),
        b"c": _global,
        b"\x93": _stack_global,
        b"i": _inst,
        b"o": _obj,
        b"\x81": _newobj,
        b"\x92": _newobj_ex,
        b"b": _build,
        b"P": _persid,
        b"]": lambda m: m.stack.append([]),
        b"}": lambda m: m.stack.append(Pairs()),
        b"\x8f": lambda m: m.stack.append(Bag()),
        b"a": _append,
        b"e": lambda m: m.put_items(m.pop_mark(), list),
        b"\x90": lambda m: m.put_items(m.pop_mark(), Bag),
        b"s": _setitem,
        b"u": lambda m: m.put_pairs(m.pop_mark()),
        b"d": _dict,
        b"l": _list,
        b"\x91": _frozenset,
        b"\x87": _tuple3,
        b"p": _put,
        b"g": _get,
        b"\x82": _refuse("the extension registry"),
        b"\x83": _refuse("the extension registry"),
        b"\x84": _refuse("the extension registry"),
        b"\x97": _refuse("out-of-band buffers"),
        b"\x98": _refuse("out-of-band buffers"),
    }.items()
}
