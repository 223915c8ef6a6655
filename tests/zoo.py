"""Models of every kind whose pickles differ: what torch has, and what people do to modules.

Their classes are importable here, because torch's own `state_dict()` is the oracle; the
converter never imports this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

ZOO: dict[str, Callable[[], nn.Module]] = {}


def kept(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Put a model into the zoo under its function's name."""
    ZOO[build.__name__] = build
    return build


class Tied(nn.Module):
    """A language model's embedding and head, and one bias under two names of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.bias = self.head.bias
        self.late = nn.Linear(4, 7)
        self.late.weight = self.embedding.weight


class Buffers(nn.Module):
    """Buffers of every kind: persistent, not persistent, None, tied to a parameter, a scalar, an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("kept", torch.arange(5))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("twin", self.weight.data)
        self.register_buffer("scalar", torch.tensor(3.5, dtype=torch.float64))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_parameter("absent", None)
        self.plain = torch.randn(6)
        self.listed = [torch.randn(2), nn.Parameter(torch.randn(2))]
        self.register_module("child", None)


class Shared(nn.Module):
    """One module in three places, one of them inside another."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.first, self.second = block, block
        self.nest = nn.ModuleDict({"again": block, "own": nn.Linear(3, 3, bias=False)})


class Views(nn.Module):
    """Parameters that are views: slices of one storage, a transpose, a row of a larger one."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.randn(6, 4)
        self.top, self.bottom = nn.Parameter(base[:3]), nn.Parameter(base[3:])
        self.turned = nn.Parameter(torch.randn(5, 2).t())
        self.row = nn.Parameter(torch.randn(100, 3)[41])
        self.register_buffer("every_other", torch.arange(12.0)[1::2])
        self.register_buffer("repeated", torch.randn(1, 3).expand(4, 3))


class OwnState(nn.Module):
    """A module that decides what is pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("steps", torch.tensor(7))
        self.callback = lambda: None  # Cannot be pickled: the reason why people write __getstate__.

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["callback"]
        state["note"] = "trimmed"
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, callback=lambda: None)


class Slotted(nn.Module):
    """State as (dict, slots), which copyreg makes of a class with __slots__."""

    __slots__ = ("extra",)

    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.randn(3)
        self.linear = nn.Linear(2, 2)


class OddNames(nn.Module):
    """Names with everything that a name may have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("weight é\n\"'\\", nn.Parameter(torch.randn(2)))
        self.register_buffer("0", torch.ones(1))
        self.add_module("module", nn.Linear(1, 1))
        self.add_module("optimizer", nn.Linear(1, 1))  # A name that elsewhere means training state.


class Functional(nn.Module):
    """Something that torch.fx can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.register_buffer("shift", torch.ones(3))

    # Without hints: torch.fx would keep them as text, and then fail to pickle them.
    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.layers(x) + self.shift


def compile_quietly(model: nn.Module) -> nn.Module:
    """torch.compile, which imports parts of torch that warn of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return result


@kept
def tied() -> nn.Module:
    return Tied()


@kept
def buffers() -> nn.Module:
    return Buffers()


@kept
def shared_modules() -> nn.Module:
    return Shared()


@kept
def views() -> nn.Module:
    return Views()


@kept
def own_getstate() -> nn.Module:
    return nn.Sequential(OwnState(), OwnState())


@kept
def slots() -> nn.Module:
    return Slotted()


@kept
def odd_names() -> nn.Module:
    return OddNames()


@kept
def lstm() -> nn.Module:
    return nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)


@kept
def gru() -> nn.Module:
    return nn.ModuleList([nn.GRU(3, 4, bias=False), nn.RNNCell(2, 2)])


@kept
def attention() -> nn.Module:
    return nn.ModuleList([nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True)])


@kept
def transformer() -> nn.Module:
    return nn.Transformer(8, 2, num_encoder_layers=1, num_decoder_layers=2, dim_feedforward=5, batch_first=True)


@kept
def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(weight_norm(nn.Linear(3, 4)), weight_norm(nn.Conv1d(2, 3, 2), dim=None))


@kept
def old_spectral_norm() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(3, 4)), spectral_norm(nn.Conv2d(2, 3, 2)))


@kept
def norms() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.InstanceNorm2d(3),
        nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        nn.LayerNorm([2, 3]),
        nn.GroupNorm(1, 3),
        nn.SyncBatchNorm(2),
        nn.RMSNorm(4),
    )


@kept
def embeddings() -> nn.Module:
    return nn.ModuleList([nn.EmbeddingBag(5, 3), nn.Embedding(4, 2, padding_idx=0), nn.Embedding(4, 2, sparse=True)])


@kept
def containers() -> nn.Module:
    model = nn.Module()
    model.listed = nn.ParameterList([nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(()))])
    model.named = nn.ParameterDict({"b": nn.Parameter(torch.randn(2)), "a": nn.Parameter(torch.randn(0))})
    model.modules_by_name = nn.ModuleDict({"z": nn.PReLU(3), "a": nn.Bilinear(2, 3, 1), "empty": nn.Identity()})
    model.softmax = nn.AdaptiveLogSoftmaxWithLoss(4, 6, cutoffs=[2])
    model.shape = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 2)), nn.Dropout())
    return model


@kept
def convolutions() -> nn.Module:
    model = nn.Sequential(nn.Conv3d(2, 2, 2), nn.ConvTranspose2d(2, 4, 3, groups=2), nn.Conv2d(3, 4, 2))
    return model.to(memory_format=torch.preserve_format)


@kept
def channels_last() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


@kept
def lazy_before() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 1))


@kept
def lazy_after() -> nn.Module:
    model = lazy_before()
    model(torch.randn(2, 3))
    return model


@kept
def data_parallel() -> nn.Module:
    return nn.DataParallel(Tied())


@kept
def compiled() -> nn.Module:
    return compile_quietly(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


@kept
def compiled_inside() -> nn.Module:
    model = nn.Module()
    model.head = compile_quietly(nn.Linear(2, 3))
    model.tail = nn.Linear(1, 1)
    return model


@kept
def traced_by_fx() -> nn.Module:
    return torch.fx.symbolic_trace(Functional())


@kept
def averaged() -> nn.Module:
    return AveragedModel(Tied())


@kept
def averaged_with_buffers() -> nn.Module:
    return AveragedModel(nn.BatchNorm1d(3), use_buffers=True)


@kept
def half() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).half()


@kept
def bfloat16() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).bfloat16()


@kept
def float8() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    model.register_buffer("scale", torch.ones(4, 1, dtype=torch.float8_e8m0fnu))
    return model


@kept
def complex_numbers() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    model.register_buffer("conjugate", torch.randn(3, 2, dtype=torch.complex64).conj())
    model.register_buffer("imaginary", torch.randn(3, dtype=torch.complex64).conj().imag)  # Its neg bit is set.
    return model


@kept
def frozen_with_attributes() -> nn.Module:
    model = nn.Linear(3, 2).requires_grad_(False)
    model.weight.note = "a parameter with an attribute"  # type: ignore[attr-defined]
    model.shown = nn.Buffer(torch.ones(2))
    model.unseen = nn.Buffer(torch.zeros(2), persistent=False)
    return model


@kept
def with_gradients() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    model(torch.randn(4, 3)).sum().backward()
    return model


@kept
def deep() -> nn.Module:
    model: nn.Module = nn.Linear(1, 1)
    for _ in range(60):
        model = nn.Sequential(model)
    return model
