"""Class 8: index files. Each must be refused in one line, without a look at anything that is not beside it."""

from __future__ import annotations

import json

from .case import Case, rejects

FILE = "model.safetensors.index.json"
_SHARDS = {
    "parent": "../evil.safetensors",
    "deep-parent": "a/../../evil.safetensors",
    "absolute": "/etc/passwd",
    "dev-zero": "/dev/zero",
    "dev-stdin": "/dev/stdin",
    "fifo": "/proc/self/fd/0",
    "self": FILE,
    "dot": ".",
    "empty": "",
    "drive": "C:\\x.safetensors",
    "drive-relative": "C:x",
    "unc": "\\\\host\\share\\x",
    "backslash": "..\\x",
    "url": "http://127.0.0.1/x",
    "file-url": "file:///etc/passwd",
    "nul": "a\0.safetensors",
    "newline": "a\n.safetensors",
    "escape": "\x1b[2J",
    "bidi": "\u202efs",
    "long": "a" * 5000,
    "tilde": "~/x",
    "variable": "$HOME/x",
    "percent": "%2e%2e/x",
    "device": "CON",
    "stream": "a.safetensors:x",
}
_SHAPES: dict[str, object] = {
    "empty": {},
    "no-map": {"metadata": {}},
    "map-list": {"weight_map": []},
    "map-null": {"weight_map": None},
    "shard-int": {"weight_map": {"w": 5}},
    "shard-null": {"weight_map": {"w": None}},
    "shard-list": {"weight_map": {"w": ["a"]}},
    "shard-object": {"weight_map": {"w": {}}},
    "many": {"weight_map": {f"w{i}": f"s{i}" for i in range(20_000)}},
    "list": [],
    "number": 5,
    "string": "x",
    "metadata-list": {"metadata": [], "weight_map": {"w": "a"}},
}
_RAW = {
    "duplicate": b'{"weight_map":{"w":"a","w":"b"}}',
    "cut": b'{"weight_map":',
    "deep": b"[" * 100_000,
    "nan": b'{"weight_map":NaN}',
    "bom": b'\xef\xbb\xbf{"weight_map":{}}',
    "utf16": '{"weight_map":{}}'.encode("utf-16"),
    "spaces": b"   \n\t {}",
}

CASES: list[Case] = [
    *rejects(
        "index-shard",
        {
            key: lambda v=v: json.dumps({"metadata": {}, "weight_map": {"w": v}}).encode()  # type: ignore[misc]
            for key, v in _SHARDS.items()
        },
        file=FILE,
    ),
    *rejects("index", {key: lambda v=v: json.dumps(v).encode() for key, v in _SHAPES.items()}, file=FILE),  # type: ignore[misc]
    *rejects("index-raw", {key: lambda v=v: v for key, v in _RAW.items()}, file=FILE),  # type: ignore[misc]
]
