"""Random values as the opcodes of a pickle: what models are made of, and now and then what no model has."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ..hostile import pickling as p

NUMBERS = (-(1 << 63), -1, 0, 1, 2, 3, 4, 7, 16, 65, 255, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) + 4, 10**40)
WORDS = (
    "",
    "w",
    "weight",
    "a.b",
    "0",
    "model",
    "state_dict",
    "module.w",
    "__metadata__",
    "optimizer",
    "\x1b[2J",
    "cpu",
)
KINDS = ("FloatStorage", "HalfStorage", "LongStorage", "BoolStorage", "UntypedStorage", "QInt8Storage", "NoStorage")
_CLASSES = (
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.container.Sequential",
    "a.B",
    "os.system",
    "torch.device",
)
# Size, stride and offset in elements, of what fits into a storage of four.
_FITTING: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...] = (
    ((4,), (1,), 0),
    ((2, 2), (2, 1), 0),
    ((2, 2), (1, 2), 0),
    ((2,), (1,), 2),
    ((), (), 3),
    ((0,), (1,), 0),
    ((4,), (0,), 0),
)
_BRACKETS = ((b"](", b"e"), (b"(", b"t"), (b"(", b"l"), (b"\x8f(", b"\x90"), (b"(", b"\x91"))
"""Around a list, a tuple, a list of protocol 0, a set and a frozenset."""
_DEEPEST = 4


class Values:
    """Draws fragments, each of which pushes one value; `names` are the globals that the machine knows."""

    def __init__(self, chance: random.Random, names: tuple[str, ...]) -> None:
        self.chance, self.names = chance, names

    def value(self, depth: int = 0) -> bytes:
        """Any value; the deeper, the plainer."""
        holding = (self.parameter, self.held, self.sequence, self.module, self.call, self.kept)
        kinds: tuple[Callable[[int], bytes], ...] = (self.plain, self.tensor, self.tensor, *holding)
        return self.plain() if depth >= _DEEPEST else self.chance.choice(kinds)(depth + 1)

    def plain(self, _: int = 0) -> bytes:
        """Nothing that holds anything."""
        chance = self.chance
        match chance.randrange(7):
            case 0:
                return chance.choice((p.NONE, p.TRUE, p.FALSE, p.EMPTY, b"]", b"}"))
            case 1 | 2:
                return p.integer(chance.choice(NUMBERS))
            case 3:
                return p.real(chance.choice((0.5, -0.0, float("inf"), float("nan"))))
            case 4:
                return p.blob(chance.randbytes(chance.randrange(9)))
            case 5:
                return p.name(chance.choice(self.names + _CLASSES))
        return p.text(chance.choice(WORDS))

    def tensor(self, _: int = 0) -> bytes:
        """Mostly one that fits into the storage '0' of four floats."""
        chance = self.chance
        size, stride, offset = chance.choice(_FITTING)
        about: dict[str, Any] = {}
        if chance.random() < 0.2:
            about = {"key": chance.choice(WORDS), "numel": chance.choice(NUMBERS)}
        if chance.random() < 0.2:
            about["kind"] = "torch." + chance.choice(KINDS)
        if chance.random() < 0.1:
            size = tuple(chance.choice(NUMBERS) for _ in range(chance.randrange(4)))
        if chance.random() < 0.1:
            offset = chance.choice(NUMBERS)
        metadata = {chance.choice(("neg", "conj", "x")): True} if chance.random() < 0.1 else None
        return p.tensor(size, stride, offset=offset, metadata=metadata, **about)

    def parameter(self, depth: int = 0) -> bytes:
        """A tensor within something that stands for one."""
        how = self.chance.choice([one for one in self.names if "arameter" in one or "rebuild" in one])
        return p.call(
            how, self.tensor() if self.chance.random() < 0.8 else self.value(depth), True, self.held(_DEEPEST)
        )

    def held(self, depth: int = 0) -> bytes:
        """A dict, or what is one: its keys mostly words."""
        pairs = b"".join(self._key() + self.value(depth) for _ in range(self.chance.randrange(4)))
        return self.chance.choice((b"}", p.call("collections.OrderedDict"))) + b"(" + pairs + b"u"

    def _key(self) -> bytes:
        return p.text(self.chance.choice(WORDS)) if self.chance.random() < 0.9 else self.plain()

    def sequence(self, depth: int = 0) -> bytes:
        """A list, a tuple, or a set."""
        items = b"".join(self.value(depth) for _ in range(self.chance.randrange(4)))
        start, end = self.chance.choice(_BRACKETS)
        return start + items + end

    def module(self, depth: int = 0) -> bytes:
        """A module, whose parts mostly are of the kind that they should be."""
        parts = [self.held(depth) if self.chance.random() < 0.9 else self.value(depth) for _ in range(2)]
        more = {self.chance.choice(("_buffers", "training", "_non_persistent_buffers_set", "x")): self.value(depth)}
        return p.module(self.chance.choice(_CLASSES), parts[0], parts[1], **more)

    def call(self, depth: int = 0) -> bytes:
        """Any known global, or another, called with anything; sometimes with a state after it."""
        how = self.chance.choice(self.names if self.chance.random() < 0.9 else _CLASSES)
        called = p.call(how, *[self.value(depth) for _ in range(self.chance.randrange(7))])
        return called + self.value(depth) + p.BUILD if self.chance.random() < 0.3 else called

    def kept(self, depth: int = 0) -> bytes:
        """A list that is in the memo before it is filled, and may hold itself; what is in the memo; twice the same."""
        index, inner = self.chance.randrange(4), self.value(depth)
        return self.chance.choice(
            (b"]" + p.put(index) + inner + b"a", inner + p.put(index), p.get(index), inner + b"2\x86")
        )
