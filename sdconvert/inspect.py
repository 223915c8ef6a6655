"""The look inside: what a file holds and what a conversion would do with it, before anything is written.

Only headers are read, so the size of the file does not matter. What a conversion would
refuse is no error here but one of the `problems`: somebody who looks wants to see it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from . import writers
from .checkpoint import Candidate, Checkpoint, LostTensor, Skipped, StateDict, TensorRef, Value
from .errors import ChoiceError, SdconvertError, within
from .extract import candidates, extract
from .inspection import CandidateFacts, DTypeFacts, Inspection, TensorFacts
from .limits import DEFAULT_LIMITS, Limits
from .names import Names, known_prefixes
from .opening import PathLike
from .opening import open as open_checkpoint
from .pickles.known import is_dangerous, is_known
from .plan import Entry, Plan, make_plan
from .tensor import is_contiguous

SEVERAL, NOTHING = "several", "nothing"
_OPENED = 20  # Candidates whose tensors are listed; each costs a walk over the whole tree.
_PATIENCE = 10_000  # What lies beside the opened ones, all in all: looking at it is what costs.
_TOLD = 10  # Tensors of one problem that are named.


def inspect(
    source: PathLike,
    *,
    key: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Inspection:
    """What is in `source`, from its headers alone. `key` is the dotted path of the state dict to look at.

    `revision` and `token` are for a source on the Hub, as in `open`.

    UnreadableError or UnsupportedError when it is no checkpoint that can be read, ChoiceError
    when there is nothing at `key`. Several state dicts, or none, are findings and no errors.
    """
    with open_checkpoint(source, revision=revision, token=token, limits=limits) as opened:
        with within(opened.name):
            found = _find(opened.checkpoint, key, limits)
        return _facts(opened.name, opened.origin.nbytes, opened.checkpoint, found, limits)


class _Writable(Names):
    """Sets aside, in `lost`, the tensors that cannot be written: for `extract` they would be an error."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: dict[str, str] = {}

    def apply(self, tensors: dict[str, Value]) -> tuple[dict[str, Value], list[Skipped]]:
        lost = {name: value.why for name, value in tensors.items() if type(value) is LostTensor}
        self.lost.update(lost)
        kept = {name: value for name, value in tensors.items() if name not in lost}
        return kept, [Skipped(name, why) for name, why in lost.items()]


@dataclass(frozen=True)
class _Found:
    """The weights, the candidates they were chosen from, and what stands against a conversion."""

    weights: StateDict
    candidates: tuple[CandidateFacts, ...] = ()
    problems: tuple[str, ...] = ()


def _find(checkpoint: Checkpoint, key: str | None, limits: Limits) -> _Found:
    names = _Writable()
    try:
        weights = extract(checkpoint, key=key, names=names, limits=limits)
    except SdconvertError as error:
        if key is not None:
            raise
        if isinstance(error, ChoiceError):
            return _several(checkpoint, error.candidates, limits)
        return _Found(StateDict({}, "", NOTHING, warnings=checkpoint.warnings), problems=(str(error),))
    options = candidates(checkpoint, limits=limits)
    facts = [_candidate(option, weights if _is_at(option, weights) else None) for option in options]
    left = _PATIENCE
    for at, option in enumerate(options[:_OPENED]):
        if facts[at].elements is None and left > 0:
            opened = _open(checkpoint, option, _Writable(), limits)
            facts[at] = _candidate(option, opened)
            left -= len(opened.skipped) if opened else 0
    return _Found(weights, tuple(facts), _about_lost(names.lost))


def _several(checkpoint: Checkpoint, options: tuple[Candidate, ...], limits: Limits) -> _Found:
    """All candidates side by side, as nobody has chosen yet."""
    tensors: dict[str, TensorRef] = {}
    skipped: dict[Skipped, None] | None = None  # What every choice leaves out.
    warnings = dict.fromkeys(checkpoint.warnings)
    facts: list[CandidateFacts] = []
    names = _Writable()
    left = _PATIENCE
    for option in options[:_OPENED]:
        weights = _open(checkpoint, option, names, limits) if left > 0 else None
        facts.append(_candidate(option, weights))
        if weights is not None:
            tensors |= {f"{option.key}.{name}": tensor for name, tensor in weights.tensors.items()}
            warnings |= dict.fromkeys(weights.warnings)
            beside = dict.fromkeys(weights.skipped)
            skipped = beside if skipped is None else {one: None for one in skipped if one in beside}
            left -= len(weights.skipped)
    facts += (_candidate(option, None) for option in options[_OPENED:])
    if closed := sum(one.elements is None for one in facts):
        warnings[f"the tensors of {closed} more candidates are not listed; --key shows them"] = None
    problem = "it holds several state dicts, so a conversion needs --key: one of the candidates' keys, or . for all"
    merged = StateDict(tensors, "", SEVERAL, skipped=tuple(skipped or ()), warnings=tuple(warnings))
    return _Found(merged, tuple(facts), (problem, *_about_lost(names.lost)))


