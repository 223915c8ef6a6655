"""DeepSpeed's files, built as DeepSpeed 0.19 writes them, without it.

The layout was taken from checkpoints that DeepSpeed itself wrote: two ranks, stages 1 to 3, with
frozen, tied and grouped parameters, in float32 and bfloat16. What is built here has the same files, keys,
types and order, but for the optimizer's own state.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

MODULES = ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero", "deepspeed.runtime.zero.config")


class ZeroStageEnum(int, Enum):
    """Pickled by the name that DeepSpeed's has."""

    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3


ZeroStageEnum.__module__ = MODULES[-1]


@dataclass
class Model:
    """What is saved: float32 weights in `groups`, and what is beside them. Names are in the order of the module."""

    groups: Sequence[dict[str, torch.Tensor]]
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """All parameters that are trained."""
        return {name: tensor for group in self.groups for name, tensor in group.items()}

    def expected(self) -> dict[str, torch.Tensor]:
        """The weights as they should come out: float32 where they were trained, else as stored."""
        weights = {**self.trained, **{n: t.to(self.dtype) for n, t in self.frozen.items()}, **self.buffers}
        return weights | {alias: weights[kept] for alias, kept in self.tied.items()}


def write(
    folder: Path, model: Model, *, stage: int, ranks: int, tag: str = "global_step3", gaps: int | None = 0
) -> Path:
    """Write a checkpoint of `model` below `folder`, with `latest`; the folder of the tag.

    `gaps` elements of padding follow each parameter of stages 1 and 2; None leaves out the list of
    them, as older versions do.
    """
    place = folder / tag
    place.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    prefix = "" if model.dtype == torch.float32 else "bf16_" if model.dtype == torch.bfloat16 else "fp16_"
    for rank in range(ranks):
        optim = _optim(model, stage, ranks, rank, gaps)
        _save(optim, place / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3 or rank == 0:
            name = f"zero_pp_rank_{rank}_mp_rank_00" if stage == 3 else "mp_rank_00"
            _save(_model(model, stage, ranks, rank), place / f"{name}_model_states.pt")
    return place


def edit(file: Path, change: Any) -> None:
    """Load a file, let `change` at its object, and save it again."""
    with Impostors():
        obj = torch.load(file, weights_only=False)
        change(obj)
        torch.save(obj, file)


class Impostors:
    """The modules of DeepSpeed that its classes are pickled by the names of, while they are needed."""

    def __enter__(self) -> None:
        for name in MODULES:
            sys.modules[name] = types.ModuleType(name)
        sys.modules[MODULES[-1]].ZeroStageEnum = ZeroStageEnum  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        for name in MODULES:
            del sys.modules[name]


def _save(obj: dict[str, Any], file: Path) -> None:
    with Impostors():
        torch.save(obj, file)


def _optim(model: Model, stage: int, ranks: int, rank: int, gaps: int | None) -> dict[str, Any]:
    state: dict[str, Any] = {"zero_stage": ZeroStageEnum(stage), "loss_scaler": None, "overflow": False}
    if stage == 3:
        state |= {"partition_count": ranks, "optimizer_state_dict": {"state": {}, "param_groups": []}}
        state["fp32_flat_groups"] = [
            torch.cat([_part(tensor, ranks, rank) for tensor in group.values()]) for group in model.groups
        ]
    else:
        state |= {"base_optimizer_state": {"state": {}, "param_groups": []}, "clip_grad": 0.0}
        state["single_partition_of_fp32_groups"] = [_partition(group, ranks, rank, gaps or 0) for group in model.groups]
        state["partition_count"] = [ranks] * len(model.groups)
        if gaps is not None:
            state["param_alignment_paddings"] = [[gaps] * len(group) for group in model.groups]
    return {"optimizer_state_dict": state, "ds_config": {"zero_optimization": {"stage": stage}}, "ds_version": "0.19.8"}


def _part(tensor: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """Stage 3: an equal part of one parameter for each rank, zeros after the last element."""
    each = -(-tensor.numel() // ranks)
    padded = torch.cat([tensor.flatten(), torch.zeros(each * ranks - tensor.numel(), dtype=tensor.dtype)])
    return padded[rank * each : (rank + 1) * each].clone()


def _partition(group: dict[str, torch.Tensor], ranks: int, rank: int, gap: int) -> torch.Tensor:
    """Stages 1 and 2: an equal part of all parameters of a group; the last rank's padding is not saved."""
    flat = torch.cat([part for tensor in group.values() for part in (tensor.flatten(), torch.zeros(gap))])
    step = 2 * ranks
    each = -(-flat.numel() // step) * step // ranks
    return flat[rank * each : (rank + 1) * each].clone()


def _model(model: Model, stage: int, ranks: int, rank: int) -> dict[str, Any]:
    module: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, tensor in {**model.trained, **model.frozen}.items():
        module[name] = tensor.to(model.dtype) if stage < 3 else torch.empty(0, dtype=model.dtype)
    for alias, kept in model.tied.items():
        module[alias] = module[kept]
    frozen = OrderedDict((name, tensor.to(model.dtype)) for name, tensor in model.frozen.items())
    if stage == 3:
        frozen = OrderedDict((name, _part(tensor, ranks, rank)) for name, tensor in frozen.items())
    return {
        "module": OrderedDict(**module, **model.buffers),
        "buffer_names": list(model.buffers),
        "optimizer": None,
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in model.groups],
        "frozen_param_shapes": OrderedDict((name, tensor.shape) for name, tensor in model.frozen.items()),
        "shared_params": model.tied,
        "frozen_param_fragments": frozen,
        "lr_scheduler": None,
        "global_steps": 3,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "ds_version": "0.19.8",
        "client": {"epoch": 1},
    }
