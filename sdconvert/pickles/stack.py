"""What a pickle machine has at hand while it runs: the stack, the memo, and what was seen."""

from __future__ import annotations

from collections.abc import Callable

from ..limits import Limits
from ..source import Source
from .nodes import Bag, Call, Global, Node, Pairs, PersId, kind_of
from .window import Window


class Machine(Window):
    """The state of one run: the stack, the stacks below each MARK, the memo, and what was seen."""

    def __init__(self, source: Source, offset: int, limits: Limits) -> None:
        super().__init__(source, offset, limits)
        self.stack: list[Node] = []
        self.marks: list[list[Node]] = []
        # A list, which takes an eighth of a dict's memory, while whoever wrote it numbers from 0 on, as all do.
        self.memo: list[Node] | dict[int, Node] = []
        self.remember: Callable[[Node], object] = self.memo.append  # Stores under the number `len(memo)`.
        self.globals: dict[tuple[str, str], Global] = {}
        self.persistent: list[PersId] = []

    def pop_mark(self) -> list[Node]:
        items = self.stack
        if not self.marks:
            raise self.damaged("an opcode looks for a MARK that is not there")
        self.stack = self.marks.pop()
        return items

    def name(self, module: Node, name: Node) -> Global:
        if type(module) is not str or type(name) is not str:
            raise self.damaged("a global is named by something that is not a string")
        key = (module, name)
        found = self.globals.get(key)
        if found is None:
            if len(module) + len(name) > self.limits.name_bytes:
                raise self.damaged("a global's name is longer than Limits.name_bytes")
            found = self.globals[key] = Global(module, name)
        return found

    def call(self, func: Node, args: Node, kwargs: Node = None) -> Call:
        if type(args) is not tuple:
            raise self.damaged("a call's arguments are not a tuple")
        if type(func) not in (Global, Call, PersId):
            raise self.damaged(f"what is called is no function: {kind_of(func)}")
        return Call(func, args, kwargs)

    def put(self, number: int, node: Node) -> tuple[list[Node] | dict[int, Node], Callable[[Node], object]]:
        """Store what an opcode gives a number of its own; what `memo` and `remember` are from now on."""
        if type(self.memo) is list and number > len(self.memo):
            memo = self.memo = dict(enumerate(self.memo))
            self.remember = lambda node: memo.__setitem__(len(memo), node)
        if number == len(self.memo):
            self.remember(node)
        else:
            self.memo[number] = node
        return self.memo, self.remember

    def put_pairs(self, flat: list[Node]) -> None:
        target = self.stack[-1]
        if len(flat) % 2:
            raise self.damaged("a dict is given a key without a value")
        if type(target) is Pairs:
            if target.flat:
                target.flat.extend(flat)
            else:
                target.flat = flat  # The stack's own list until now, and nobody else's.
        elif type(target) is Call:
            if target.pairs is None:
                target.pairs = []
            target.pairs.extend(zip(flat[::2], flat[1::2], strict=True))
        else:
            raise self.damaged(f"an item is set on what holds none: {kind_of(target)}")

    def put_items(self, items: list[Node], kind: type) -> None:
        target = self.stack[-1]
        if type(target) is Call:
            if target.items is None:
                target.items = []
            target.items.extend(items)
        elif type(target) is list and kind is list:
            target.extend(items)
        elif type(target) is Bag and kind is Bag:
            if target.items:
                target.items.extend(items)
            else:
                target.items = items
        else:
            raise self.damaged(f"an item is added to what holds none: {kind_of(target)}")