def _open(checkpoint: Checkpoint, option: Candidate, names: Names, limits: Limits) -> StateDict | None:
    """The state dict of a candidate, None where its key leads nowhere or its names clash."""
    try:
        return extract(checkpoint, key=option.key, names=names, limits=limits)
    except SdconvertError:
        return None


def _is_at(option: Candidate, weights: StateDict) -> bool:
    return option.key == (weights.key or ".")


def _candidate(option: Candidate, weights: StateDict | None) -> CandidateFacts:
    elements = None if weights is None else sum(tensor.numel for tensor in weights.tensors.values())
    return CandidateFacts(option.key, option.tensors, elements, option.nbytes, option.kind)


def _about_lost(lost: Mapping[str, str]) -> tuple[str, ...]:
    if not lost:
        return ()
    shown = "; ".join(f"{name} is {why}" for name, why in list(lost.items())[:_TOLD])
    more = f"; and {len(lost) - _TOLD} more" if len(lost) > _TOLD else ""
    return (f"there is no faithful way to write {shown}{more}. --exclude NAME leaves a tensor out",)


def _facts(source: str, nbytes: int, checkpoint: Checkpoint, found: _Found, limits: Limits) -> Inspection:
    weights, problems = found.weights, list(found.problems)
    plan, problem = _plan(weights, limits)
    problems += problem
    output_bytes = None
    if not problems:
        try:
            output_bytes = writers.named("safetensors").lay_out(plan, checkpoint.metadata).nbytes
        except SdconvertError as error:
            problems.append(str(error))
    dtypes = _dtypes(plan)
    known = {name.full for name in checkpoint.globals if is_known(name)}
    unknown = sorted({name.full for name in checkpoint.globals} - known)
    return Inspection(
        source=source,
        source_bytes=nbytes,
        container=checkpoint.container,
        version=checkpoint.version,
        kind=weights.kind,
        key=weights.key,
        tensors=tuple(_tensor(name, tensor, plan.aliases) for name, tensor in weights.tensors.items()),
        nbytes=plan.nbytes,
        elements=sum(one.elements for one in dtypes),
        output_bytes=output_bytes,
        candidates=found.candidates,
        aliases=plan.aliases,
        dtypes=dtypes,
        prefixes=known_prefixes(list(weights.tensors)),
        skipped=weights.skipped,
        known_globals=tuple(sorted(known)),
        unknown_globals=tuple(unknown),
        dangerous_globals=tuple(name for name in unknown if is_dangerous(name)),
        metadata=checkpoint.metadata,
        problems=tuple(problems),
        warnings=(*weights.warnings, *plan.warnings),
    )


def _plan(weights: StateDict, limits: Limits) -> tuple[Plan, list[str]]:
    """What a conversion would do. What it would not do is still told, with the reason beside it."""
    try:
        return make_plan(weights, limits=limits), []
    except SdconvertError as error:
        unbounded = replace(limits, expansion=sys.maxsize, scattered_reads=sys.maxsize)
        return make_plan(weights, limits=unbounded), [str(error)]


def _dtypes(plan: Plan) -> tuple[DTypeFacts, ...]:
    """How much there is of each element type, the most bytes first."""
    found: dict[str, list[Entry]] = {}
    for entry in plan.entries:
        found.setdefault(entry.dtype.name, []).append(entry)
    facts = [
        DTypeFacts(name, len(some), sum(one.tensor.numel for one in some), sum(one.nbytes for one in some))
        for name, some in found.items()
    ]
    return tuple(sorted(facts, key=lambda one: -one.nbytes))


def _tensor(name: str, tensor: TensorRef, aliases: Mapping[str, str]) -> TensorFacts:
    contiguous = all(
        piece.strides == piece.at_strides or is_contiguous(piece.shape, piece.strides) for piece in tensor.pieces
    )
    return TensorFacts(
        name, tensor.dtype.name, tensor.shape, tensor.numel, tensor.nbytes, aliases.get(name), contiguous
    )
