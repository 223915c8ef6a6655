"""safetensors, to the byte what ``safetensors.torch.save_file(..., metadata={"format": "pt"})`` writes.

An 8-byte little-endian header length; the header, compact JSON padded with spaces to a
multiple of 8; the tensors without gaps, larger alignments first and by name within a
dtype. Source: ``prepare`` in ``safetensors/src/tensor.rs``. The reference's order of
metadata keys is that of a hash table; ours is ``format``, then sorted. The recipes of encoded tensors
(`recipes`) are one of these keys, where there are any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring
from operator import itemgetter

from ..checkpoint import Encoding
from ..dtypes import BY_NAME, LAYOUT_RANK
from ..encodings import stand_in
from ..errors import ChoiceError, UnreadableError, UnsupportedError
from ..limits import DEFAULT_LIMITS
from ..plan import Entry, Plan
from ..recipes import KEY, alone, to_text
from ..stream import Placed

NAME = "safetensors"
SUFFIX = ".safetensors"
HAS_METADATA = True
_RESERVED = ("format", KEY)


@dataclass(frozen=True)
class SafetensorsLayout:
    """A safetensors file, decided to the byte."""

    nbytes: int
    fixed: tuple[tuple[int, bytes], ...]
    placed: tuple[Placed, ...]

    def finish(self, crcs: Mapping[int, int]) -> tuple[tuple[int, bytes], ...]:
        """Nothing: the format has no checksums."""
        return ()


def names(plan: Plan) -> list[str]:
    return [entry.name for entry in plan.entries] + [alias for alias in plan.aliases if alias in _RESERVED]


def encoded(plan: Plan) -> Mapping[str, Encoding]:
    """The tensors that are written as parts and a recipe."""
    found = dict(plan.encoded)
    by_name = {entry.name: entry.tensor for entry in plan.entries if entry.dtype.stand_in is not None}
    for name in plan.names if by_name else ():
        tensor = by_name.get(plan.aliases.get(name, name))
        if tensor is not None and (one := alone(name, tensor)) is not None:
            found[name] = one
    return found


def lay_out(plan: Plan, metadata: Mapping[str, str]) -> SafetensorsLayout:
    entries = list(plan.entries)
    for name in (*(entry.name for entry in entries), *plan.aliases):
        if name == "__metadata__":
            raise UnreadableError("a tensor is named __metadata__, which safetensors keeps for itself. --rename it")
    # An alias under a reserved key would be read as something else: such a tensor is written by itself.
    tensors = {entry.name: entry for entry in entries}
    entries += (
        Entry.of(alias, tensors[kept].tensor, tensors[kept].dtype)
        for alias, kept in plan.aliases.items()
        if alias in _RESERVED
    )
    aliases = {alias: kept for alias, kept in plan.aliases.items() if alias not in _RESERVED}
    for key in metadata:
        try:
            (key + metadata[key]).encode()
        except UnicodeEncodeError:
            raise ChoiceError(f"metadata {key!r} is not Unicode text") from None
        if key in _RESERVED:
            raise ChoiceError(f"metadata {key!r} is set by the format itself")
        if key in aliases and metadata[key] != aliases[key]:
            raise ChoiceError(f"metadata {key!r} is the name of a tensor that is tied to {aliases[key]}")
    entries.sort(key=itemgetter(0))  # By name; sorting is stable.
    entries.sort(key=lambda entry: LAYOUT_RANK[entry.dtype.stand_in or entry.dtype.name])
    recipes = encoded(plan)
    more = {KEY: to_text(recipes, [entry.name for entry in entries])} if recipes else {}
    about = {"format": "pt", **dict(sorted({**metadata, **aliases, **more}.items()))}
    header = ['"__metadata__":' + json.dumps(about, ensure_ascii=False, separators=(",", ":"))]
    at, places = 0, []
    for entry in entries:
        end = at + entry.nbytes
        dtype, shape = entry.dtype, list(entry.tensor.shape)
        if dtype.stand_in is not None:
            name, size = stand_in(dtype.name, entry.tensor.shape)
            dtype, shape = BY_NAME[name], list(size)
        if dtype.code is None:
            raise UnsupportedError(
                f"{entry.name} is {entry.dtype.name}, which safetensors does not have. "
                f"--exclude {entry.name} leaves it out; a .pt file can hold it"
            )
        if dtype.packed > 1:
            if not shape:
                raise UnsupportedError(f"{entry.name}: {dtype.name} needs a dimension that its pairs fill")
            shape[-1] *= dtype.packed
        sizes = ",".join(map(str, shape))
        # By hand: a dict for each of a hundred thousand tensors takes three times as long.
        header.append(
            f'{encode_basestring(entry.name)}:{{"dtype":"{dtype.code}","shape":[{sizes}],"data_offsets":[{at},{end}]}}'
        )
        places.append((entry, at))
        at = end
    text = f"{{{','.join(header)}}}".encode()
    text += b" " * (-len(text) % 8)
    if len(text) > DEFAULT_LIMITS.header_bytes:
        raise UnsupportedError(f"the header would have {len(text)} bytes; safetensors readers stop at 100,000,000")
    start = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return SafetensorsLayout(start + at, ((0, head),), tuple(Placed(entry, start + place) for entry, place in places))
