"""A model's own tensors, and which name of a source goes to which, as ``Module.load_state_dict`` would have it.

That function hands every module all names below it, which takes quadratic time for a flat list of modules.
Here a module that loads as ``nn.Module`` does is matched by its own names alone. One with a
``_load_from_state_dict`` of its own, or with hooks before it, is asked: it is handed the names below it,
with stand-ins on meta of the right shape and dtype, told to assign, and afterwards its
parameters say where each stand-in went. What it did is then undone. Hooks run once, and no byte is read for it.
Only a module that does something else with the tensors (computes with them, keeps one, fails on
meta) is asked again when the real ones are there (`Visit.real`).
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn import Module

from ..errors import UnsupportedError
from .offer import EXTRA, Offer
from .packed import pack, version_of
from .slots import Node, Slot, asks, fits, nodes, own, shape_of, takes_extra, tree
from .targets import Target, Targets
from .trial import Trial

_ASSIGN = "assign_to_params_buffers"


@dataclass(eq=False, slots=True)
class Goal:
    """A slot, and what goes into it, and how: the source's tensor `offer`, whose `value` is known once it is read, or
    a `value` that the module itself made."""

    slot: Slot
    offer: Offer | None
    target: Target
    value: torch.Tensor | None = None


class Postponed(NamedTuple):
    """A module that can only be asked with real tensors; `state` maps the names below it to the source's."""

    module: Module
    prefix: str
    state: dict[str, str]


@dataclass
class Found:
    """The outcome of a visit, in torch's order. `errors` are in torch's words."""

    goals: list[Goal] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    misfits: list[tuple[Slot, str]] = field(default_factory=list)
    uncast: list[tuple[Slot, str]] = field(default_factory=list)
    """Slots, and the source's tensors of a shape or a dtype that they cannot take."""
    extras: list[tuple[Module, str]] = field(default_factory=list)
    """Modules that take an extra state, and its name."""
    postponed: list[Postponed] = field(default_factory=list)
    scopes: list[tuple[Module, str, Iterable[str]]] = field(default_factory=list)
    """Modules with the names that were below them: the model, and those that were asked, after that."""
    trials: list[Trial] = field(default_factory=list)
    """What was asked with real tensors, for undoing it."""


