"""What a tensor is called in the output: prefixes off, names changed, some left out.

Names stay as they are unless somebody asks. What wrappers put around a model
(DataParallel's ``module.``, torch.compile's ``_orig_mod.``, ...) is pointed out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .checkpoint import Skipped, Value
from .errors import ChoiceError, UnreadableError
from .limits import Limits

# Put before every name, by DataParallel and DDP, and by others.
_LEADING = ("module.", "_module.")
# Put before the part of a name that was wrapped, wherever that is.
_ANYWHERE = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

AUTO = "auto"


def unwrapped(name: str) -> str:
    """`name` without anything that a known wrapper added."""
    name = _ANYWHERE.sub("", name)
    for prefix in _LEADING:
        name = name.removeprefix(prefix)
    return name


def known_prefixes(names: list[str]) -> tuple[str, ...]:
    """The wrapper prefixes that `names` show, as ``--strip-prefix auto`` would take them off."""
    shown = dict.fromkeys(match for name in names for match in _ANYWHERE.findall(name))
    bare = [_ANYWHERE.sub("", name) for name in names]
    for prefix in _LEADING:
        if bare and all(name.startswith(prefix) for name in bare):
            shown[prefix] = None
    return tuple(shown)


@dataclass(frozen=True, init=False)
class Names:
    """How to name the tensors.

    `strip_prefix` is ``auto`` or a prefix; `rename` a dict, or pairs, of old and new, each a whole name or
    a prefix that ends with a dot; `include` and `exclude` are a shell pattern, or several, over the names
    as they are in the file.
    """

    strip_prefix: str | None
    rename: tuple[tuple[str, str], ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def __init__(
        self,
        strip_prefix: str | None = None,
        rename: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
    ) -> None:
        pairs = rename.items() if isinstance(rename, Mapping) else rename
        for field, value in {
            "strip_prefix": strip_prefix,
            "rename": tuple((old, new) for old, new in pairs),
            "include": _patterns(include),
            "exclude": _patterns(exclude),
        }.items():
            object.__setattr__(self, field, value)  # What a frozen dataclass does itself where it may.

    def apply(self, tensors: dict[str, Value]) -> tuple[dict[str, Value], list[Skipped]]:
        """The tensors under their new names, and those that were filtered out.

        ChoiceError when a filter, prefix or old name fits nothing, or a tensor would get no name or another's.
        """
        kept, dropped = self._filter(tensors)
        if self.strip_prefix is not None:
            kept = _renamed(kept, self._stripper(list(kept)), "--strip-prefix")
        for old, new in self.rename:
            kept = _renamed(kept, _renamer(old, new, list(kept)), "--rename")
        return kept, dropped

    def _filter(self, tensors: dict[str, Value]) -> tuple[dict[str, Value], list[Skipped]]:
        if tensors and not self.include and not self.exclude:
            return tensors, []
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in tensors):
                    raise ChoiceError(f"{flag} {pattern} fits no tensor{_such_as(tensors)}")
        kept: dict[str, Value] = {}
        dropped: list[Skipped] = []
        for name, tensor in tensors.items():
            if self.include and not any(fnmatchcase(name, pattern) for pattern in self.include):
                dropped.append(Skipped(name, "not included"))
            elif any(fnmatchcase(name, pattern) for pattern in self.exclude):
                dropped.append(Skipped(name, "excluded"))
            else:
                kept[name] = tensor
        if not kept:
            raise ChoiceError("the filters leave no tensor")
        return kept, dropped

    def _stripper(self, names: list[str]) -> Callable[[str], str]:
        if self.strip_prefix != AUTO:
            prefix = self.strip_prefix or ""
            if not any(name.startswith(prefix) for name in names):
                raise ChoiceError(f"no name begins with {prefix!r}{_such_as(names)}")
            return lambda name: name.removeprefix(prefix)
        leading = [prefix for prefix in known_prefixes(names) if prefix in _LEADING]

        def strip(name: str) -> str:
            name = _ANYWHERE.sub("", name)
            for prefix in leading:
                name = name.removeprefix(prefix)
            return name

        return strip


def _patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)  # One pattern is not one for each of its letters.


def _renamer(old: str, new: str, names: list[str]) -> Callable[[str], str]:
    if old in names:
        return lambda name: new if name == old else name
    if old.endswith(".") and any(name.startswith(old) for name in names):
        return lambda name: new + name[len(old) :] if name.startswith(old) else name
    raise ChoiceError(f"--rename {old}: there is no such name, nor a prefix that ends with a dot{_such_as(names)}")


def _renamed(tensors: dict[str, Value], change: Callable[[str], str], flag: str) -> dict[str, Value]:
    result: dict[str, Value] = {}
    for name, tensor in tensors.items():
        renamed = change(name)
        if not renamed and name:
            raise ChoiceError(f"{flag} would leave {name!r} without a name")
        if renamed in result:
            raise ChoiceError(f"{flag} would give two tensors the name {renamed!r}")
        result[renamed] = tensor
    return result


def _such_as(names: list[str] | dict[str, Value]) -> str:
    first = next(iter(names), None)
    return "" if first is None else f". The first is {first!r}"


def check_names(names: Iterable[str], limits: Limits) -> None:
    """UnreadableError for a name that no file can hold, or that is too long to be one."""
    for name in names:
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise UnreadableError(
                f"tensor {name!r} has a name that is not Unicode text. --exclude with a pattern leaves it out"
            ) from None
        if size > limits.name_bytes:
            raise UnreadableError(
                f"a tensor's name has {size} bytes, more than Limits.name_bytes: {name[:60]}... "
                "The file is hostile; --key or --exclude may leave it out"
            )
