"""What a pickle says, inert.

Numbers, strings, None, tuples and lists are themselves: Python's own cannot do anything.
Everything that would name, call or build something becomes one of the five classes
below, which have no behaviour at all. Identity is kept: what the pickle shares is shared,
what it makes cyclic is cyclic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..source import Source

# A node is any of: None, bool, int, float, str, bytes, tuple, list, or a class of this file.
Node = Any

# Modules that changed their name; the table of meanings knows only the second.
_RENAMED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "torch.tensor": "torch._tensor",
}


class Global:
    """The name of a class or function. `full` is ``module.name`` as written, `key` in today's spelling."""

    __slots__ = ("full", "key", "module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.full = f"{module}.{name}"
        self.key = f"{_RENAMED.get(module, module)}.{name}"


class States(list[Node]):
    """The arguments of several BUILDs of one object."""

    __slots__ = ()


NO_STATE: Node = object()


class Call:
    """`func(*args)` that nobody makes: REDUCE, NEWOBJ, NEWOBJ_EX, OBJ, INST and what came after them.

    `state` is the argument of BUILD, `pairs` and `items` are what SETITEM and APPEND put in.
    """

    __slots__ = ("args", "func", "items", "kwargs", "pairs", "state")

    def __init__(self, func: Node, args: Node, kwargs: Node = None) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.state: Node = NO_STATE
        self.pairs: list[tuple[Node, Node]] | None = None
        self.items: list[Node] | None = None

    @property
    def states(self) -> Sequence[Node]:
        """The arguments of BUILD: none or, nearly always, one, for which a pickle of a million calls wants no list."""
        if self.state is NO_STATE:
            return ()
        return self.state if type(self.state) is States else (self.state,)

    def build(self, state: Node) -> None:
        """What BUILD does: one more state."""
        if self.state is NO_STATE:
            self.state = state
        elif type(self.state) is States:
            self.state.append(state)
        else:
            self.state = States([self.state, state])


class Pairs:
    """A dict, as the keys and values in turn, in the order in which they were set. Keys may repeat and need no hash."""

    __slots__ = ("flat",)

    def __init__(self, flat: list[Node] | tuple[()] = ()) -> None:
        self.flat = flat  # A list only when there is something to hold: one byte of a pickle makes a dict.

    @property
    def pairs(self) -> list[tuple[Node, Node]]:
        """Each key and its value, in a new list: a third of a kilobyte more for a dict of three."""
        return list(zip(self.flat[::2], self.flat[1::2], strict=True))


class Bag:
    """A set or frozenset, as the list of what was added."""

    __slots__ = ("items",)

    def __init__(self, items: list[Node] | tuple[()] = ()) -> None:
        self.items = items


class PersId:
    """A persistent id: something that lies outside the pickle, such as a storage."""

    __slots__ = ("pid",)

    def __init__(self, pid: Node) -> None:
        self.pid = pid


class Blob:
    """A long byte string that stays where it is: `nbytes` bytes of `source` from `offset` on."""

    __slots__ = ("nbytes", "offset", "source")

    def __init__(self, source: Source, offset: int, nbytes: int) -> None:
        self.source = source
        self.offset = offset
        self.nbytes = nbytes


_IN_WORDS = {
    Global: "class or function",
    Call: "object",
    Pairs: "dict",
    Bag: "set",
    PersId: "persistent id",
    Blob: "bytes",
    type(None): "None",
}


def kind_of(node: Node) -> str:
    """What `node` stands for, in the words of the language that wrote the pickle: ``dict``, ``int``, ..."""
    return _IN_WORDS.get(type(node), type(node).__name__)
