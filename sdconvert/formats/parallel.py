"""Files that hold parts of every tensor, one for each rank: told by their names, and by what joins them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import UnsupportedError


class _Kind(NamedTuple):
    pattern: re.Pattern[str]
    """Fits a path; its groups are the rank."""
    what: str
    remedy: str
    alone: bool = False
    """Whether one file by itself is already a part."""


_HERE = r"(?:.*/)?"
_KINDS = (
    _Kind(
        re.compile(_HERE + r"consolidated\.(\d{2,})\.pth"),
        "tensor-parallel parts of a Llama model",
        "Join them with transformers' convert_llama_weights_to_hf.py",
    ),
    _Kind(
        re.compile(_HERE + r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_\d+)?/[^/]+\.(?:pt|pth)"),
        "tensor- or pipeline-parallel parts of a Megatron-LM model",
        "Join them with Megatron-LM's tools/checkpoint/convert.py",
    ),
    _Kind(
        re.compile(_HERE + r"tp_rank_(\d{2,})(?:_pp_rank_(\d{3,}))?/[^/]+\.ckpt"),
        "tensor- or pipeline-parallel parts of a NeMo model",
        "Join them with NeMo's change_tensor_parallel_size.py",
    ),
    _Kind(
        re.compile(_HERE + r"mp_rank_(\d{2,})_model_states\.pt"),
        "tensor-parallel parts that DeepSpeed wrote",
        "Join them with the tools of the project that trained it",
    ),
    _Kind(
        re.compile(_HERE + r"layer_(\d+)-model_(?:(\d+)-)?(?:model_)?states\.pt"),
        "pipeline-parallel parts that DeepSpeed wrote",
        "Join them with the tools of the project that trained it",
    ),
    _Kind(
        re.compile(_HERE + r"model(\d+)-mp\d+\.safetensors"),
        "tensor-parallel parts of a DeepSeek model",
        "Convert the original shards, before its convert.py",
    ),
    _Kind(
        re.compile(_HERE + r"[^/]*-model_part-(\d+)[^/]*\.pt"),
        "tensor-parallel parts of a metaseq or fairseq model",
        "Join them with metaseq's reshard_mp script",
    ),
    _Kind(
        re.compile(_HERE + r"[^/]*?-shard(\d+)\.pt"),
        "FSDP parts that fairseq wrote",
        "Join them with fairseq's consolidate_fsdp_shards.py",
    ),
    _Kind(
        re.compile(_HERE + r"(?:pytorch_)?model_(?:fsdp_)?(?:\d+_)?rank_?(\d+)\.bin"),
        "the ranks' own parts of an FSDP model (LOCAL_STATE_DICT)",
        "Load them in the training script and save with StateDictType.FULL_STATE_DICT",
        alone=True,
    ),
)


def parts(names: Iterable[str]) -> str | None:
    """What the files are, and what to do, when they are parts of one model for each rank; None when they are not.

    One part alone is one only where its name leaves no doubt: with a single rank it is the whole.
    """
    names = list(names)
    for kind in _KINDS:
        found: dict[tuple[str | None, ...], str] = {}
        for name in names:
            if match := kind.pattern.fullmatch(name):
                found.setdefault(match.groups(), name)
        if len(found) > (0 if kind.alone else 1):
            first, last = min(found.values()), max(found.values())
            shown = f"{first} to {last}" if len(found) > 1 else first
            return f"{kind.what}, {len(found)} of them ({shown}): each file has a slice of every tensor. {kind.remedy}"
    return None


def refuse_parts(names: Iterable[str]) -> None:
    """UnsupportedError when the files are parts of one model for each rank."""
    what = parts(names)
    if what is not None:
        raise UnsupportedError(f"holds {what}")
