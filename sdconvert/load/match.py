"""Names against names: which name of a source goes to which name of a model. No torch.

Names fit as they are, or after one change of all of them: what wrappers put into names is
looked past on both sides, and one leading part may be taken off or put on
(``model.`` of a training framework, ``transformer.`` of a base model). A change is made
only if strictly more names fit with it than without, shapes included, no two names become
one, and there is only one such change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import ChoiceError, MismatchError, printable
from ..names import known_prefixes, unwrapped
from ..tensor import Shape

AUTO = "auto"
_NEAREST = 3  # Hints of one error.
_COMPARED = 400  # Names that a hint is looked for among; comparing is quadratic.
_LEADS = 50  # Leading parts that are tried.


@dataclass(frozen=True)
class Fit:
    """`names` gives, for each name that the source's tensors get, the one they have in the source.

    `prefix` is what was taken off (``module.``), or put on (``+transformer.``), "" for nothing.
    """

    names: Mapping[str, str]
    prefix: str = ""


Shapes = Mapping[str, Shape | None]
"""Names with their shapes; None fits any."""


def fit(source: Shapes, model: Shapes, prefix: str | None = AUTO) -> Fit:
    """The source's names as the model has them. Without `prefix` they stay, a given one is taken off where it is.

    ChoiceError when a given prefix is nowhere, or would make two names one.
    """
    same = Fit({name: name for name in source})
    if not prefix:
        return same
    if prefix != AUTO:
        if not any(name.startswith(prefix) for name in source):
            raise ChoiceError(f"no name begins with {prefix!r}. The first is {next(iter(source), '')!r}")
        names = {name.removeprefix(prefix): name for name in source}
        if len(names) != len(source):
            raise ChoiceError(f"without {prefix!r}, two tensors would have one name")
        return Fit(names, prefix)
    spare = [name for name in source if name not in model]
    wanted = [name for name in model if name not in source]
    if not spare or not wanted:
        return same
    bare = {unwrapped(name): name for name in model}
    if len(bare) != len(model):
        bare = {name: name for name in model}
    candidates = [one for one in _changed(source, bare, spare, wanted) if len(one.names) == len(source)]
    counted = [_fitting(one, source, model) for one in candidates]
    highest = max(counted, default=0)
    winners = [one for count, one in zip(counted, candidates, strict=True) if count == highest]
    if highest > _fitting(same, source, model) and (len(winners) == 1 or winners[0] is candidates[0]):
        return winners[0]
    return same


def _fitting(one: Fit, source: Shapes, model: Shapes) -> int:
    """How many names fit, in their shapes too."""
    count = 0
    for new, old in one.names.items():
        if new in model:
            count += None in (shape := (source[old], model[new])) or shape[0] == shape[1]
    return count


def _changed(
    source: Collection[str], bare: Mapping[str, str], spare: Collection[str], wanted: Collection[str]
) -> Iterator[Fit]:
    """What the names could become; `bare` gives the model's own name for its name without wrappers.

    The first candidate only looks past wrappers. A name that fits without the change keeps its place. Only
    leading parts of names that do not fit yet are tried: `spare` of the source, `wanted` of the model.
    """
    stripped = {name: unwrapped(name) for name in source}
    wrappers = "".join(known_prefixes(list(source))) or "".join(
        f"+{prefix}" for prefix in known_prefixes(list(bare.values()))
    )
    yield Fit({bare.get(short, short): name for name, short in stripped.items()}, wrappers)
    for lead in _leads(map(unwrapped, spare)):
        changed = (
            (_named(bare, short, short.removeprefix(lead) if short.startswith(lead) else short), name)
            for name, short in stripped.items()
        )
        yield Fit(dict(changed), lead)
    for lead in _leads(map(unwrapped, wanted)):
        yield Fit({_named(bare, short, lead + short): name for name, short in stripped.items()}, f"+{lead}")


def _named(bare: Mapping[str, str], short: str, changed: str) -> str:
    return bare.get(short) or bare.get(changed) or changed


def _leads(names: Iterable[str]) -> list[str]:
    """The first parts of dotted names, with their dot."""
    leads = dict.fromkeys(name[: name.index(".") + 1] for name in names if "." in name)
    return list(leads)[:_LEADS]


class IncompatibleError(MismatchError):
    """A source that does not fit a model: all that is wrong, in the words of ``Module.load_state_dict``.

    `missing_keys`, `unexpected_keys` as there; `problems` the other lines, `hint` what may help.
    Its text has one line for each kind of problem.
    """

    def __init__(
        self,
        message: str,
        missing_keys: Iterable[str] = (),
        unexpected_keys: Iterable[str] = (),
        problems: Iterable[str] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.missing_keys, self.unexpected_keys = list(missing_keys), list(unexpected_keys)
        self.problems, self.hint = list(problems), hint

    def __str__(self) -> str:
        """All of it, however long: each problem is there for somebody to mend. Where it is comes last."""
        lines = self.message.split("\n")
        if self.places:
            lines.append(f"Source: {': '.join(self.places)}")
        return "\n".join("\t" * line.startswith("\t") + printable(line.removeprefix("\t")) for line in lines)


def incompatible(
    model: str, missing: Collection[str], unexpected: Collection[str], problems: Collection[str], hint: str
) -> IncompatibleError:
    """The error for a model of class `model`."""
    lines = []
    if missing:
        lines.append(f"Missing key(s) in state_dict: {_quoted(missing)}. ")
    if unexpected:
        lines.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
    lines += problems
    message = "Error(s) in loading state_dict for {}:\n\t{}".format(model, "\n\t".join(lines))
    if hint:
        message += f"\n{hint}"
    return IncompatibleError(message, missing, unexpected, problems, hint)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def hint(missing: Collection[str], unexpected: Collection[str], source: Shapes, model: Shapes) -> str:
    """One line that may help: a prefix that would fit, or the nearest names; "" when there is none."""
    if not missing or not unexpected:
        return ""
    could = fit(source, model)
    if could.prefix and could.prefix[0] != "+":
        return f"Hint: prefix={could.prefix!r} or prefix='auto' would make the names fit."
    if could.prefix:
        return f"Hint: prefix='auto' would put {could.prefix[1:]!r} before the names, and they would fit."
    leads = {
        lead: sum(name.removeprefix(lead) in model for name in source if name.startswith(lead))
        for lead in _leads(source)
    }
    fitting = [lead for lead, count in leads.items() if count and count == max(leads.values())]
    if len(fitting) > 1:
        return f"Hint: {' and '.join(f'prefix={lead!r}' for lead in fitting[:_NEAREST])} would fit; choose one."
    left, nearest = list(unexpected)[:_COMPARED], []
    for name in list(missing)[:_NEAREST]:
        found = get_close_matches(name, left, n=1, cutoff=0.6)
        if found:
            nearest.append(f"{found[0]!r} for {name!r}")
            left.remove(found[0])
    return f"Hint: rename would help if the source has {', '.join(nearest)}." if nearest else ""
