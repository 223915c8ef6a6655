"""Pickled ``torch.nn.Module``s: the state dict that the class would give, without the class.

The rule is that of ``Module.state_dict`` in ``torch/nn/modules/module.py``: parameters,
persistent buffers, then children, in the order in which they were registered, depth first,
None left out. A module is known by its attributes ``_parameters`` and ``_modules``, never
by its class's name; attributes that an older torch did not have yet count as empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..checkpoint import Dict, Global, LostTensor, Object, Value
from ..errors import UnreadableError
from .quantized import QUANTIZED, own_weights

_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")
# Hooks on the state dict that do not change names or values.
_HARMLESS_HOOKS = frozenset(
    {
        "torch.nn.utils.spectral_norm.SpectralNormStateDictHook",
        "torch.nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook",
    }
)
SPELLED = 128 << 20  # Characters of all names together; a million ordinary ones take half.
_TOLD = 50  # Warnings of one model; they repeat themselves.
# Ways to change what state_dict() gives; the author's source, where the file has it, tells.
_OVERRIDES = re.compile(r"def (state_dict|_save_to_state_dict|get_extra_state)\b|_register_state_dict_hook")


@dataclass
class ModuleWeights:
    """The named weights of a module, each a `TensorRef` or what stands in its place, and what to say about them."""

    entries: list[tuple[str, Value]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    looked_at: int = 0
    """Items of modules that were looked at; modules may share them, and hold no weights."""
    spelled: int = 0
    """Characters of all names."""
    most_spelled: int = SPELLED

    def spell(self, prefix: str, names: Iterable[str], count: int) -> None:
        """To be called before `count` names are put behind `prefix`; UnreadableError when they are too long."""
        self.spelled += len(prefix) * count + sum(map(len, names))
        if self.spelled > self.most_spelled:
            raise UnreadableError(
                f"its modules' names take more than {self.most_spelled} characters. The file is hostile"
            )


def attributes(value: Value) -> Dict | None:
    """The ``__dict__`` of an object, from what BUILD was given: a dict, or (dict, slots)."""
    if type(value) is not Object:
        return None
    state = value.state
    if type(state) is list and len(state) == 2 and type(state[0]) is Dict:
        state = state[0]
    return state if type(state) is Dict else None


def is_module(value: Value) -> bool:
    """Whether `value` is a pickled ``torch.nn.Module``."""
    state = attributes(value)
    return state is not None and type(state.get("_modules")) is Dict and type(state.get("_parameters")) is Dict


def overriding(sources: Mapping[str, str]) -> Mapping[str, str]:
    """What classes do to their state dicts, by class, as far as `sources`, the authors' code by class, shows."""
    found = {name: _OVERRIDES.search(text) for name, text in sources.items()}
    return {name: match[1] or "state dict hook" for name, match in found.items() if match}


def module_weights(
    root: Object, overrides: Mapping[str, str], most: int, longest: int, spelled: int = SPELLED
) -> ModuleWeights:
    """The state dict of the module `root`: at most `most` names, none longer than `longest`, of `spelled` characters.

    `overrides` is from `overriding`.
    """
    found = ModuleWeights(most_spelled=spelled)
    told: set[str] = set()
    stack: list[tuple[Iterator[tuple[str, Value]], Value]] = [(iter([("", root)]), None)]
    path: list[Value] = []
    visits = 0
    while stack:
        children, owner = stack[-1]
        step = next(children, None)
        if step is None:
            stack.pop()
            if owner is not None:
                path.remove(owner)
            continue
        prefix, module = step
        if any(module is above for above in path):
            raise UnreadableError(f"module {prefix[:-1]} contains itself. The file is damaged or hostile")
        visits += 1  # Modules may be shared, so a few of them can have 2**60 paths, and no weights on any.
        if len(prefix) > longest:
            raise UnreadableError(
                f"a module's name has {len(prefix)} characters, more than Limits.name_bytes. The file is hostile"
            )
        if len(path) > 200 or visits + len(found.entries) > 2 * most or found.looked_at > 1_000_000 + 16 * most:
            raise UnreadableError("its modules are nested beyond reason. The file is damaged or hostile")
        own = _own(module, prefix, found, told, overrides)
        path.append(module)
        stack.append((own, module))
    return found


