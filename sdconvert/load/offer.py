"""What a source offers to a model: named tensors with shape and dtype, before any of them is read.

A source is anything that `sdconvert.open` opens, or a state dict that is already loaded. Versions of modules
(``_metadata``) come along where the source has them: a state dict in a ``.pt`` file does; a module
that was pickled whole has none, since they are attributes of its class, and neither has a safetensors file.
As torch does, what is not there is taken as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import eq
from typing import Any, NamedTuple

import torch

from .. import dtypes
from ..checkpoint import Dict, StateDict
from ..errors import ChoiceError, UnsupportedError
from ..limits import Limits
from ..names import Names
from ..opening import OpenCheckpoint, PathLike
from ..opening import open as open_checkpoint
from ..search import walk
from ..tensor import Shape, Storage, TensorRef
from .packed import unpacked
from .slots import is_plain, shape_of

EXTRA = "_extra_state"
Patterns = str | Iterable[str] | None
Rename = Mapping[str, str] | Iterable[tuple[str, str]] | Callable[[str], str] | None


class Encoded(NamedTuple):
    """A tensor that plain ones and a recipe stand for; `parts` are (role, tensor)."""

    recipe: str
    """As JSON, so that it can be compared."""
    parts: tuple[tuple[str, TensorRef], ...]


class Offer(NamedTuple):
    """A tensor of the source. Offers whose `content` is the same object are one tensor under several names."""

    shape: Shape
    dtype: str
    content: TensorRef | Encoded | torch.Tensor | Same
    nbytes: int


class Same:
    """A tensor in memory, and whichever others are the same view of the same bytes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        layout = is_plain(tensor)
        place = (tensor.data_ptr(), tensor.stride()) if layout and tensor.numel() else id(tensor)
        self._key = (place, shape_of(tensor), tensor.dtype, tensor.device)

    def __eq__(self, other: object) -> bool:
        return type(other) is Same and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@dataclass
class Source:
    """What is offered, by name; `extras` are extra states that are not tensors. `versions` is torch's ``_metadata``."""

    name: str
    key: str
    offers: dict[str, Offer]
    extras: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, Any]] | None = None
    strays: tuple[str, ...] = ()
    """Names of what is no tensor and no extra state."""

    @property
    def shapes(self) -> dict[str, Shape | None]:
        """The shape of each tensor."""
        return {name: offer.shape for name, offer in self.offers.items()}

    def renamed(self, names: Mapping[str, str]) -> Source:
        """With other names: `names` gives the present one for each."""
        if all(map(eq, names.keys(), names.values())):
            return self
        offers = {new: self.offers[old] for new, old in names.items()}
        versions = self.versions
        if versions is not None:
            # A module is called after its tensors; one without any keeps its name.
            moved = {old.rpartition(".")[0]: new.rpartition(".")[0] for new, old in names.items()}
            versions = {moved.get(module, module): version for module, version in versions.items()}
        return Source(self.name, self.key, offers, self.extras, versions, self.strays)


class Where(NamedTuple):
    """How a source is opened, as `sdconvert.open` says."""

    revision: str | None
    token: str | None
    limits: Limits


@contextmanager
def offered(
    source: PathLike | Mapping[str, Any],
    where: Where,
    *,
    key: str | None,
    include: Patterns,
    exclude: Patterns,
    judge: Callable[[Source], bool] | None = None,
) -> Iterator[Source]:
    """The source's offers, open for as long as the block.

    `judge` says whether one of several state dicts fits, where no `key` says which one is meant; if exactly
    one does, it is taken. ChoiceError when none or several do.
    """
    names = Names(include=include or (), exclude=exclude or ())
    if isinstance(source, Mapping):
        if where.revision is not None:
            raise ChoiceError("a state dict in memory has no revisions; only what is on the Hub has: hf://owner/name")
        yield _in_memory(source, names)
        return
    with open_checkpoint(source, **where._asdict()) as opened:
        yield _chosen(opened, key, names, judge)


def _chosen(opened: OpenCheckpoint, key: str | None, names: Names, judge: Callable[[Source], bool] | None) -> Source:
    try:
        return _of(opened, opened.extract(key, names))
    except ChoiceError as error:
        if judge is None or key is not None or not error.candidates:
            raise
        fitting = []
        for candidate in error.candidates:
            try:
                source = _of(opened, opened.extract(candidate.key, names))
            except (ChoiceError, UnsupportedError):
                continue
            if judge(source):
                fitting.append(source)
        if len(fitting) != 1:
            raise
        return fitting[0]