class Scope:
    """Names below a module, and what they stand for. `below` finds those of a child without looking at the rest."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state
        self._sorted: list[str] | None = None

    def below(self, prefix: str) -> list[str]:
        """The names that begin with `prefix`, in the order of the state dict."""
        if not prefix:
            return list(self.state)
        if self._sorted is None:
            self._sorted = sorted(self.state)
            self._rank = {name: rank for rank, name in enumerate(self.state)}
        begin = bisect_left(self._sorted, prefix)
        found = []
        for name in self._sorted[begin:]:
            if not name.startswith(prefix):
                break
            found.append(name)
        return sorted(found, key=self._rank.__getitem__)


class Visit:
    """One walk over a model with a state dict: `offers`, or in their place `real` tensors by the source's names.

    With `skip`, what has the wrong shape is kept from the modules, and noted. `targets` say what a slot can take, and
    what becomes of it.
    """

    def __init__(
        self,
        offers: Mapping[str, Offer],
        versions: Mapping[str, Mapping[str, Any]] | None,
        targets: Targets,
        *,
        skip: bool,
        real: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.found = Found()
        self._offers, self._versions, self._skip, self._real = offers, versions, skip, real
        self._targets = targets
        self._origins: dict[int, tuple[torch.Tensor, str]] = {}

    def model(self, root: Node) -> Found:
        """The whole model."""
        if not asks(root.module):
            self.found.scopes.append((root.module, "", self._offers))
        self._visit(root, Scope(self._offers))
        return self.found

    def again(self, postponed: Postponed) -> None:
        """A module that was postponed, and all below it."""
        assert self._real is not None
        state = {name: self._real[key] for name, key in postponed.state.items()}
        self._visit(tree(postponed.module, postponed.prefix), Scope(state))

    def _visit(self, node: Node, scope: Scope) -> None:
        module = node.module
        if asks(module):
            inner = self._ask(module, node.prefix, scope)
            if inner is None:
                return
            scope = inner
            if self._real is not None:  # It may have changed what is below it.
                node = tree(module, node.prefix)
        else:
            self._stock(node, scope.state)
        for child in node.children:
            self._visit(child, scope)

    def _stock(self, node: Node, state: Mapping[str, Any]) -> None:
        found = self.found
        for slot in node.slots:
            if slot.is_hidden:
                continue
            key, tensor = slot.key, slot.tensor
            value = state.get(key)
            if value is None:
                found.missing.append(key)
                continue
            shape = value.shape if type(value) is Offer else shape_of(value)
            if (tensor.is_nested or shape != tensor.shape) and not fits(shape, shape_of(tensor)):
                found.misfits.append((slot, self._source_name(key, value)))
                continue
            origin = key if type(value) is Offer else self._traced(slot, value)
            if origin is None:
                found.goals.append(self._made(slot, value))
                continue
            offer = self._offers[origin]
            target = self._targets.judged(slot, offer)
            if target is not None:
                found.goals.append(Goal(slot, offer, target))
            else:
                found.uncast.append((slot, origin))
        if takes_extra(node.module):
            found.extras.append((node.module, node.prefix + EXTRA))

    def _made(self, slot: Slot, value: torch.Tensor) -> Goal:
        return Goal(slot, None, self._targets.of(slot, None), value)

    def _source_name(self, key: str, value: Any) -> str:
        if type(value) is Offer:
            return key
        known = self._origins.get(_identity(value))
        return known[1] if known else key

    def _traced(self, slot: Slot, value: torch.Tensor) -> str | None:
        """The source's name of `value`, if it is a stand-in as it was handed out, or its one element."""
        origin = self._origins.get(_identity(value))
        if origin is None:
            return None
        handed, key = origin
        same = handed.shape == value.shape and handed.stride() == value.stride() and handed.dtype == value.dtype
        one = handed.numel() == value.numel() == 1 and handed.dtype == value.dtype
        return key if same or one else None

    def _stand_in(self, key: str, value: Any) -> torch.Tensor:
        if type(value) is not Offer:
            assert isinstance(value, torch.Tensor)
            return value
        made = torch.empty(value.shape, dtype=_plain_dtype(value.dtype), device="meta")
        self._origins[_identity(made)] = (made, key)
        return made

    def _ask(self, module: Module, prefix: str, scope: Scope) -> Scope | None:
        """Let the module load, and undo it; what the names below it are then. None when it is postponed."""
        found = self.found
        names = scope.below(prefix)
        state: dict[str, Any] = {name: self._stand_in(name, scope.state[name]) for name in names}
        before = {name: self._source_name(name, value) for name, value in state.items()}
        extra = prefix + EXTRA
        if takes_extra(module):
            state.pop(extra, None)
        is_of_torch = _is_of_torch(module)
        misfits: list[tuple[Slot, str]] = []
        uncast: list[tuple[Slot, str]] = []
        slots = {name: Slot(module, name, prefix + name, tensor) for name, tensor in own(module)}
        for slot in slots.values():
            value = state.get(slot.key)
            if value is None or _is_lazy(slot.tensor):
                continue
            origin = self._source_name(slot.key, value)
            if self._skip and not fits(shape_of(value), shape_of(slot.tensor)):
                misfits.append((slot, origin))
            elif is_of_torch and not self._targets.can_take(slot.tensor, self._offers[origin]):
                uncast.append((slot, origin))
            else:
                continue
            del state[slot.key]
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        facts = version_of(module, prefix, names) | dict((self._versions or {}).get(prefix[:-1], {})) | {_ASSIGN: True}
        if self._real is not None:
            pack(module, prefix, state)
        trial = Trial(module, copies=self._real is not None or not is_of_torch)
        clean = True
        with warnings.catch_warnings():
            if self._real is None:
                warnings.simplefilter("ignore")  # About stand-ins; with real tensors it would be said again.
            try:
                module._load_from_state_dict(state, prefix, facts, True, missing, unexpected, errors)
            except Exception as error:
                if self._real is not None:
                    trial.undo()
                    if is_of_torch and type(error) is KeyError:
                        raise UnsupportedError(
                            f"{prefix[:-1]}: {type(module).__name__} has its own way of loading, which needs {error}, "
                            "and the source has no tensor of that name. load_state_dict may take what torch.load gives"
                        ) from None
                    raise
                clean = False
        goals: list[Goal] = []
        for name, slot in slots.items() if clean else ():
            new = trial.now(name)
            if new is None or new is slot.tensor:
                written = trial.written(slot.tensor) if self._real is not None else None
                if written is not None:
                    goals.append(self._made(slot, written))
                continue
            traced = self._traced(slot, new)
            if traced is None and new.is_meta and self._real is None:
                clean = False
            if traced is None:
                goals.append(self._made(slot, new))
            else:
                offer = self._offers[traced]
                goals.append(Goal(slot, offer, self._targets.of(slot, offer)))
        if self._real is None:
            clean = trial.is_clean() and clean and not any("exception occurred" in error for error in errors)
            trial.undo()
            if not clean:
                found.postponed.append(Postponed(module, prefix, before))
                return None
        else:
            found.trials.append(trial)
            trial.put_back()
        if takes_extra(module):
            found.extras.append((module, extra))
        found.misfits += misfits
        found.uncast += uncast
        found.goals += goals
        found.scopes.append((module, prefix, list(state)))
        kept = {extra, *(slot.key for slot, _ in (*misfits, *uncast))}
        found.missing += (key for key in missing if key not in kept)
        found.unexpected += (key for key in unexpected if key != extra or not takes_extra(module))
        found.errors += errors
        return Scope(state)


