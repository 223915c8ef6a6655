"""Models as people write them: a residual network with batch norm, a small tied transformer; and their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import sdconvert


class Block(nn.Module):
    """Two convolutions and a way around them, as in torchvision's BasicBlock."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))).mean((2, 3)))

    @staticmethod
    def example() -> torch.Tensor:
        return torch.randn(2, 3, 32, 32)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class Transformer(nn.Module):
    """Embedding and head tied, positions in a non-persistent buffer, as GPT-like models have them."""

    def __init__(self, vocabulary: int = 50, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "attention": Attention(width),
                    "mlp": nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
                }
            )
            for _ in range(layers)
        )
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(64) / 64, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[-1], None]
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["attention"](layer["norm"](x))
            x = x + layer["mlp"](x)
        return self.head(x) * self.scale

    @staticmethod
    def example() -> torch.Tensor:
        return torch.randint(0, 50, (2, 9))


MODELS: dict[str, Callable[[], ResNet | Transformer]] = {"resnet": ResNet, "transformer": Transformer}
SOURCES = ["safetensors", "state_dict.pt", "module.pt", "wrapped.ckpt", "legacy.pt"]


def trained(model: nn.Module) -> nn.Module:
    """`model` with other values than a fresh one has, persistent buffers included."""
    with torch.no_grad():
        values = model.state_dict(keep_vars=True).values()
        for tensor in {id(value): value for value in values if isinstance(value, torch.Tensor)}.values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor).abs() / 10)
            elif tensor.dtype is torch.long:
                tensor.add_(7)
    return model


def saved(model: nn.Module, how: str, directory: Path) -> Path:
    """A file of the model's weights, made as `how` says."""
    path = directory / f"model.{how}"
    if how == "safetensors":
        sdconvert.save(model, path, overwrite=True)
    elif how == "module.pt":
        torch.save(model, path)
    elif how == "wrapped.ckpt":
        optimizer = torch.optim.AdamW(model.parameters())
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        model.zero_grad()
        torch.save({"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=how != "legacy.pt")
    return path


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes, NaNs and signs of zeros included."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


def same_model(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether all parameters and buffers, non-persistent ones too, are the same to the bit, and tied alike."""
    for kind in ("named_parameters", "named_buffers"):
        a, b = (dict(getattr(model, kind)(remove_duplicate=False)) for model in (ours, theirs))
        assert list(a) == list(b)
        for name in a:
            assert same_bits(a[name], b[name]), name
            assert a[name].requires_grad == b[name].requires_grad, name
        for one in a:
            for two in a:
                assert (a[one] is a[two]) == (b[one] is b[two]), (one, two)
    return True
