"""Building a model without paying for its weights: parameters on meta, buffers real, no initialisation.

Filling a new model's parameters with random numbers takes most of the time from nothing to a
loaded model, and they are thrown away. Here each parameter is replaced by one on the meta device
as it is registered, the same one for the same, so ties hold; what would write values to it
does nothing. Buffers are not touched: those that no file holds are computed as ever.

All of it is for the thread that is inside. The two functions of torch that are replaced ask for
that, and are put back when the last thread leaves.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# What writes values to a tensor in place, and nothing else. `requires_grad_` and the like are not among them.
_WRITING = frozenset(
    """
    __setitem__ __iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__ abs_ add_ addcdiv_ addcmul_ bernoulli_ cauchy_
    clamp_ clamp_max_ clamp_min_ clip_ copy_ cos_ div_ erfinv_ exp_ exponential_ fill_ fill_diagonal_ floor_
    geometric_ index_add_ index_copy_ index_fill_ log_ log_normal_ masked_fill_ masked_scatter_ mul_ neg_ normal_
    pow_ random_ reciprocal_ renorm_ round_ rsqrt_ scatter_ sigmoid_ sign_ sin_ sqrt_ sub_ tanh_ tril_ triu_ uniform_
    zero_
    """.split()
)


class _Within(threading.local):
    """How deep this thread is inside, and the meta parameters by the identity of those they stand for."""

    def __init__(self) -> None:
        self.depth = 0
        self.stand_ins: dict[int, tuple[weakref.ref[Any], torch.nn.Parameter]] = {}


class _Patches:
    """The functions of torch that are replaced while any thread is inside."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        self.undo: list[Callable[[], None]] = []

    def enter(self) -> None:
        with self.lock:
            self.threads += 1
            if self.threads == 1:
                self.undo = _patch()

    def leave(self) -> None:
        with self.lock:
            self.threads -= 1
            if self.threads == 0:
                for undo in self.undo:
                    undo()
                self.undo = []


# State of the module, for once: what they stand for is torch's, and there is one torch.
_WITHIN = _Within()
_PATCHES = _Patches()


@contextmanager
def skeleton() -> Iterator[None]:
    """A context in which models are built with their parameters on meta, for `load_into` to fill.

    Parameters of a class of their own, and lazy ones, stay as they are. It may be nested. Other threads do
    not notice it.
    """
    from torch.overrides import TorchFunctionMode

    class NoValues(TorchFunctionMode):
        """Writing values to a tensor on meta is left out: the first such operations cost seconds of imports."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in _WRITING and args and args[0].is_meta:
                return args[0]
            return func(*args, **(kwargs or {}))

    _PATCHES.enter()
    try:
        _WITHIN.depth += 1
        try:
            with NoValues():
                yield
        finally:
            _WITHIN.depth -= 1
            if not _WITHIN.depth:
                _WITHIN.stand_ins.clear()
    finally:
        _PATCHES.leave()


def _patch() -> list[Callable[[], None]]:
    import torch
    from torch.nn import Module, init

    undo: list[Callable[[], None]] = []

    def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        ours = make(original)

        def restore() -> None:
            # Somebody who replaced it after us, and is still at it, calls ours, which then does nothing.
            if getattr(owner, name) is ours:
                setattr(owner, name, original)

        setattr(owner, name, ours)
        undo.append(restore)

    def registering(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def register_parameter(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
            original(self, name, _stand_in(param) if _WITHIN.depth and type(param) is torch.nn.Parameter else param)

        return register_parameter

    def initialising(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def initialise(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if _WITHIN.depth and tensor.is_meta:
                return tensor
            return original(tensor, *args, **kwargs)

        return initialise

    replace(Module, "register_parameter", registering)
    for name, function in list(vars(init).items()):
        if name.endswith("_") and not name.startswith("_") and callable(function):
            replace(init, name, initialising)
    return undo


def _stand_in(param: torch.nn.Parameter) -> torch.nn.Parameter:
    """The parameter on meta for `param`, always the same one while `param` lives."""
    import torch

    if param.is_meta:
        return param
    known = _WITHIN.stand_ins.get(id(param))
    if known is not None and known[0]() is param:  # Identities are used again, as soon as an object is gone.
        return known[1]
    made = torch.nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=param.requires_grad)
    made.__dict__.update(param.__dict__)
    _WITHIN.stand_ins[id(param)] = (weakref.ref(param), made)
    return made
