"""One load into one model: what was found out about it, step by step, and the checks between the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import Module, Parameter
from torch.nn.modules.module import _IncompatibleKeys

from ..tensor import TensorRef
from .filling import Request, filled
from .match import hint, incompatible
from .offer import Offer, Source
from .place import CPU, NAMES, TORCH, Placer
from .result import Cast
from .settle import Group, move, settle
from .slots import Node, Slot, is_plain, shape_of, shapes
from .targets import Target, Targets
from .visit import Found, Goal, Visit, unexpected


class Job:
    """A model, which is `modules`, all its `slots`, a source whose names are the model's, and what became of it so far.

    Nothing of the model is changed before `finish`.
    """

    def __init__(
        self,
        modules: Sequence[Node],
        slots: Sequence[Slot],
        source: Source,
        targets: Targets,
        *,
        strict: bool,
        skip: bool,
    ) -> None:
        self.model, self.modules, self.slots = modules[0].module, modules, slots
        self.source, self.targets = source, targets
        self._strict, self._skip = strict, skip
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.casts: list[Cast] = []
        self._extras: list[tuple[Module, Any]] = []
        self._tied: dict[int, list[Slot]] = {}
        first: dict[int, Slot] = {}
        for slot in slots:
            if (one := first.setdefault(id(slot.tensor), slot)) is not slot:
                self._tied.setdefault(id(slot.tensor), [one]).append(slot)
        self.found = Visit(source.offers, source.versions, targets, skip=skip).model(modules[0])
        self.goals = self._read(self.found.goals)

    def _read(self, goals: list[Goal]) -> list[Goal]:
        """The goals without what the device map leaves on meta."""
        return [goal for goal in goals if goal.target.device.type != "meta"] if self.targets.devices else goals

    @property
    def left_on_meta(self) -> list[str]:
        """What the device map leaves on meta."""
        if not self.targets.devices:
            return []
        return [slot.key for slot in self.slots if slot.tensor.is_meta and self._device(slot).type == "meta"]

    def _device(self, slot: Slot) -> torch.device:
        return self.targets.device(slot.key, slot.tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of the source's tensors that are to be read, each once."""
        offers = [goal.offer for goal in self.goals if goal.offer is not None]
        offers += [self.source.offers[name] for module in self.found.postponed for name in module.state.values()]
        return sum({id(offer.content): offer.nbytes for offer in offers}.values())

    def check(self) -> None:
        """IncompatibleError with all that is wrong. What only real tensors can tell must have been asked before."""
        found = self.found
        present = {id(goal.slot.tensor) for goal in found.goals}
        self.missing = list(dict.fromkeys(found.missing))
        if self.missing:
            known = {slot.key for slot, _ in (*found.misfits, *found.uncast)}
            known |= {goal.slot.key for goal in found.goals}
            known |= {slot.key for tensor in present & self._tied.keys() for slot in self._tied[tensor]}
            self.missing = [key for key in self.missing if key not in known]
        self.missing += [key for _, key in found.extras if not self._has_extra(key)]
        self.unexpected = [*unexpected(self.model, self.source.offers, found), *self.source.strays]
        problems = list(found.errors)
        if not self._skip:
            problems += self._misfits()
        problems += self._left_on_meta(present)
        missing, surplus = (self.missing, self.unexpected) if self._strict else ([], [])
        if not problems and (missing or surplus) and self._hooks():
            self._run_hooks()  # They may forgive.
            missing, surplus = self.missing, self.unexpected
        if missing or surplus or problems:
            self.undo()
            advice = hint(missing, surplus, self.source.shapes, shapes(self.slots))
            raise incompatible(type(self.model).__name__, missing, surplus, problems, advice)

    def _has_extra(self, key: str) -> bool:
        return key in self.source.extras or key in self.source.offers

    def _misfits(self) -> list[str]:
        offers = self.source.offers
        lines = [
            f"size mismatch for {slot.key}: copying a param with shape {torch.Size(offers[name].shape)} from "
            f"checkpoint, the shape in current model is {torch.Size(shape_of(slot.tensor))}."
            for slot, name in self.found.misfits
        ]
        lines += [
            f"dtype mismatch for {slot.key}: copying a param of torch.{offers[name].dtype} from checkpoint, the dtype "
            f"in current model is {slot.tensor.dtype}, and a cast would change what the numbers mean."
            for slot, name in self.found.uncast
        ]
        return lines

    def _left_on_meta(self, present: set[int]) -> list[str]:
        """A line for what would have no values afterwards, apart from missing keys that are told as such."""
        told = set(self.missing) if self._strict else set()
        if self.targets.assign is False:
            present = set()
        left = [
            slot.key
            for slot in self.slots
            if id(slot.tensor) not in present
            and slot.tensor.is_meta
            and slot.key not in told
            and self._device(slot).type != "meta"
        ]
        if any(slot.tensor.is_meta for slot in self.slots):
            left += [
                node.prefix + name
                for node in self.modules
                if torch.Tensor in map(type, vars(node.module).values())
                for name, value in vars(node.module).items()
                if type(value) is torch.Tensor and value.is_meta
            ]
        if not left:
            return []
        names = ", ".join(f'"{key}"' for key in dict.fromkeys(left))
        if self.targets.assign is False:
            return [f"Left on meta, since assign=False cannot fill them: {names}. "]
        return [
            f"Left on meta, since nothing has values for them: {names}. "
            "Build the model in sdconvert.skeleton(), which leaves buffers real, or without a meta device. "
        ]

    def read(self, placer: Placer, progress: Callable[[int], None]) -> None:
        """Read all that is needed; ask modules that needed real tensors for it; then check what is left to check."""
        offers, found = self.source.offers, self.found
        asked = [goal for goal in self.goals if goal.offer is not None]
        requests = [Request(goal.slot.key, goal.offer, goal.target) for goal in asked if goal.offer is not None]
        extra = [(module, key) for module, key in found.extras if key in offers]
        requests += [self._as_it_is(key, offers[key]) for _, key in extra]
        later = list(dict.fromkeys(name for module in found.postponed for name in module.state.values()))
        requests += [self._as_it_is(name, offers[name]) for name in later]
        tensors = filled(requests, placer, progress)
        for goal, tensor in zip(asked, tensors, strict=False):
            goal.value = tensor
        rest = tensors[len(asked) :]
        states = {key: tensor for (_, key), tensor in zip(extra, rest, strict=False)}
        if later:
            self._ask(dict(zip(later, rest[len(extra) :], strict=True)))
        self._extras = [
            (module, states[key] if key in states else self.source.extras[key])
            for module, key in found.extras
            if self._has_extra(key) and (key in states or key in self.source.extras)
        ]
        self._check_ties()

    def _as_it_is(self, name: str, offer: Offer) -> Request:
        above = name.rpartition(".")[0]
        device = self.targets.devices.of(name) or next(
            (self._device(slot) for slot in self.slots if slot.key.startswith(above)), CPU
        )
        return Request(name, offer, Target(TORCH[offer.dtype], device, in_place=False))

    def _ask(self, real: Mapping[str, torch.Tensor]) -> None:
        """Let the modules that were postponed load with real tensors."""
        source = self.source
        visit = Visit(source.offers, source.versions, self.targets, skip=self._skip, real=real)
        into = self.found
        try:
            for postponed in into.postponed:
                visit.again(postponed)
        except BaseException:
            into.trials += visit.found.trials
            self.undo()
            raise
        into.trials += visit.found.trials
        _merge(into, visit.found)
        self.goals = self._read(into.goals)
        self.check()

    def undo(self) -> None:
        """Put back what was asked with real tensors."""
        for trial in reversed(self.found.trials):
            trial.undo()

    def _check_ties(self) -> None:
        """IncompatibleError if one object of the model would get two different values."""
        first: dict[int, tuple[str, torch.Tensor]] = {}
        problems = []
        for goal in self.goals if self._tied else ():
            value, key = goal.value, goal.slot.key
            assert value is not None
            name, known = first.setdefault(id(goal.slot.tensor), (key, value))
            if known is not value and not _same_bits(known, value):
                problems.append(f"tie broken for {key}: in the model it is {name}, but the source has others.")
        if problems:
            self.undo()
            raise incompatible(type(self.model).__name__, [], [], problems, "")

    def finish(self, *, retie: bool) -> dict[str, str]:
        """Change the model. What is tied in it now: every other name and its first."""
        groups: dict[int, Group] = {}
        todo: list[Group] = []
        twins: dict[Any, Group] = {}
        shared = Counter([id(goal.offer.content) for goal in self.goals if goal.offer is not None])
        for goal in self.goals:
            slot, target, offer, value = goal.slot, goal.target, goal.offer, goal.value
            tensor = slot.tensor
            if id(tensor) in groups:
                continue
            assert value is not None
            is_read = offer is not None and type(offer.content) is TensorRef
            group = groups[id(tensor)] = Group(tensor, self._tied.get(id(tensor)) or [slot], target, value, is_read)
            if offer is not None:
                if offer.dtype != (now := NAMES[target.dtype]):
                    self.casts.append(Cast(slot.key, offer.dtype, now))
                if retie and shared[id(offer.content)] > 1 and type(tensor) is Parameter:
                    first = twins.setdefault((id(offer.content), target.dtype, target.device, shape_of(tensor)), group)
                    if first is not group:  # What the source ties to another is that one from here on.
                        first.slots = [*first.slots, *group.slots]
                        self._joined = True
                        continue
            todo.append(group)
        try:
            settle(todo, self.targets.assign)
        except BaseException:
            self.undo()
            raise
        for module, state in self._extras:
            module.set_extra_state(state)
        rest = [slot for slot in self.slots if id(slot.tensor) not in groups]
        move(rest, {id(slot.tensor): self._device(slot) for slot in rest})
        if self._hooks() and not self._ran:
            self._run_hooks()
        return self._ties()

    def _ties(self) -> dict[str, str]:
        if not self._tied and not self._joined and not self._extras and not self._hooks():
            return {}
        names: dict[int, str] = {}
        ties = {}
        for module, name, key, _, _ in self.slots:
            now: torch.Tensor | None = module._parameters.get(name)
            if now is None:
                now = module._buffers.get(name)
            if now is not None and (first := names.setdefault(id(now), key)) != key:
                ties[key] = first
        return ties

    def _hooks(self) -> bool:
        return any(node.module._load_state_dict_post_hooks for node in self.modules)

    _ran = _joined = False

    def _run_hooks(self) -> None:
        """The hooks after loading, children's first. They may take keys from the lists, or add some."""
        self._ran = True
        keys = _IncompatibleKeys(self.missing, self.unexpected)

        def run(module: Module) -> None:
            for child in module._modules.values():
                if child is not None:
                    run(child)
            for hook in module._load_state_dict_post_hooks.values():
                if hook(module, keys) is not None:
                    raise AssertionError(
                        "Hooks registered with ``register_load_state_dict_post_hook`` are not expected to return new "
                        "values, if incompatible_keys need to be modified, it should be done inplace."
                    )

        run(self.model)


def _merge(into: Found, more: Found) -> None:
    for name in ("goals", "missing", "unexpected", "errors", "misfits", "uncast", "extras", "scopes"):
        getattr(into, name).extend(getattr(more, name))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if shape_of(a) != shape_of(b) or a.dtype != b.dtype or not (is_plain(a) and is_plain(b)):
        return False
    a, b = a.detach().contiguous().reshape(-1), b.detach().contiguous().reshape(-1)
    return a.device == b.device and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
