"""Recipes of encoded tensors as text beside the plain tensors that are their parts.

Where an encoded tensor cannot be written as itself, its parts are: each is called after the whole and
its role (``fc.weight`` becomes ``fc.weight.int_repr``, ``fc.weight.scales``), so nobody who does not know of
recipes takes a part for the whole. One JSON text under `KEY` says what they are parts of:
``{"version": 1, "tensors": {"fc.weight": {"recipe": {...}, "parts": {"int_repr": "fc.weight.int_repr"}}}}``.
What is complex128, complex32 or opaque bits keeps its name, and is written as what holds the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .checkpoint import Dict, EncodedTensor, Encoding, TensorRef, Value
from .dtypes import BY_NAME
from .encodings import Fact, check, encoded, plain_recipe
from .errors import UnreadableError, UnsupportedError, within
from .limits import Limits
from .strict_json import parse_text
from .tensor import contiguous_strides, strided

KEY = "sdconvert.encoded"
"""Where the text is: a key of safetensors' metadata, and of the ``_metadata`` of a state dict."""
_VERSION = 1
_BASE, _EACH = 64 << 10, 4 << 10  # Characters of text at most: at all, and for each tensor of the file.
_MOST = 64 << 20


def part_name(name: str, role: str) -> str:
    """What the part in `role` of the tensor `name` is called."""
    return f"{name}.{role}"


def spread(named: Mapping[str, Value], limits: Limits) -> tuple[dict[str, TensorRef], dict[str, Encoding]]:
    """Plain tensors only, and what they are parts of. UnreadableError when a part takes the name of something else."""
    tensors: dict[str, TensorRef] = {}
    encodings: dict[str, Encoding] = {}
    for name, value in named.items():
        if type(value) is not EncodedTensor:
            if tensors.setdefault(name, value) is not value:
                raise _clash(name)
            continue
        parts = {role: part_name(name, role) for role in value.parts}
        for role, part in parts.items():
            if part in named or part in tensors:
                raise _clash(part)
            tensors[part] = value.parts[role]
        encodings[name] = Encoding(value.recipe, parts)
        if len(tensors) > limits.tensors:
            raise UnreadableError(f"it has more than {limits.tensors} tensors (Limits.tensors). The file is hostile")
    return tensors, encodings


def _clash(name: str) -> UnsupportedError:
    return UnsupportedError(f"a part of an encoded tensor would be named {name!r}, as another tensor is. --rename one")


def to_text(encodings: Mapping[str, Encoding], names: Iterable[str]) -> str:
    """The text for a file of the tensors `names`. UnsupportedError when no reader would take that much."""
    tensors = {name: {"recipe": one.recipe, "parts": dict(one.parts)} for name, one in sorted(encodings.items())}
    text = json.dumps({"version": _VERSION, "tensors": tensors}, ensure_ascii=False, separators=(",", ":"))
    if len(text) > _longest(names):
        raise UnsupportedError(f"the recipes of its encoded tensors take {len(text)} characters, too many for a header")
    return text


def _longest(names: Iterable[str]) -> int:
    """Text takes memory when it is read, many times its length: no more than what the tensors account for."""
    return min(_MOST, _BASE + sum(_EACH for _ in names))


def alone(name: str, tensor: TensorRef) -> Encoding | None:
    """The encoding of a tensor whose dtype safetensors has no name for, but for what holds the same bytes."""
    if tensor.dtype.stand_in is None:
        return None
    recipe, role = plain_recipe(tensor.dtype.name, tensor.shape)
    return Encoding(recipe, {role: name})


