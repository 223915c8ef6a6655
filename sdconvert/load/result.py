"""What a load did, as data that unpacks and prints as what ``load_state_dict`` returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..tensor import Shape


class Misfit(NamedTuple):
    """A tensor whose shape in the source is not that in the model."""

    key: str
    source_shape: Shape
    model_shape: Shape


class Cast(NamedTuple):
    """A tensor whose dtype in the source is not the one it has now (or, of a misfit, would have)."""

    key: str
    source_dtype: str
    model_dtype: str


class _IncompatibleKeys(NamedTuple):  # Called as torch's is, for its repr.
    missing_keys: list[str]
    unexpected_keys: list[str]


class LoadResult(_IncompatibleKeys):
    """``missing_keys, unexpected_keys``, as ``Module.load_state_dict`` returns them, and what else happened.

    `loaded` are the names that got their values, in the model's order; `mismatched` and `uncast` those
    that were skipped for their shape or for a dtype that no cast leads to; `cast` those that changed their
    dtype. `ties` maps every other name of a shared tensor to its first. `prefix` was taken off the source's
    names (``+p.``: put on), `key` is where in the source they were. `renamed` maps names in
    the model to those in the source where they differ. `left_on_meta` are those that the device map left there.
    `nbytes` are those of the source's tensors that were loaded, `seconds` wall time.
    """

    loaded: tuple[str, ...]
    mismatched: tuple[Misfit, ...]
    uncast: tuple[Cast, ...]
    cast: tuple[Cast, ...]
    ties: Mapping[str, str]
    renamed: Mapping[str, str]
    left_on_meta: tuple[str, ...]
    source: str
    key: str
    prefix: str
    nbytes: int
    seconds: float

    @staticmethod
    def of(
        missing: Sequence[str],
        unexpected: Sequence[str],
        *,
        loaded: Iterable[str],
        mismatched: Iterable[Misfit],
        uncast: Iterable[Cast],
        cast: Iterable[Cast],
        ties: Mapping[str, str],
        renamed: Mapping[str, str],
        left_on_meta: Iterable[str],
        source: str,
        key: str,
        prefix: str,
        nbytes: int,
        seconds: float,
    ) -> LoadResult:
        """All of it, in one call."""
        result = LoadResult(list(missing), list(unexpected))
        result.loaded, result.mismatched = tuple(loaded), tuple(mismatched)
        result.uncast, result.cast = tuple(uncast), tuple(cast)
        result.ties, result.renamed, result.left_on_meta = ties, renamed, tuple(left_on_meta)
        result.source, result.key, result.prefix = source, key, prefix
        result.nbytes, result.seconds = nbytes, seconds
        return result

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys(missing_keys={self.missing_keys!r}, unexpected_keys={self.unexpected_keys!r})"

    __str__ = __repr__
