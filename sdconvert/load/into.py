"""The relay of `load_into`: offers, names, a visit to the model, checks, tensors, and only then the model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn import Module

from ..errors import ChoiceError, within
from ..limits import Limits
from ..opening import PathLike
from ..progress import Bar, bar_of
from .job import Job
from .match import AUTO, Fit, fit
from .offer import EXTRA, Patterns, Rename, Source, Where, offered, renaming
from .place import NAMES, Placer
from .result import Cast, LoadResult, Misfit
from .slots import Slot, nodes, shape_of, shapes, takes_extra, tree
from .targets import Targets, assigning

_MISMATCH = ("error", "skip")


def load_into(
    model: Module,
    source: PathLike | Mapping[str, Any],
    *,
    device: Any,
    dtype: str | torch.dtype | None,
    strict: bool,
    assign: Any,
    prefix: str | None,
    rename: Rename,
    include: Patterns,
    exclude: Patterns,
    on_mismatch: str,
    key: str | None,
    copy: str,
    threads: int | None,
    progress: Bar | bool | None,
    retie: bool,
    revision: str | None,
    token: str | None,
    limits: Limits,
) -> LoadResult:
    """As `sdconvert.load_into` says."""
    began = time.perf_counter()
    if on_mismatch not in _MISMATCH:
        raise ChoiceError(f"on_mismatch={on_mismatch!r} is not one of {', '.join(_MISMATCH)}")
    where = Where(revision, token, limits)
    targets = Targets(dtype, device, assigning(assign))
    placer = Placer(copy, threads)
    modules = list(nodes(tree(model)))
    slots = [slot for node in modules for slot in node.slots]
    targets.devices.check(slot.key for slot in slots)
    extras = [node.prefix + EXTRA for node in modules if takes_extra(node.module)]
    wanted = {slot.key for slot in slots if not slot.is_hidden}.union(extras)

    def named(given: Source) -> tuple[Source, Fit]:
        given = given.renamed(renaming(rename, given))
        if prefix == AUTO and given.offers.keys() == wanted:
            return given, Fit({})
        found = fit(given.shapes, shapes(slots) | dict.fromkeys(extras), prefix)
        return given.renamed(found.names), found

    def judge(given: Source) -> bool:
        names = named(given)[0].offers.keys()
        shared = _shared(slot for slot in slots if not slot.is_hidden).values()
        return names <= wanted and all(not names.isdisjoint(keys) for keys in shared)

    with (
        offered(source, where, key=key, include=include, exclude=exclude, judge=judge) as opened,
        within(opened.name),
    ):
        original = opened.offers
        fitted, how = named(opened)
        job = Job(modules, slots, fitted, targets, strict=strict, skip=on_mismatch == "skip")
        if not job.found.postponed:
            job.check()
        nbytes = job.nbytes
        with bar_of(progress)("loading", nbytes) as update:
            job.read(placer, update)
    ties = job.finish(retie=retie)
    renamed = {}
    if fitted.offers is not original:
        renamed = {new: old for new, old in zip(fitted.offers, original, strict=True) if new != old}
    return LoadResult.of(
        job.missing,
        job.unexpected,
        loaded=[goal.slot.key for goal in job.goals],
        mismatched=[
            Misfit(slot.key, fitted.offers[name].shape, shape_of(slot.tensor)) for slot, name in job.found.misfits
        ],
        uncast=[Cast(slot.key, fitted.offers[name].dtype, NAMES[slot.tensor.dtype]) for slot, name in job.found.uncast],
        cast=job.casts,
        ties=ties,
        renamed=renamed,
        left_on_meta=job.left_on_meta,
        source=opened.name,
        key=opened.key,
        prefix=how.prefix,
        nbytes=nbytes,
        seconds=time.perf_counter() - began,
    )


def _shared(slots: Iterable[Slot]) -> dict[int, list[str]]:
    shared: dict[int, list[str]] = {}
    for slot in slots:
        shared.setdefault(id(slot.tensor), []).append(slot.key)
    return shared
