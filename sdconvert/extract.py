"""From a checkpoint to the state dict that is wanted: which tensors, under which names.

Nothing is guessed in silence: what was taken, what was left out and why, and what else
could have been meant all go into the `StateDict`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from .checkpoint import (
    TENSORS,
    Candidate,
    Checkpoint,
    Dict,
    EncodedTensor,
    LostTensor,
    Object,
    Skipped,
    StateDict,
    TensorRef,
    Value,
)
from .errors import ChoiceError, UnreadableError, UnsupportedError, listed
from .fsdp import refuse_parts_of_ranks
from .limits import DEFAULT_LIMITS, Limits
from .names import Names, check_names, unwrapped
from .pickles.modules import SPELLED, is_module, module_weights, overriding
from .recipes import spread, with_recipes
from .search import WRAPPED, Census, Found, find, find_in_members, is_marked, is_training_state, walk
from .tree import children

_SHOWN = 20  # Candidates in a message.
_LISTED = 200  # Candidates in the data of an error.
_SPELLED_OUT = 200  # Characters of a class's name.
_COUNTED = 300_000  # Tensors that are counted for messages; beyond that they are many.


def extract(
    checkpoint: Checkpoint, *, key: str | None = None, names: Names | None = None, limits: Limits = DEFAULT_LIMITS
) -> StateDict:
    """The state dict of `checkpoint`: the one at `key`, or the one there is.

    ChoiceError when several fit, UnsupportedError when a tensor of it cannot be written,
    UnreadableError when there is none.
    """
    if key is not None and key.partition(".")[0] in checkpoint.aside:
        tree = Dict([(name, one.root) for name, one in checkpoint.aside.items()])
        checkpoint = replace(checkpoint, root=tree, kind="", members=False, aside={})
    census = Census(checkpoint.root)
    extraction = _Extraction(checkpoint, census, limits)
    if key is not None:
        chosen = walk(checkpoint.root, key)
        if chosen is None:
            raise ChoiceError(f"there is nothing at key {key!r}{_hint(extraction)}", extraction.candidates())
        if not any(_tensors_below(chosen.node)):
            extraction.census = Census(chosen.node)  # Only arrays there: then they are what was asked for.
        others: list[Found] = []
    else:
        chosen, others = _choose(extraction)
    entries = extraction.flatten(chosen)
    tensors, skipped = extraction.sort_out(entries)
    if not tensors:
        where = f" at key {key!r}" if key is not None else " in it"
        empty = next((f", but {name} is {one.why}" for name, one in entries if type(one) is LostTensor), "")
        raise _nothing(extraction, where, empty)
    named, dropped = (names or Names()).apply(with_recipes(tensors, chosen.node, limits))
    refuse_parts_of_ranks(named, checkpoint.globals)
    lost = [(name, tensor) for name, tensor in named.items() if type(tensor) is LostTensor]
    if lost:
        shown = "; ".join(f"{name} is {tensor.why}" for name, tensor in lost[:3])
        more = f"; and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise UnsupportedError(f"there is no faithful way to write {shown}{more}. --exclude NAME leaves a tensor out")
    plain, encoded = spread(named, limits)
    check_names((*named, *plain), limits)
    return StateDict(
        tensors=plain,
        key="" if chosen.key == "." else chosen.key,
        kind=checkpoint.kind or extraction.kind(chosen),
        skipped=(*skipped, *dropped, *extraction.beside(chosen), *_aside(checkpoint), *checkpoint.skipped),
        warnings=(*checkpoint.warnings, *extraction.warnings, *_about_others(chosen, others)),
        others=tuple(extraction.candidate(other) for other in others),
        leftovers=extraction.leftovers(chosen),
        shards=checkpoint.shards,
        encoded=encoded,
    )


def candidates(checkpoint: Checkpoint, *, limits: Limits = DEFAULT_LIMITS) -> list[Candidate]:
    """Every state dict that `extract` would choose from."""
    return _Extraction(checkpoint, Census(checkpoint.root), limits).candidates()


def _choose(extraction: _Extraction) -> tuple[Found, list[Found]]:
    """The one candidate, and those that lost to it; ChoiceError when it takes a person to say."""
    found = extraction.find()
    if not found:
        raise _nothing(extraction, " in it")
    if len(found) > 1:
        raw = [one for one in found if not one.is_averaged]
        averaged = [one for one in found if one.is_averaged]
        if len(raw) == 1 and averaged:
            names, *others = ({unwrapped(name) for name, _ in extraction.tensors(one)} for one in (*raw, *averaged))
            if all(other - {"n_averaged"} == names for other in others):
                return raw[0], averaged
        if len(found) == 2 and extraction.tensors(found[0]) == extraction.tensors(found[1]):
            extraction.warnings.append(f"{found[0].key} was taken; {found[1].key} holds the same tensors")
            return found[0], []
        options = extraction.candidates(found)
        shown = "; ".join(f"--key {c.key} ({c.tensors} tensors, {c.nbytes} bytes)" for c in options[:_SHOWN])
        more = f"; and {len(options) - _SHOWN} more" if len(options) > _SHOWN else ""
        raise ChoiceError(f"it holds several state dicts. Choose one with {shown}{more}; or all with --key .", options)
    return found[0], []


def _hint(extraction: _Extraction) -> str:
    options = listed([f"--key {one.key}" for one in extraction.candidates()], _SHOWN)
    return f". There is {options}" if options else ""


def _nothing(extraction: _Extraction, where: str, but: str = "") -> UnreadableError | UnsupportedError:
    """The error for a checkpoint without a state dict. `but` is what it has instead."""
    for name, one in extraction.checkpoint.aside.items():
        return UnsupportedError(f"there are no tensors{where}, only {one.what}. --key {name} takes them all the same")
    return UnreadableError(f"there are no tensors{where}{but or _only_training(extraction)}")


def _aside(checkpoint: Checkpoint) -> Iterator[Skipped]:
    for name, one in checkpoint.aside.items():
        yield Skipped(name, f"{one.what}; --key {name} takes them")


def _only_training(extraction: _Extraction) -> str:
    root = extraction.checkpoint.root
    if is_training_state("", root):  # The parameters themselves are keys in an optimizer, which are no names.
        return ", only training state" + ". --key . takes it all the same" * (type(root) is Dict)
    training = [n for n, c in children(root) if extraction.census.holds(c) and is_training_state(n, c)]
    if training:
        return f", only training state. --key {training[0]} takes it all the same"
    modules = sorted({name.module.partition(".")[0] for name in extraction.checkpoint.globals})
    known = [name for name in modules if name in ("sklearn", "xgboost", "lightgbm", "pandas", "keras", "tensorflow")]
    return f": it is an object of {known[0]}, not of torch" if known else ""


def _about_others(chosen: Found, others: list[Found]) -> Iterator[str]:
    for other in others:
        yield f"{chosen.key} was taken; {other.key} holds averaged weights of the same names (--key {other.key})"


def _tensors_below(node: Value) -> Iterator[Value]:
    """The torch tensors at and below `node`, each once."""
    todo, seen = [node], {id(node)}
    while todo:
        node = todo.pop()
        if type(node) in TENSORS and (type(node) is not TensorRef or not node.array):
            yield node
        elif type(node) in (Dict, list, Object):
            for _, child in children(node):
                if (type(child) in TENSORS or type(child) in (Dict, list, Object)) and id(child) not in seen:
                    seen.add(id(child))
                    todo.append(child)


class _Extraction:
    """The tree with its census, and what was noticed while walking it."""

    def __init__(self, checkpoint: Checkpoint, census: Census, limits: Limits) -> None:
        self.checkpoint, self.census, self.limits = checkpoint, census, limits
        self.whole = census  # `census` may be narrowed to the part that was asked for.
        self.overrides = overriding(checkpoint.sources)
        self.warnings: list[str] = []
        # Containers may be shared (a module used twice), but a name for each of 2**60 paths is an attack,
        # and so is a long prefix before each of many short names.
        self.most = min(limits.tensors, 10_000 + 16 * census.tensors)
        self.spelled = min(SPELLED, (16 << 20) + 128 * census.size)

    def candidates(self, found: list[Found] | None = None) -> list[Candidate]:
        """What there is to choose from; `found` if it is known already."""
        candidates: list[Candidate] = []
        left = _COUNTED  # Candidates may share what is in them.
        for one in (self.find() if found is None else found)[:_LISTED]:
            candidates.append(self.candidate(one))
            left -= candidates[-1].tensors
            if left < 0:
                break
        return candidates

    def candidate(self, found: Found) -> Candidate:
        tensors = [value for _, value in self.tensors(found)]
        parts = [part for one in tensors if type(one) is EncodedTensor for part in one.parts.values()]
        nbytes = sum(tensor.nbytes for tensor in (*tensors, *parts) if type(tensor) is TensorRef)
        return Candidate(found.key, len(tensors), nbytes, self.kind(found))

    def find(self) -> list[Found]:
        """The state dicts that there are, best first."""
        search = find_in_members if self.checkpoint.members else find
        return search(self.checkpoint.root, self.census)

    def kind(self, found: Found) -> str:
        """The kind of state dict that was found."""
        if is_module(found.node):
            return "module"
        if type(found.node) in TENSORS:
            return "tensor"
        return "wrapped" if len(found.path) > self.checkpoint.members else "state_dict"

    def tensors(self, found: Found) -> list[tuple[str, Value]]:
        """The tensors of a candidate by name; those of two are equal where they are the same parts of the file."""
        return [(name, value) for name, value in self.flatten(found) if self.census.is_tensor(value)]

    def flatten(self, found: Found) -> list[tuple[str, Value]]:
        """Everything below a candidate that is a tensor or stands where one could, names joined with dots."""
        if self.census.is_tensor(found.node):
            return [(found.path[-1] if found.path else "tensor", found.node)]
        entries: list[tuple[str, Value]] = []
        prefix, below = "", iter([("", found.node)])
        # What is left of each container that is being walked, its prefix, and its identity.
        walking: list[tuple[str, Iterator[tuple[str, Value]], int]] = []
        above: set[int] = set()
        patience, spelled, is_tensor = self.census.patience, self.spelled, self.census.is_tensor
        while True:
            for name, node in below:
                if is_tensor(node) or (walking and not self.census.holds(node)):
                    if prefix:
                        spelled -= len(prefix) + len(name)
                        if spelled < 0:
                            raise self._too_long()
                    entries.append((prefix + name, node))
                elif is_module(node):
                    inside = module_weights(node, self.overrides, self.most, self.limits.name_bytes, self.spelled)
                    self.warnings += (text for text in inside.warnings if text not in self.warnings)
                    head = f"{prefix}{name}." if walking else ""
                    spelled -= inside.spelled + len(head) * len(inside.entries)
                    if spelled < 0:
                        raise self._too_long()
                    entries += ((head + part, value) for part, value in inside.entries)
                elif id(node) in above:
                    raise UnreadableError(f"{prefix}{name} contains itself. The file is damaged or hostile")
                elif len(walking) > 200:
                    raise UnreadableError("it is nested beyond reason. The file is damaged or hostile")
                else:
                    walking.append((prefix, below, id(node)))
                    above.add(id(node))
                    prefix = f"{prefix}{name}." if len(walking) > 1 else ""
                    if len(prefix) > self.limits.name_bytes:
                        raise UnreadableError(
                            f"a name begins with {len(prefix)} characters, more than Limits.name_bytes. "
                            "The file is hostile"
                        )
                    wanted = list(self._wanted(node, found))
                    below = iter(wanted)
                    patience -= 1 + len(wanted)  # A container may have 2**60 paths to it, and nothing that is wanted.
                    break
            else:
                if not walking:
                    self._check_count(len(entries), patience)
                    return entries
                prefix, below, key = walking.pop()
                above.discard(key)
            self._check_count(len(entries), patience)

    def _check_count(self, names: int, patience: int) -> None:
        if names > self.most or patience < 0:
            limit = " (Limits.tensors)" if self.most == self.limits.tensors else ""
            raise UnreadableError(f"it would give more than {self.most} names{limit}. The file is hostile")

    def _too_long(self) -> UnreadableError:
        return UnreadableError(f"its names take more than {self.spelled} characters. The file is hostile")

    def _wanted(self, node: Value, found: Found) -> Iterator[tuple[str, Value]]:
        """The children of `node`, without training state unless that was asked for, or is in a real state dict."""
        if found.rank == WRAPPED or is_marked(node):
            return children(node)
        return ((name, child) for name, child in children(node) if not is_training_state(name, child))

    def sort_out(self, entries: list[tuple[str, Value]]) -> tuple[dict[str, Value], list[Skipped]]:
        """Tensors by name, and what is not one. UnreadableError when a name is there twice."""
        tensors = dict(entries)
        if len(tensors) == len(entries) and self.census.are_tensors(tensors.values()):
            return tensors, []
        tensors = {}
        skipped: list[Skipped] = []
        for name, value in entries:
            if not self.census.is_tensor(value) or (type(value) is LostTensor and value.empty):
                skipped.append(Skipped(name, describe(value)))
            elif name in tensors:
                raise UnreadableError(f"two tensors would both be named {name!r}. --key can choose between them")
            else:
                tensors[name] = value
        return tensors, skipped

    def beside(self, chosen: Found) -> Iterator[Skipped]:
        """What lies beside the chosen node, on the way to it, and what is training state inside it."""
        left = _COUNTED
        for prefix, name, child in self._siblings(chosen):
            if is_training_state(name, child):
                yield Skipped(prefix + name, "training state")
            elif self.whole.holds(child):
                count = sum(1 for _ in islice(_tensors_below(child), max(left, 0)))
                left -= 20_000 + count  # Those beside each other may share what is in them.
                what = f"{count} tensor{'s' * (count != 1)}" if left > 0 else "tensors"
                why = f"outside of the state dict ({what})"
                if Found((name,), child, WRAPPED).is_averaged:
                    why = f"averaged weights ({what}); --key {prefix}{name} takes them"
                yield Skipped(prefix + name, why)
            else:
                yield Skipped(prefix + name, describe(child))

    def _siblings(self, chosen: Found) -> Iterator[tuple[str, str, Value]]:
        node, prefix = self.checkpoint.root, ""
        spelled = self.spelled
        for step in chosen.path:
            following = None
            for name, child in [] if is_module(node) else children(node):
                if name == step:
                    following = child
                else:
                    spelled -= len(prefix) + len(name) if prefix else 0
                    if spelled < 0:
                        raise self._too_long()
                    yield prefix, name, child
            node, prefix = following, f"{prefix}{step}."
        if not is_marked(chosen.node) and chosen.rank != WRAPPED:
            for name, child in children(chosen.node):
                if is_training_state(name, child):
                    yield prefix, name, child

    def leftovers(self, chosen: Found) -> Dict:
        """The values that are not weights, for ``--extras``."""
        result = Dict([(prefix + name, child) for prefix, name, child in self._siblings(chosen)])
        if type(chosen.node) is Dict and not self.census.are_tensors(value for _, value in chosen.node.pairs):
            result.pairs += ((name, value) for name, value in children(chosen.node) if not self.census.holds(value))
        return result


def describe(value: Value) -> str:
    """What a value is, for a person, when it is not a tensor that is taken."""
    if type(value) is LostTensor:
        return value.why
    if type(value) is Object:
        return f"an object ({value.type_name[:_SPELLED_OUT]})"
    if type(value) in TENSORS:
        return "a numpy array beside torch tensors"
    if type(value) in (Dict, list):
        return "no tensors in it"
    return "None" if value is None else f"not a tensor ({type(value).__name__})"