def _of(opened: OpenCheckpoint, weights: StateDict) -> Source:
    # Of equal ones, the first; from here on they are told apart by identity. Equal ones begin in the same storage,
    # and most storages have one tensor, which then is not compared with any.
    alone: dict[Storage, TensorRef] = {}
    sharing: dict[TensorRef, TensorRef] = {}
    offers = {}
    for name, tensor in weights.tensors.items():
        known = alone.setdefault(tensor.pieces[0].storage, tensor)
        if known is not tensor:
            sharing.setdefault(known, known)
            tensor = sharing.setdefault(tensor, tensor)
        offers[name] = Offer(tensor.shape, tensor.dtype.name, tensor, tensor.nbytes)
    if weights.encoded:
        offers = _put_together(offers, weights)
    extras = {}
    if type(weights.leftovers) is Dict:
        extras = {
            str(name): _plain(value)
            for name, value in weights.leftovers.pairs
            if str(name).rpartition(".")[2] == EXTRA and _is_plain(value)
        }
    return Source(opened.name, weights.key, offers, extras, versions_of(opened, weights))


def _put_together(offers: dict[str, Offer], weights: StateDict) -> dict[str, Offer]:
    """The offers with each encoded tensor in the place of its parts."""
    owner = {part: name for name, encoding in weights.encoded.items() for part in encoding.parts.values()}
    encoded = dict(encoded_offers(weights))
    whole: dict[str, Offer] = {}
    for name, offer in offers.items():
        if name in owner:
            whole[owner[name]] = encoded[owner[name]]
        else:
            whole[name] = offer
    return whole


def encoded_offers(weights: StateDict) -> Iterator[tuple[str, Offer]]:
    """The tensors that are not plain, by name."""
    import json

    one: dict[Encoded, Encoded] = {}
    for name, encoding in weights.encoded.items():
        found = {role: weights.tensors[part] for role, part in encoding.parts.items()}
        shape = tuple(encoding.recipe.get("shape", ()))
        content = Encoded(json.dumps(dict(encoding.recipe)), tuple(found.items()))
        nbytes = sum(part.nbytes for part in found.values())
        dtype = str(encoding.recipe.get("dtype", "float32"))
        yield name, Offer(shape, dtype, one.setdefault(content, content), nbytes)


def versions_of(opened: OpenCheckpoint, weights: StateDict) -> dict[str, dict[str, Any]] | None:
    """``_metadata`` of a state dict: what torch noted of each module, by its name; None when there is none."""
    found = walk(opened.checkpoint.root, weights.key) if weights.key else None
    node = found.node if found is not None else opened.checkpoint.root
    attributes = node.attributes if type(node) is Dict else None
    noted = attributes.get("_metadata") if attributes is not None else None
    if type(noted) is not Dict:
        return None
    return {
        module: {name: value for name, value in facts.pairs if type(name) is str and type(value) in _PLAIN}
        for module, facts in noted.pairs
        if type(module) is str and type(facts) is Dict
    }


_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is made of plain data, and not deep."""
    if type(value) is list:
        return depth < 32 and all(_is_plain(item, depth + 1) for item in value)
    if type(value) is Dict:
        return depth < 32 and all(type(k) in _PLAIN and _is_plain(v, depth + 1) for k, v in value.pairs)
    return type(value) in _PLAIN


def _plain(value: Any) -> Any:
    if type(value) is list:
        return [_plain(item) for item in value]
    if type(value) is Dict:
        return {key: _plain(item) for key, item in value.pairs}
    return value


def _in_memory(source: Mapping[str, Any], names: Names) -> Source:
    odd = [name for name in source if type(name) is not str]
    if odd:
        raise ChoiceError(f"the state dict has the name {odd[0]!r}, which is not a string")
    everything = dict(unpacked(source))
    tensors = {name: value for name, value in everything.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in everything.items() if name not in tensors}
    strays = tuple(name for name in others if name.rpartition(".")[2] != EXTRA)
    if strays and not tensors:
        what = type(others[strays[0]]).__name__
        raise ChoiceError(f"{strays[0]} is a {what}, not a tensor. Give the state dict itself, not what it is in")
    if tensors:
        tensors, _ = names.apply(tensors)
    empty = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if empty is not None:
        raise ChoiceError(f"{empty} is on the meta device: it has no values to load")
    one: dict[Same, Same] = {}
    offers = {name: _offer_of(tensor, one) for name, tensor in tensors.items()}
    versions = getattr(source, "_metadata", None)
    return Source("the state dict", "", offers, others, versions, strays)


def _offer_of(tensor: torch.Tensor, one: dict[Same, Same]) -> Offer:
    dtype = str(tensor.dtype).removeprefix("torch.")
    content = Same(tensor)
    return Offer(shape_of(tensor), dtype, one.setdefault(content, content), tensor.numel() * tensor.element_size())


def renaming(rename: Rename, source: Source) -> dict[str, str]:
    """The names after `rename`, each with the one before. ChoiceError when it fits nothing, or two become one."""
    if callable(rename):
        changed = {rename(name): name for name in source.offers}
        if len(changed) != len(source.offers):
            raise ChoiceError("rename would give two tensors one name")
        return changed
    if not rename:
        return {}
    pairs = tuple(rename.items() if isinstance(rename, Mapping) else rename)
    changed, _ = Names(rename=pairs).apply({name: name for name in source.offers})
    return changed


def dtype_of(offer: Offer) -> dtypes.DType | None:
    """The offer's dtype in the table; None for what the table does not have."""
    return dtypes.BY_NAME.get(offer.dtype)