def unexpected(model: Module, source: Iterable[str], found: Found) -> list[str]:
    """The names that nothing in the model takes, in torch's order: by module, then as they come in the source.

    A module with its own way of loading says so for itself. A name below a child that is None is let pass, as torch
    does.
    """
    taken = {goal.slot.key for goal in found.goals}.union(slot.key for slot, _ in (*found.misfits, *found.uncast))
    taken.update(key for _, key in found.extras)
    odd = dict.fromkeys(found.unexpected)
    own_names: dict[Module, set[str]] = {}
    for start, start_prefix, names in found.scopes:
        for name in () if taken.issuperset(names) else names:
            if name in taken:
                continue
            module, rest = start, name[len(start_prefix) :]
            while True:
                if asks(module) and module is not start:
                    break  # It has a scope of its own, or is still to be asked.
                head, dot, tail = rest.partition(".")
                if dot and head in module._modules:
                    child = module._modules[head]
                    if child is None:
                        break
                    module, rest = child, tail
                    continue
                if module is start and asks(module):
                    break  # It was asked about that.
                if module not in own_names:
                    own_names[module] = {own_name for own_name, _ in own(module)}
                if rest not in own_names[module]:
                    odd[name] = None
                break
    if len(odd) < 2:
        return list(odd)
    order = {node.prefix: number for number, node in enumerate(nodes(tree(model)))}
    position = {name: number for number, name in enumerate(source)}

    def rank(name: str) -> tuple[int, int]:
        owner = name.rpartition(".")[0]
        while owner and f"{owner}." not in order:
            owner = owner.rpartition(".")[0]
        return order[f"{owner}." if owner else ""], position.get(name, len(position))

    return sorted(odd, key=rank)


def _identity(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _plain_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return torch.float32 if name.startswith(("q", "bits")) else dtype


def _is_lazy(tensor: torch.Tensor) -> bool:
    return torch.nn.parameter.is_lazy(tensor)


def _is_of_torch(module: Module) -> bool:
    """Whether the module's own way of loading is one of torch's: none of them writes to tensors if told to assign."""
    hooks = module._load_state_dict_pre_hooks.values()
    owners = [type(module)._load_from_state_dict, *(getattr(hook, "hook", hook) for hook in hooks)]
    return all(str(getattr(owner, "__module__", "")).partition(".")[0] == "torch" for owner in owners)
