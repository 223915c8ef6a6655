"""What FSDP leaves in a file when it was not asked for the full state dict, and that no file by itself can undo.

``LOCAL_STATE_DICT``, or the parameters themselves, hold one flat tensor for each wrapped module
(``_flat_param``; ``flat_param`` in torch 1.11 and fairscale's ``flat_param_0``): this rank's part of all
parameters of it, one behind the other, padded. ``SHARDED_STATE_DICT`` holds a ``ShardedTensor`` for each
parameter, with this rank's part. Source: ``torch/distributed/fsdp/_state_dict_utils.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .checkpoint import Global, LostTensor, Value
from .errors import UnsupportedError

_FLAT = re.compile(r"_?flat_param(_\d+)?")
_WRAPPED = ("_fsdp_wrapped_module.", "_fpw_module.")
_SHARDED = "ShardedTensor"


def refuse_parts_of_ranks(tensors: Mapping[str, Value], globals_: Iterable[Global]) -> None:
    """UnsupportedError when one of the tensors is a flat parameter, or a rank's part of a ShardedTensor."""
    for name, value in tensors.items():
        if "flat_param" in name and _is_flat(name, value):
            raise UnsupportedError(
                f"{name} is a flat parameter of FSDP: one rank's part of many, whose shapes are not in the file. Load "
                f"it where it was trained, save with StateDictType.FULL_STATE_DICT; --exclude {name} leaves it out"
            )
    lost = [name for name, value in tensors.items() if type(value) is LostTensor]
    if lost and any(name.name == _SHARDED for name in globals_):
        raise UnsupportedError(
            f"{lost[0]} is a {_SHARDED}, of which each rank's file has a part. Load it where it was trained and save "
            "with StateDictType.FULL_STATE_DICT, or with torch.distributed.checkpoint"
        )


def _is_flat(name: str, value: Value) -> bool:
    last = name.rpartition(".")[2]
    if _FLAT.fullmatch(last) is None:
        return False
    # Anybody may call a parameter flat_param; FSDP's own is recognised by what is around it.
    return last.startswith("_") or type(value) is LostTensor or any(part in name for part in _WRAPPED)
