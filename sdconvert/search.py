"""Where in a checkpoint's tree the weights are.

Strategy: one walk finds which subtrees hold tensors at all; a second, over those only,
collects candidates of three ranks. Named by a wrapper key (``state_dict``, ``model``, ...)
beats complete by its own look (a module, a dict that ``state_dict()`` made or whose names
have dots) beats loose tensors. One candidate of the best rank is the answer; loose ones
are taken together; several of the others are a choice that only a person can make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .checkpoint import TENSORS, Dict, Object, TensorRef, Value
from .errors import UnreadableError
from .pickles.modules import is_module
from .tree import children

# What people call the state dict inside a checkpoint.
_WRAPPERS = """
    state_dict model_state_dict model_state model_dict model net network weights params parameters module
    model_weights model_params net_state_dict network_state_dict
"""
WRAPPERS = frozenset(_WRAPPERS.split())

_TRAINING = re.compile(
    r"(^|_)optim(izer)?s?(_|$|\d)|optimi[sz]er|^opt$|(^|_)(lr_)?sched(uler)?s?(_|$|\d)|^(grad_)?scaler(_|$)|^amp$"
    r"|(^|_)rng(_|$)|^random_state|^grad(ient)?s?$|^exp_avg(_sq)?$",
    re.IGNORECASE,
)
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._]|$|\d)|(^|[._])ema|ema$", re.IGNORECASE)
_TELLING = 200  # Characters of a key that tells by its words what it holds; a longer one is not looked through.
_DEPTH = 64
_LONGEST_PATH = 4096  # Characters of the names on the way to a state dict.
_LONGEST_KEY = 300  # Parts of a key.

LOOSE, COMPLETE, WRAPPED = 0, 1, 2

Path = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """A node that could be the state dict, where it is, and how sure that is."""

    path: Path
    node: Value
    rank: int

    @property
    def key(self) -> str:
        """The dotted path, as ``--key`` takes it; ``.`` for the root."""
        return ".".join(self.path) or "."

    @property
    def is_averaged(self) -> bool:
        """Whether its name says that it is a running average of the weights."""
        return any(_AVERAGED.search(part) for part in self.path if len(part) <= _TELLING)


def _parts(node: Value) -> Iterator[Value]:
    """What lies directly in a node, without names; the attributes of an object are a part of their own."""
    if type(node) is Dict:
        yield from (value for _, value in node.pairs)
    elif type(node) is list:
        yield from node
    elif type(node) is Object:
        yield node.state
        yield from (value for _, value in node.pairs)
        yield from node.items
        yield from node.args


class Census:
    """Which containers of a tree have tensors somewhere below them, and how many tensors there are.

    numpy arrays count as tensors only where there is no torch tensor at all: in a training
    checkpoint they are random states and statistics. `size` counts all values in all containers.
    """

    def __init__(self, root: Value) -> None:
        above: dict[int, int | list[int]] = {}  # The owner of a container, or its owners.
        # The tensors, and the containers that hold some directly: torch's, and numpy's.
        torch: tuple[set[int], set[int]] = (set(), set())
        numpy: tuple[set[int], set[int]] = (set(), set())
        if type(root) in TENSORS:
            (numpy if type(root) is TensorRef and root.array else torch)[0].add(id(root))
        todo = [root]
        self.size = 0
        while todo:
            node = todo.pop()
            me = id(node)
            for child in _parts(node):
                self.size += 1
                kind = type(child)
                if kind in TENSORS:
                    tensors, holders = numpy if kind is TensorRef and child.array else torch
                    tensors.add(id(child))
                    holders.add(me)
                elif kind is Dict or kind is list or kind is Object:
                    owners = above.get(id(child))
                    if owners is None:
                        above[id(child)] = me
                        if child is not root:
                            todo.append(child)
                    elif isinstance(owners, int):
                        above[id(child)] = [owners, me]
                    else:
                        owners.append(me)
        self.arrays = not torch[0]
        tensors, self._holds = numpy if self.arrays else torch
        self.tensors = len(tensors)
        spread = list(self._holds)
        while spread:
            owners = above.get(spread.pop(), [])
            for owner in [owners] if isinstance(owners, int) else owners:
                if owner not in self._holds:
                    self._holds.add(owner)
                    spread.append(owner)

    @property
    def patience(self) -> int:
        """Values that a walk along all paths may look at: shared parts a few times each, not 2**60 times."""
        return 10_000 + 16 * self.size

    def is_tensor(self, node: Value) -> bool:
        """Whether `node` is itself something that belongs in a state dict."""
        kind = type(node)
        return kind in TENSORS and (kind is not TensorRef or self.arrays or not node.array)

    def are_tensors(self, nodes: Iterable[Value]) -> bool:
        """Whether all of `nodes` are plain tensors that belong in a state dict."""
        return all(type(node) is TensorRef and (self.arrays or not node.array) for node in nodes)

    def holds(self, node: Value) -> bool:
        """Whether `node` is a tensor or has one below it."""
        return id(node) in self._holds or self.is_tensor(node)


def is_training_state(name: str, node: Value) -> bool:
    """Whether a subtree is an optimizer's, a scheduler's, a scaler's or a random generator's."""
    if type(node) not in (Dict, list, Object) or is_module(node):
        return False
    if type(node) is Object and node.type_name.startswith("torch.optim."):
        return True
    if type(node) is Dict and "param_groups" in node and "state" in node:
        return True
    return len(name) <= _TELLING and bool(_TRAINING.search(name))


def _is_optimizer(root: Value, census: Census) -> bool:
    """Whether `root` is an optimizer's state and nothing else that holds tensors."""
    return is_training_state("", root) and (
        type(root) is Object or all(name in ("state", "param_groups") for name, c in children(root) if census.holds(c))
    )


