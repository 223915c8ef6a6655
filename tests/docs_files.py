"""The files that README and docs speak of, made small: each under the name that a page gives it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import sdconvert

ROOT = Path(__file__).parents[1]


class Encoder(nn.Module):
    """An embedding and a norm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.norm = nn.LayerNorm(width)


class Decoder(nn.Module):
    """A head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.head = nn.Linear(width, 20, bias=False)


class Net(nn.Module):
    """Two parts, one weight of which is tied."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width)
        self.decoder.head.weight = self.encoder.embedding.weight


class Hidden:
    """What it takes to run a command when a checkpoint is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


FILES: dict[str, Callable[[Path], None]] = {}


def _file(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(make: Callable[[Path], None]) -> Callable[[Path], None]:
        FILES[name] = make
        return make

    return keep


def named(names: list[str], directory: Path) -> None:
    """Make the files of these names in `directory`; one that is there stays."""
    for name in names:
        if not (directory / name).exists():
            FILES[name](directory / name)


def training(model: nn.Module) -> dict[str, object]:
    """What a trainer saves: weights, moments of an optimizer after a step, and an object of a class."""
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }


@_file("model.pt")
@_file("big.pt")
@_file("model.ckpt")
def _state_dict(path: Path) -> None:
    torch.save(Net().state_dict(), path)


@_file("charlm.pt")
@_file("examples/charlm.pt")
def _charlm(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "examples" / "charlm.pt", path)


@_file("run.pt")
@_file("last.ckpt")
def _training(path: Path) -> None:
    torch.save(training(Net()), path)


@_file("gan.pt")
def _gan(path: Path) -> None:
    torch.save({name: Net().state_dict() for name in ("generator", "discriminator")}, path)


@_file("ddp.pt")
def _ddp(path: Path) -> None:
    torch.save({f"module._orig_mod.{name}": value for name, value in Net().state_dict().items()}, path)


@_file("int8.pt")
def _int8(path: Path) -> None:
    with warnings.catch_warnings():  # torch says that it will have other quantized tensors one day.
        warnings.simplefilter("ignore")
        torch.save({"fc.weight": torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 3, torch.qint8)}, path)


@_file("ppo.zip")
def _ppo(path: Path) -> None:
    inside = path.with_name("policy.pth")
    torch.save(Net().state_dict(), inside)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inside, "policy.pth")
        archive.writestr("data", "{}")
    inside.unlink()


@_file("checkpoint-500/")
def _trainer(path: Path) -> None:
    path.mkdir()
    torch.save(Net().state_dict(), path / "pytorch_model.bin")
    torch.save({"state": {}, "param_groups": []}, path / "optimizer.pt")


@_file("llama/")
def _sharded(path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    path.mkdir()
    save_torch_state_dict({f"layers.{n}.weight": torch.randn(8, 8) for n in range(4)}, path, max_shard_size=600)


@_file("fsdp/")
def _dcp(path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():  # torch says that this is one process only.
        warnings.simplefilter("ignore")
        state = {"model": {f"layers.{n}.weight": torch.randn(8, 8) for n in range(4)}}
        dcp.save(state, checkpoint_id=path, no_dist=True)


@_file("net.pt")
@_file("yolo.pt")
def _lost_class(path: Path) -> None:
    """A whole model of a class in a module that is gone afterwards."""
    module = types.ModuleType("models")
    source = "from torch import nn\nclass Yolo(nn.Module):\n    def __init__(self):\n"
    source += "        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3)\n"
    exec(source, module.__dict__)
    sys.modules["models"] = module
    try:
        torch.save(module.Yolo(), path)
    finally:
        del sys.modules["models"]


@_file("hidden.pt")
def _hidden(path: Path) -> None:
    torch.save({**Net().state_dict(), "callbacks": Hidden()}, path)


@_file("tied.safetensors")
@_file("weights.safetensors")
def _tied(path: Path) -> None:
    sdconvert.save(Net(), path)


@_file("other.safetensors")
def _other(path: Path) -> None:
    state = {name: value.clone() for name, value in Net().state_dict().items()}
    sdconvert.save({**state, "encoder.norm.bias": torch.ones(16)}, path)


@_file("last/")
@_file("out/")
@_file("big/")
def _directory(path: Path) -> None:
    path.mkdir()


@_file("runs/")
def _runs(path: Path) -> None:
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        torch.save(training(Net()), path / name / "last.pt")