def _own(
    module: Object, prefix: str, found: ModuleWeights, told: set[str], overrides: Mapping[str, str]
) -> Iterator[tuple[str, Value]]:
    """Add what `module` itself holds; the children that follow, with their prefixes."""
    state = attributes(module)
    assert state is not None
    for why in _oddities(module, state, overrides):
        if why not in told and len(told) < _TOLD:
            told.add(why)
            found.warnings.append(f"{prefix[:-1] or 'the model'}: {why}")
    parameters, buffers, children = state.get("_parameters"), state.get("_buffers"), state.get("_modules")
    hidden = state.get("_non_persistent_buffers_set")
    found.looked_at += sum(len(part.pairs) for part in (parameters, buffers, children) if type(part) is Dict)
    hooks = [state.get(kind) for kind in _HOOKS]
    found.looked_at += sum(len(part.pairs) for part in hooks if type(part) is Dict)
    found.looked_at += len(hidden) if type(hidden) is list else 0
    hidden = _strings(hidden)
    own = [item for item in _named(parameters) if item[1] is not None]
    own += (item for item in _named(buffers) if item[1] is not None and item[0] not in hidden)
    own += own_weights(module.type_name, state)
    inner = _named(children)
    if prefix:
        found.spell(prefix, (name for name, _ in own), len(own))
        found.spell(prefix, (name for name, _ in inner), len(inner))
    found.entries += ((prefix + name, value) for name, value in own)
    modules: list[tuple[str, Value]] = []
    for name, child in inner:
        if child is None:
            continue
        kind = child.type_name if type(child) is Object else type(child).__name__
        if is_module(child):
            modules.append((f"{prefix}{name}.", child))
        else:
            found.entries.append((prefix + name, LostTensor(f"a {kind}, which keeps its weights in a way of its own")))
    return iter(modules)


def _named(mapping: Value) -> list[tuple[str, Value]]:
    """The items of a mapping of a module, as a dict would give them: of equal names the last value, the first place."""
    if type(mapping) is not Dict:
        return []
    if all(type(name) is str for name, _ in mapping.pairs):
        return list(dict(mapping.pairs).items())
    result: dict[str | bytes, Value] = {}
    for name, value in mapping.pairs:
        if type(name) not in (str, bytes):
            raise UnreadableError("a module's weights are named by something that is not a string. The file is damaged")
        result[name] = value
    # Bytes are what Python 2 called a string; they are not ASCII, or they would have been read as one.
    named = [(name.decode("latin-1") if isinstance(name, bytes) else name, value) for name, value in result.items()]
    if len({name for name, _ in named}) != len(named):
        raise UnreadableError("two of a module's weights would have one name. The file is damaged or hostile")
    return named


def _strings(value: Value) -> frozenset[str]:
    return frozenset(item for item in value if type(item) is str) if type(value) is list else frozenset()


def _oddities(module: Object, state: Dict, overrides: Mapping[str, str]) -> Iterator[str]:
    """Why this module's state dict may not be its parameters and buffers."""
    for kind in _HOOKS:
        hooks = state.get(kind)
        for _, hook in hooks.pairs if type(hooks) is Dict else ():
            name = hook.full if type(hook) is Global else hook.type_name if type(hook) is Object else "a hook"
            if name not in _HARMLESS_HOOKS:
                yield f"{name} may change its state dict, and was not run"
    if module.type_name in overrides and not QUANTIZED.match(module.type_name):
        what = overrides[module.type_name]
        yield f"{module.type_name} has its own {what} (its source is in the file), which was not run"
