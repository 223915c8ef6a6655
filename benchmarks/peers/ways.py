"""The ways from a checkpoint to weights that can be used, and their command lines.

``python -m benchmarks.peers.ways WAY SOURCE OUT`` goes one of the peers' ways, by the lines that its documentation
gives, in an interpreter that has the peer. ``KEY`` after that is what a person who knows the file adds by hand: the
key of the state dict in it, and ``!`` before it to unpickle everything (``weights_only=False``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Command, sdconvert


@dataclass(frozen=True)
class Way:
    """One way.

    name: how tables call it. package: what has to be installed for it, or "". ending: of what it writes, "/" for
    a directory. command: its command line for a peers' interpreter, a source and an output. unpickles: whether
    it can be told to unpickle everything.
    """

    name: str
    package: str
    ending: str
    command: Callable[[str, Path, Path], Command]
    unpickles: bool = False


def _peer(way: str) -> Callable[[str, Path, Path], Command]:
    return lambda python, source, out: [python, "-m", "benchmarks.peers.ways", way, str(source), str(out)]


OURS = Way("sdconvert", "", ".safetensors", lambda python, source, out: sdconvert("to-safetensors", source, out))
COPY = Way("cp", "", ".copy", lambda python, source, out: ["cp", "-r", str(source), str(out)])
SAFETENSORS = Way("torch.load, safetensors save_file", "safetensors", ".safetensors", _peer("safetensors"), True)
HUB = Way("torch.load, huggingface_hub", "huggingface_hub", "/", _peer("hub"), True)
PT_LOADER = Way("pt-safe-loader", "pt_loader", ".safetensors", _peer("pt_loader"))
DCP = Way(
    "dcp_to_torch_save",
    "torch",
    ".pt",
    lambda python, source, out: [
        *(python, "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"),
        *(str(source), str(out)),
    ],
)
MERGE = Way("accelerate merge-weights", "accelerate", "/", _peer("merge"))
ZERO = Way("zero_to_fp32", "deepspeed", "/", _peer("zero"))

FILES = (OURS, COPY, SAFETENSORS, HUB, PT_LOADER)
DCPS = (OURS, COPY, DCP, MERGE)
ZEROS = (OURS, COPY, ZERO)
EVERY = (*FILES, DCP, MERGE, ZERO)
WITHOUT_LIMITS = ("max_archive_bytes", "max_tensor_count", "max_tensor_bytes", "max_pickle_bytes")


def _loaded(source: str, key: str) -> Any:
    import torch

    loaded = torch.load(source, map_location="cpu", weights_only=not key.startswith("!"))
    if isinstance(loaded, torch.nn.Module):
        return loaded.state_dict()
    name = key.removeprefix("!")
    return loaded[name] if name else loaded


def safetensors(source: str, out: str, key: str) -> None:
    """What the documentation of safetensors shows."""
    from safetensors.torch import save_file

    save_file(_loaded(source, key), out, metadata={"format": "pt"})


def hub(source: str, out: str, key: str) -> None:
    """One file, as the others write one; its own default is 5 GB a file."""
    from huggingface_hub import save_torch_state_dict

    Path(out).mkdir()
    save_torch_state_dict(_loaded(source, key), out, max_shard_size="1TB")


def pt_loader(source: str, out: str, key: str) -> None:
    """With its limits out of the way: a file of 3 GB is above them. With a key it chooses the file name itself."""
    from pt_loader import PtCheckpoint

    limits: dict[str, Any] = dict.fromkeys(WITHOUT_LIMITS, 1 << 40)
    options: dict[str, Any] = {"state_dict_root_key": name} if (name := key.removeprefix("!")) else {}
    done = PtCheckpoint.load(source, **limits, **options).export(out)
    os.replace(done["weights_path"], out)


def merge(source: str, out: str, key: str) -> None:
    """``accelerate merge-weights``, without its start."""
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(source, out)


def zero(source: str, out: str, key: str) -> None:
    """``zero_to_fp32.py --safe_serialization``, without the copy of the script in each checkpoint."""
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    convert_zero_checkpoint_to_fp32_state_dict(source, out, safe_serialization=True)


if __name__ == "__main__":
    run = {"safetensors": safetensors, "hub": hub, "pt_loader": pt_loader, "merge": merge, "zero": zero}[sys.argv[1]]
    run(sys.argv[2], sys.argv[3], (*sys.argv[4:], "")[0])