def is_marked(node: Value) -> bool:
    """Whether torch itself made the node: a module, or the dict of ``state_dict()``, which carries versions."""
    if type(node) is Dict:
        return node.attributes is not None and "_metadata" in node.attributes
    return is_module(node)


def _has_dotted_names(node: Value, census: Census) -> bool:
    return type(node) is Dict and any(
        type(key) is str and "." in key and census.is_tensor(value) for key, value in node.pairs
    )


def find(root: Value, census: Census) -> list[Found]:
    """The candidates of the best rank that `root` has, in the order of the file; several loose ones are one."""
    return _find(root, _Search(census))


def _find(root: Value, search: _Search) -> list[Found]:
    if _is_optimizer(root, search.census):
        return []
    best = _best(search.below(root, (), frozenset(), _LONGEST_PATH))
    if len(best) > 1 and best[0].rank == LOOSE:
        return [_together(best, root, ())]
    if best and best[0].rank == WRAPPED:  # A model among the hyper-parameters is not the one that was trained.
        depth = min(len(found.path) for found in best)
        best = [found for found in best if len(found.path) == depth]
    unique: dict[int, Found] = {}
    for found in best:
        unique.setdefault(id(found.node), found)
    return list(unique.values())


def find_in_members(root: Value, census: Census) -> list[Found]:
    """The candidates in a dict of files, each of which is a checkpoint of its own: never taken together."""
    search = _Search(census)
    found = [
        Found((name, *one.path), one.node, one.rank)
        for name, child in children(root)
        if census.holds(child) and not is_training_state(name, child)
        for one in _find(child, search)
    ]
    # A wrapper's name tells what is the model in its own file; it makes no file better than another.
    best = max((min(one.rank, COMPLETE) for one in found), default=LOOSE)
    return [one for one in found if min(one.rank, COMPLETE) == best]


class _Search:
    """One walk over the containers that hold tensors. `left` is how many more values it looks at: a container
    may be shared, but is not looked at once for each of 2**60 paths to it."""

    def __init__(self, census: Census) -> None:
        self.census = census
        self.left = census.patience

    def below(self, node: Value, path: Path, above: frozenset[int], room: int) -> list[Found]:
        """The candidates at and below `node`; `above` are the containers on the way to it, `room` the characters
        that names below it may have."""
        if self.census.is_tensor(node):
            return [Found(path, node, LOOSE)]
        if is_marked(node):
            return [Found(path, node, COMPLETE)]
        if len(above) > _DEPTH or id(node) in above:
            return []
        inside = list(children(node))
        self.left -= 1 + len(inside)
        if self.left < 0:
            raise UnreadableError("it is shared beyond reason inside itself. It is hostile; --key may reach a part")
        above |= {id(node)}
        found: list[Found] = []
        direct = False
        for name, child in inside:
            if self.census.is_tensor(child):
                direct = True
            elif self.census.holds(child) and not is_training_state(name, child):
                if len(name) > room:
                    raise UnreadableError(
                        f"names of more than {_LONGEST_PATH} characters lead to tensors. It is hostile"
                    )
                inner = _best(self.below(child, (*path, name), above, room - len(name)))
                if name.lower() in WRAPPERS and inner:
                    if inner[0].rank == LOOSE:
                        inner = [_together(inner, child, (*path, name))]
                    inner = [Found(one.path, one.node, WRAPPED) for one in inner]
                found += inner
        best = max((one.rank for one in found), default=LOOSE)
        if best < WRAPPED and _has_dotted_names(node, self.census):
            return [Found(path, node, COMPLETE)]
        if best == LOOSE and direct:
            return [Found(path, node, LOOSE)]
        return found


def _best(found: list[Found]) -> list[Found]:
    rank = max((candidate.rank for candidate in found), default=LOOSE)
    return [candidate for candidate in found if candidate.rank == rank]


def _together(found: list[Found], node: Value, path: Path) -> Found:
    """The lowest node below `node`, which lies at `path`, that holds all of `found`."""
    common = found[0].path
    for other in found[1:]:
        same = 0
        while same < min(len(common), len(other.path)) and common[same] == other.path[same]:
            same += 1
        common = common[:same]
    for name in common[len(path) :]:
        node = next(child for key, child in children(node) if key == name)
    return Found(common, node, LOOSE)


def walk(root: Value, key: str) -> Found | None:
    """The node at a dotted path; parts may be list indexes, names with dots in them, and a module's children."""
    if key in ("", "."):
        return Found((), root, WRAPPED)
    if key.count(".") > _LONGEST_KEY:
        return None
    todo: list[tuple[Value, list[str], Path]] = [(root, key.split("."), ())]
    for _ in range(10_000):
        if not todo:
            return None
        node, parts, path = todo.pop()
        if not parts:
            return Found(path, node, WRAPPED)
        steps = dict(children(node))
        if is_module(node):
            for inside in ("_modules", "_parameters", "_buffers"):
                steps.update(children(steps.get(inside)))
        for size in range(1, len(parts) + 1):  # Pushed last, tried first: the longest name.
            name = ".".join(parts[:size])
            if name in steps:
                todo.append((steps[name], parts[size:], (*path, name)))
    return None