def restored(tensors: Mapping[str, Value], text: str, limits: Limits) -> dict[str, Value]:
    """The tensors with those that `text` says are parts put together, each where its first part was.

    UnreadableError when the text is not what `to_text` makes of such tensors, UnsupportedError when it is of a kind
    that is newer than this reader.
    """
    with within(KEY):
        listed = _parsed(text, tensors, limits)
        result: dict[str, Value] = dict(tensors)
        owner: dict[str, str] = {}
        for name, one in listed.items():
            with within(name):
                if type(one) is not dict or one.keys() != {"recipe", "parts"}:
                    raise UnreadableError("it has not a recipe and parts. The file is damaged")
                recipe, parts = one["recipe"], one["parts"]
                if type(recipe) is not dict or type(parts) is not dict or not parts:
                    raise UnreadableError("it has not a recipe and parts. The file is damaged")
                for part in parts.values():
                    if type(part) is not str or type(tensors.get(part)) is not TensorRef:
                        raise UnreadableError(f"its part {part!r:.200} is not in the file. The file is damaged")
                if recipe.get("encoding") in ("complex", "bits"):
                    result[name] = _reinterpreted(name, recipe, parts, result)
                    continue  # Whole by itself, and perhaps a part of another.
                if len(set(parts.values())) != len(parts):
                    raise UnreadableError("it names one part twice. The file is damaged")
                for part in parts.values():
                    if owner.setdefault(part, name) != name:
                        raise UnreadableError(f"its part {part!r:.200} is a part of {owner[part]:.200}, too")
        for name, one in listed.items():
            if one["recipe"].get("encoding") in ("complex", "bits"):
                continue
            with within(name):
                parts = one["parts"]
                whole = encoded(one["recipe"], {role: result[part] for role, part in parts.items()})
                if name in tensors and owner.get(name) != name:
                    raise UnreadableError("there is a tensor of that name, too. The file is damaged")
            result[next(iter(parts.values()))] = whole
            listed[name]["whole"] = whole
        named = {id(one["whole"]): name for name, one in listed.items() if "whole" in one}
        return {
            named.get(id(value), name): value
            for name, value in result.items()
            if name not in owner or type(value) is EncodedTensor
        }


def with_recipes(tensors: dict[str, Value], node: Value, limits: Limits) -> dict[str, Value]:
    """The tensors of `node`, those put together of which a state dict that was written here keeps the recipes."""
    attributes = node.attributes if type(node) is Dict else None
    metadata = attributes.get("_metadata") if attributes is not None else None
    text = metadata.get(KEY) if type(metadata) is Dict else None
    return restored(tensors, text, limits) if type(text) is str else tensors


def _parsed(text: str, tensors: Mapping[str, Value], limits: Limits) -> dict[str, Any]:
    if len(text) > _longest(tensors):
        raise UnreadableError(f"{len(text)} characters are too many for {len(tensors)} tensors. The file is hostile")
    document = parse_text(text, "text", limits.json_bytes)
    if type(document.get("version")) is not int:
        raise UnreadableError("it is not a JSON object with a version. The file is damaged")
    if document["version"] != _VERSION:
        raise UnsupportedError(f"version {document['version']!r:.20} is not one that this reader knows")
    listed = document.get("tensors")
    if type(listed) is not dict or document.keys() != {"version", "tensors"}:
        raise UnreadableError("it does not list tensors. The file is damaged")
    try:
        "".join(listed).encode()
    except UnicodeEncodeError:
        raise UnreadableError("a name in it has half of a surrogate pair, which is no text. It is damaged") from None
    return listed


def _reinterpreted(
    name: str, recipe: Mapping[str, Any], parts: Mapping[str, str], tensors: Mapping[str, Value]
) -> TensorRef:
    """The tensor of halves or numbers `name`, as what it stands for."""
    if list(parts.values()) != [name]:
        raise UnreadableError("it is not its own part. The file is damaged")
    tensor = tensors[name]
    shape = check(recipe, {role: Fact(tensor.dtype.name, tensor.shape) for role in parts})
    dtype = BY_NAME[recipe["dtype"]]
    piece, halves = tensor.pieces[0], dtype.itemsize // tensor.dtype.itemsize
    if not tensor.is_plain or piece.offset % halves:
        raise UnreadableError("its bytes do not lie together. The file is damaged")
    return strided(dtype, shape, piece.storage, piece.offset // halves, contiguous_strides(shape))
