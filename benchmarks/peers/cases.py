"""Small checkpoints of the kinds that go wrong, and what should come out of each, as torch itself has it.

``python -m benchmarks.peers.cases FOLDER`` makes them in an interpreter with torch and prints a list of `Case` as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import types
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Truth = dict[str, list[Any]]  # Of each name: dtype, shape, SHA-256 of the values in row-major order.


@dataclass(frozen=True)
class Case:
    """One checkpoint.

    label: what it is. path: where. kind: "file", "dcp" or "zero". truth: what should come out. by_hand: what a
    person who knows the file gives to a peer that has failed without (`ways`), or "".
    """

    label: str
    path: str
    kind: str
    truth: Truth
    by_hand: str = ""


class Hidden:
    """What it takes to run a command when a checkpoint is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def described(state: dict[str, torch.Tensor]) -> Truth:
    """Dtype, shape and digest of each tensor."""
    found: Truth = {}
    for name, tensor in state.items():
        values = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        found[name] = [str(tensor.dtype), list(tensor.shape), hashlib.sha256(values).hexdigest()]
    return found


def lost_model() -> nn.Module:
    """A model of a class in a module that nobody can import later."""
    source = """
from torch import nn
class Yolo(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)
        self.register_buffer("grid", self.conv.weight.detach()[0].clone(), persistent=False)
"""
    module = types.ModuleType("models")
    exec(source, module.__dict__)
    sys.modules["models"] = module
    made: nn.Module = module.Yolo()
    return made


def training(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Weights, and the moments that Adam has of them after a step."""
    parameters = [nn.Parameter(tensor.clone()) for tensor in state.values()]
    optimizer = torch.optim.Adam(parameters)
    torch.stack([parameter.sum() for parameter in parameters]).sum().backward()
    optimizer.step()
    return {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3}


def cases(folder: Path) -> list[Case]:
    """All of them, saved."""
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    state = {"a.weight": weight, "b.weight": torch.randn(96, 64), "b.bias": torch.randn(96)}
    found: list[Case] = []

    def save(label: str, value: Any, truth: dict[str, torch.Tensor], by: str = "", *, new: bool = True) -> None:
        path = folder / f"{len(found)}.pt"
        torch.save(value, path, _use_new_zipfile_serialization=new)
        found.append(Case(label, str(path), "file", described(truth), by))

    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    save("`model.state_dict()`", net.state_dict(), net.state_dict())
    half = {"a": weight.half(), "b": weight.bfloat16()}
    save("half precision", half, half)
    tied = {"embedding": weight, "head": weight, "norm": torch.ones(64)}
    save("tied tensors", tied, tied)
    slices = {"q": weight[:32], "k": weight[32:]}
    save("slices of one storage", slices, slices)
    strided = {"t": weight.t(), "conv": torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)}
    save("not contiguous", strided, strided)
    model = lost_model()
    save("a whole model, its class gone", model, model.state_dict(), "!")
    save("a file from before torch 1.6", state, state, new=False)
    save("a training checkpoint", training(state), state, "model")
    save("the same with its `args`", {**training(state), "args": argparse.Namespace(lr=0.1)}, state, "!model")
    save("a command hidden in it", {"model": state, "x": Hidden(folder / "ran")}, state, "!model")
    found.append(_dcp(folder / "dcp", state))
    found.append(_zero(folder / "zero"))
    return found


def _dcp(folder: Path, state: dict[str, torch.Tensor]) -> Case:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():  # torch says that this is one process only.
        warnings.simplefilter("ignore")
        dcp.save(training(state), checkpoint_id=folder, no_dist=True)
    return Case("an FSDP directory, optimizer in it", str(folder), "dcp", described(state))


def _zero(folder: Path) -> Case:
    from tests.formats.deepspeed_files import Model, write

    embedding = torch.randn(64, 32)
    model = Model([{"embedding": embedding, "norm": torch.randn(33)}], tied={"head": "embedding"})
    write(folder, model, stage=3, ranks=2)
    return Case("a ZeRO-3 directory, two weights tied", str(folder), "zero", described(model.expected()))


if __name__ == "__main__":
    print(json.dumps([asdict(case) for case in cases(Path(sys.argv[1]))]))
