"""From a plan to the files that are to be: one, or shards and the index that names them.

Names and index are those of ``save_torch_state_dict`` in huggingface_hub: ``model.safetensors``
becomes ``model-00001-of-00002.safetensors``, ... and ``model.safetensors.index.json``, JSON with
``metadata`` (``total_size``: bytes of the tensors, ties once; ``{alias: kept}``) and ``weight_map``.
``model.pt`` becomes the same with ``.pt``, ``pytorch_model.bin`` with ``.bin``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .delivery import Delivery
from .errors import ChoiceError, OutputError, listed
from .output import BytesLayout, NewOutput
from .plan import Plan
from .report import Shard
from .shardnames import IndexName, ShardName, as_index, as_shard
from .writers import Writer

INDEX, DIVIDE = 0, -1
"""What of a sharded output is written, as a `part` of it: its index, or nothing yet. The shards count from 1."""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_TOTAL = "total_size"
_SHOWN = 3


def parse_size(size: int | str | None) -> int | None:
    """Bytes from ``5GB``, ``500MB``, a number, or 0 (no shards). ChoiceError when it is none of them."""
    if size is None:
        return None
    if type(size) is str:
        number, unit = size.strip()[:-2].strip(), size.strip()[-2:].upper()
        if unit not in _UNITS:
            number, unit = size.strip(), ""
        try:
            size = int(float(number) * _UNITS[unit]) if unit else int(number)
        except (ValueError, OverflowError):
            raise ChoiceError(f"--max-shard-size {size}: give a size such as 5GB or 500MB, or 0 for one file") from None
    if type(size) is not int or size < 0:
        raise ChoiceError(f"--max-shard-size {size}: give a size such as 5GB or 500MB, or 0 for one file")
    return size


def planned(target: Path, plan: Plan, writer: Writer, metadata: Mapping[str, str]) -> list[NewOutput]:
    """The files for `plan`: `target` itself, or an index, first, and the shards. Errors are those of `writer`."""
    parts = plan.parts()
    if len(parts) == 1:
        return [NewOutput(target, writer.lay_out(plan, metadata))]
    if not target.suffix:
        raise ChoiceError(f"{target}: the shards need an ending; name it {target}{writer.SUFFIX}")
    if _TOTAL in metadata:
        raise ChoiceError(f"metadata {_TOTAL!r} is set by the index itself")
    names = [ShardName(target.stem, number, len(parts), target.suffix).name for number in range(1, len(parts) + 1)]
    outputs = []
    weight_map: dict[str, str] = {}
    for name, part in zip(names, parts, strict=True):
        outputs.append(NewOutput(target.with_name(name), writer.lay_out(part, metadata)))
        # The index maps what is in the files: a .pt file holds a tie under all its names.
        weight_map |= dict.fromkeys(writer.names(part), name)
    said = {**metadata, **{alias: kept for alias, kept in plan.aliases.items() if alias not in weight_map}}
    about = {_TOTAL: plan.nbytes, **{key: value for key, value in said.items() if key != _TOTAL}}
    index = json.dumps({"metadata": about, "weight_map": weight_map}, indent=2, ensure_ascii=True)
    path = target.with_name(IndexName(target.stem, target.suffix).name)
    return [NewOutput(path, BytesLayout(index.encode())), *outputs]


def shards_of(plan: Plan, outputs: Sequence[NewOutput]) -> tuple[Shard, ...]:
    """What each file of a sharded output holds; () when it is one file."""
    if len(plan.shards) == 1:
        return ()
    return tuple(
        Shard(str(output.path), part.nbytes, tuple(entry.name for entry in part.entries))
        for output, part in zip(outputs[1:], plan.parts(), strict=True)
    )


def target_of(output: str | os.PathLike[str] | None, stem: Path, suffix: str) -> Path:
    """Where the output goes: `output`, or ``model`` in it when it is a directory; without it, beside the source."""
    if output is None:
        return Path(f"{stem}{suffix}")
    text = os.fspath(output)
    if text.endswith("/") or os.path.isdir(text):
        return Path(text) / f"model{suffix}"
    return Path(text)


def check_mixing(target: Path, paths: Sequence[Path], away: Delivery | None = None) -> None:
    """OutputError when files of an earlier output would lie beside the new ones as if they belonged to them: in the
    directory of `target`, or where its delivery goes `away` to."""
    names = {path.name for path in paths}
    there = away.beside() if away else _names_in(target.parent)
    stale = sorted(name for name in there if name not in names and _belongs(name, target))
    if stale:
        verb = "is" if len(stale) == 1 else "are"
        first = away.url_of(stale[0]) if away else target.parent / stale[0]
        raise OutputError(
            f"{first}: {listed(stale, _SHOWN)} {verb} there already and would be taken for a part of the output. "
            "Remove what is old, or name another output"
        )


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []  # Whoever opens the output says so better.


def _belongs(name: str, target: Path) -> bool:
    if shard := as_shard(name):
        return (shard.stem, shard.ending) == (target.stem, target.suffix)
    return name == target.name or as_index(name) == IndexName(target.stem, target.suffix)
