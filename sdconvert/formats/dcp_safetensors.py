"""torch.distributed.checkpoint in safetensors files, one or more of each rank, without an index.

``HuggingFaceStorageWriter(save_distributed=True)`` writes ``shard-00001-model-00001-of-00001.safetensors``
and so on. The metadata key ``DCP_SHARDING_INFO`` of each is JSON: for each tensor ``saved_offsets``, the
index at which its part begins. How large a tensor is, is said nowhere: as in torch's own reader it ends
where its farthest part does. Sources: ``hf_storage.py``, ``filesystem.py`` and ``_hf_utils.py`` in
``torch/distributed/checkpoint``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..checkpoint import Checkpoint, Dict, TensorRef
from ..errors import UnreadableError, within
from ..limits import Limits
from ..source import Folder
from ..strict_json import parse_text
from ..tensor import Shape, check_numbers
from .boxes import Box, assemble
from .protocol import Nested

NAME = "dcp-safetensors"
_SHARD = re.compile(r"shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors")
_INFO = "DCP_SHARDING_INFO"


def sniff(folder: Folder) -> bool:
    return not folder.entry and any(_SHARD.fullmatch(name) for name in folder.files)


def read(folder: Folder, nested: Nested, limits: Limits) -> Checkpoint:
    parts: dict[str, list[Box]] = {}
    ranks = set()
    for file in folder.files:
        shard = _SHARD.fullmatch(file)
        if shard:
            ranks.add(int(shard[1]))
            with within(file):
                _collect(nested(folder.open(file)), parts, limits.json_bytes)
    root = Dict(attributes=Dict([("_metadata", Dict())]))  # All of it is what one state dict held.
    for name, boxes in parts.items():
        with within(name):
            root.pairs.append((name, assemble(_extent(boxes), boxes)))
    last = max(ranks)
    missing = sorted(set(range(1, last)) - ranks) if last <= 1 << 20 else []
    warnings = [
        f"the files do not say how many ranks wrote them: {last} here. If later ones are missing, tensors end early"
    ]
    if missing:
        warnings.append(f"there is no file of rank {missing[0]}; every tensor is whole without it")
    return Checkpoint(NAME, root, warnings=tuple(warnings))


def _collect(inside: Checkpoint, parts: dict[str, list[Box]], most: int) -> None:
    """Add what one file holds to the parts of each tensor."""
    info = inside.metadata.get(_INFO)
    if info is None or type(inside.root) is not Dict:
        raise UnreadableError(f"its metadata has no {_INFO}: nothing says which parts of tensors it holds")
    offsets = _offsets(info, most)
    for name, tensor in inside.root.pairs:
        if type(tensor) is not TensorRef or name not in offsets:
            raise UnreadableError(f"{name}: {_INFO} does not say which part of it this is. The file is damaged")
        parts.setdefault(name, []).append(Box(offsets[name], tensor))


def _offsets(text: str, most: int) -> Mapping[str, Shape]:
    found: dict[str, Shape] = {}
    for name, about in parse_text(text, _INFO, most).items():
        saved = about.get("saved_offsets") if type(about) is dict else None
        if type(saved) is not list:
            raise UnreadableError(f"{name}: its saved_offsets are not a list. The file is damaged")
        found[name] = tuple(saved)
        with within(name):
            check_numbers(found[name], len(saved))
    return found


def _extent(boxes: list[Box]) -> Shape:
    """The shape that ends where the farthest part does, in each dimension."""
    dimensions = len(boxes[0].offsets)
    if any(len(box.offsets) != dimensions or len(box.tensor.shape) != dimensions for box in boxes):
        raise UnreadableError("its parts differ in dimensions. The files do not belong together")
    return tuple(max(box.offsets[d] + box.tensor.shape[d] for box in boxes) for d in range(dimensions))
