"""Class 7 again: JSON that takes up to 45 times its bytes as Python's objects, in all the places that JSON is read."""

from __future__ import annotations

import json

from .case import Build, Case, either, rejects
from .safetensors_files import file, info
from .zips import Archive, Member

_LARGE, _SMALL = 90 << 20, 12 << 20
INDEX = "model.safetensors.index.json"

_UNITS = {
    "objects": b"{},",
    "lists": b"[],",
    "deeper-lists": b"[[[[[[[[[[]]]]]]]]]],",
    "pairs": b'{"":{}},',
    "numbers": b"999,",
    "floats": b"1e9,",
    "texts": b'"ab",',
}


def _list(unit: bytes, nbytes: int) -> bytes:
    return b"[" + unit * (nbytes // len(unit)) + b"0]"


def _names(value: bytes, nbytes: int) -> bytes:
    """An object of many names."""
    return b"{" + b",".join(b'"%x":%s' % (i, value) for i in range(nbytes // (9 + len(value)))) + b"}"


def _unknown(value: bytes) -> bytes:
    """A header with a sound tensor, and a field that nobody knows in it."""
    return file(json.dumps({"w": info()}).encode()[:-2] + b',"x":' + value + b"}}")


def _in_metadata(text: bytes) -> bytes:
    """A header whose metadata has JSON in a string, under the key of recipes."""
    said = json.dumps({"__metadata__": {"sdconvert.encoded": text.decode()}, "w": info()})
    return file(said.encode())


def _program(config: bytes) -> bytes:
    records = {"p/archive_format": b"pt2", "p/models/model.json": b"{}"}
    records["p/data/weights/model_weights_config.json"] = config
    return Archive([Member(name, data) for name, data in records.items()]).build()


def _named(builds: dict[str, Build], group: str, file: str) -> list[Case]:
    return list(rejects(f"json-bomb-{group}", builds, file=file))


CASES: list[Case] = [
    *_named(
        {
            **{key: lambda u=u: _unknown(_list(u, _SMALL)) for key, u in _UNITS.items()},  # type: ignore[misc]
            "lists-90-mb": lambda: _unknown(_list(_UNITS["lists"], _LARGE)),
            "numbers-90-mb": lambda: _unknown(_list(_UNITS["numbers"], _LARGE)),
            "names-90-mb": lambda: file(_names(b"{}", _LARGE)),
            "one-name-90-mb": lambda: file(b'{"' + "\U0001f600".encode() + b"a" * _LARGE + b'":1}'),
            "open-90-mb": lambda: file(b'{"w":' + b"[" * _LARGE),
            "open-text-90-mb": lambda: file(b'{"w":"' + b"a" * _LARGE),
            "recipes": lambda: _in_metadata(_list(_UNITS["deeper-lists"], 60_000)),
        },
        "header",
        "source.safetensors",
    ),
    *_named(
        {
            **{key: lambda u=u: b'{"weight_map":' + _list(u, _SMALL) + b"}" for key, u in _UNITS.items()},  # type: ignore[misc]
            "names-90-mb": lambda: b'{"weight_map":' + _names(b'"a"', _LARGE) + b"}",
            "wide-90-mb": lambda: b'{"' + "\U0001f600".encode() + b"a" * _LARGE + b'":1}',
        },
        "index",
        INDEX,
    ),
    *_named(
        {key: lambda u=u: _program(b'{"config":' + _list(u, _SMALL) + b"}") for key, u in _UNITS.items()},  # type: ignore[misc]
        "program",
        "model.pt2",
    ),
    *either(
        "json-bomb",
        {"spaces-90-mb": lambda: file(b" " * _LARGE + json.dumps({"w": info()}).encode())},
        file="source.safetensors",
    ),
]
