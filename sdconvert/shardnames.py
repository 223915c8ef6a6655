"""What the files of a sharded checkpoint are called, as huggingface_hub, transformers and diffusers call them.

Shards are ``<stem>-00001-of-00002<ending>``, an index ``<stem><ending>.index.json``. A variant
stands in the stem or the ending (``model.fp16-00001-of-00002.safetensors`` of transformers,
``...-00001-of-00002.fp16.safetensors`` of diffusers), and before the ``.json`` of an index.
Sources: ``split_state_dict_into_shards_factory`` in huggingface_hub, ``_add_variant`` in
transformers and diffusers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,9})-of-(?P<count>\d{5,9})(?P<ending>(?:\.[^./]+)+)")
_INDEX = re.compile(r"(?P<stem>.+?)(?P<ending>\.[^./]+)\.index(?:\.(?P<variant>[^./]+))?\.json")


class ShardName(NamedTuple):
    """The name of a shard, taken apart; `number` counts from 1 to `total`."""

    stem: str
    number: int
    total: int
    ending: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.stem}-{self.number:05d}-of-{self.total:05d}{self.ending}"


class IndexName(NamedTuple):
    """The name of an index, taken apart; `variant` is "" when there is none."""

    stem: str
    ending: str
    variant: str = ""

    @property
    def name(self) -> str:
        """The name of the file."""
        variant = f".{self.variant}" if self.variant else ""
        return f"{self.stem}{self.ending}.index{variant}.json"


def as_shard(name: str) -> ShardName | None:
    """`name` taken apart, None when it is not the name of a shard."""
    found = _SHARD.fullmatch(name) if "/" not in name else None
    if found is None:
        return None
    number, total = int(found["number"]), int(found["count"])
    shard = ShardName(found["stem"], number, total, found["ending"])
    return shard if 1 <= number <= total and shard.name == name else None


def as_index(name: str) -> IndexName | None:
    """`name` taken apart, None when it is not the name of an index."""
    found = _INDEX.fullmatch(name) if "/" not in name else None
    return IndexName(found["stem"], found["ending"], found["variant"] or "") if found else None


def is_plain(name: str) -> bool:
    """Whether a name that a file mentions may be looked up beside it: no path, nothing that leads elsewhere."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)
