"""The pickle machine: opcodes in, nodes out.

Strategy: a real stack machine over every opcode of protocols 0 to 5 (the definitions are
in CPython's ``pickletools``), because names and arguments can reach an opcode by stack or
memo and only running the stack finds them. But it calls nothing and imports nothing:
what CPython would call becomes a `Call`. It shares by reference, so what doubles in a
pickle does not double here; it never recurses; it allocates only what is there to be read.
FRAME is held to its word: CPython's C and Python unpicklers treat a frame that lies
differently, and what two readers read differently is refused.

The opcodes that make up a checkpoint are spelled out in one loop, the most frequent first:
a call for each would take twice as long. The others are functions in the table of `opcodes`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..limits import DEFAULT_LIMITS, Limits
from ..source import Source
from .nodes import Call, Global, Node, PersId
from .opcodes import I32, OPCODES, U32, long_text, text
from .stack import Machine

_U16 = struct.Struct("<H").unpack_from


@dataclass(frozen=True)
class Pickled:
    """One pickle, read: the `root` node, the offset just after its STOP, the distinct names it
    mentions and the persistent ids it holds, both in order of appearance."""

    root: Node
    end: int
    globals: tuple[Global, ...]
    persistent: tuple[PersId, ...]


def run(source: Source, offset: int = 0, *, limits: Limits = DEFAULT_LIMITS) -> Pickled:
    """Read the pickle that starts at `offset`. UnreadableError says at which byte it goes wrong."""
    machine = Machine(source, offset, limits)
    try:
        root = _interpret(machine)
    except IndexError:
        raise machine.damaged("an opcode wants more than the stack holds") from None
    except KeyError as error:
        raise machine.damaged(f"memo entry {error} was never stored") from None
    return Pickled(root, machine.base + machine.pos, tuple(machine.globals.values()), tuple(machine.persistent))


def _interpret(m: Machine) -> Node:
    """Interpret up to STOP; what is then on top of the stack."""
    buf, pos, safe, stack, memo, remember = m.buf, m.pos, m.safe, m.stack, m.memo, m.remember
    longest = m.limits.text_bytes
    while True:
        if pos >= safe:
            m.pos = pos
            m.advance()
            buf, pos, safe = m.buf, m.pos, m.safe
        op = buf[pos]
        pos += 1
        if op == 0x72:  # LONG_BINPUT
            number = U32(buf, pos)[0]
            pos += 4
            if number == len(memo):
                remember(stack[-1])
            else:
                memo, remember = m.put(number, stack[-1])
        elif op == 0x68:  # BINGET
            try:
                stack.append(memo[buf[pos]])
            except IndexError:
                raise KeyError(buf[pos]) from None
            pos += 1
        elif op == 0x4B:  # BININT1
            stack.append(buf[pos])
            pos += 1
        elif op == 0x58:  # BINUNICODE
            count = U32(buf, pos)[0]
            end = pos + 4 + count
            if end < safe and count <= longest:
                try:
                    stack.append(buf[pos + 4 : end].decode())
                except UnicodeDecodeError:
                    stack.append(text(m, buf[pos + 4 : end]))
                pos = end
            else:
                m.pos, m.stack = pos, stack
                long_text(m, U32, 4)
                buf, pos, safe = m.buf, m.pos, m.safe
        elif op == 0x28:  # MARK
            m.marks.append(stack)
            stack = []
        elif op == 0x74:  # TUPLE
            items = tuple(stack)
            if not m.marks:
                m.pos = pos
                raise m.damaged("a TUPLE without its MARK")
            stack = m.marks.pop()
            stack.append(items)
        elif op == 0x52:  # REDUCE
            args = stack.pop()
            if type(args) is tuple and type(stack[-1]) is Global:
                stack[-1] = Call(stack[-1], args)
            else:
                stack[-1] = m.call(stack[-1], args)
        elif op == 0x86:  # TUPLE2
            last = stack.pop()
            stack[-1] = (stack[-1], last)
        elif op == 0x85:  # TUPLE1
            stack[-1] = (stack[-1],)
        elif op == 0x51:  # BINPERSID
            stack[-1] = pid = PersId(stack[-1])
            m.persistent.append(pid)
        elif op == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif op == 0x89:  # NEWFALSE
            stack.append(False)
        elif op == 0x71:  # BINPUT
            number = buf[pos]
            pos += 1
            if number == len(memo):
                remember(stack[-1])
            else:
                memo, remember = m.put(number, stack[-1])
        elif op == 0x4A:  # BININT
            stack.append(I32(buf, pos)[0])
            pos += 4
        elif op == 0x4D:  # BININT2
            stack.append(_U16(buf, pos)[0])
            pos += 2
        elif op == 0x6A:  # LONG_BINGET
            number = U32(buf, pos)[0]
            try:
                stack.append(memo[number])
            except IndexError:
                raise KeyError(number) from None
            pos += 4
        elif op == 0x94:  # MEMOIZE
            remember(stack[-1])
        elif op == 0x2E:  # STOP
            m.pos = pos
            if m.frame_end is not None and m.base + pos != m.frame_end:
                raise m.damaged("its last frame does not end where it said")
            return stack.pop()
        else:
            m.pos, m.stack = pos, stack
            act = OPCODES.get(op)
            if act is None:
                raise m.damaged(f"0x{op:02x} is not an opcode")
            act(m)
            buf, pos, safe, stack, memo, remember = m.buf, m.pos, m.safe, m.stack, m.memo, m.remember
