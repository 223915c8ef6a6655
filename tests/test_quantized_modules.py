"""Quantized models of torch.ao: a pickled module gives what its state dict, saved, gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq

import sdconvert
from tests.test_encodings import identical, saved, tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Static(nn.Module):
    """Layers of every kind that static quantization packs or changes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.d = tq.QuantStub(), tq.DeQuantStub()
        self.conv, self.relu = nn.Conv2d(1, 2, 2), nn.ReLU()
        self.plain_conv, self.norm = nn.Conv2d(2, 4, 1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.group, self.swish = nn.GroupNorm(1, 4), nn.Hardswish()
        self.linear, self.last, self.end = nn.Linear(4, 3), nn.Linear(3, 3), nn.ReLU()
        self.add, self.layer = torch.ao.nn.quantized.FloatFunctional(), nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.plain_conv(self.relu(self.conv(self.q(x))))
        x = self.linear(self.swish(self.group(self.norm(x))).mean((2, 3)))
        result: torch.Tensor = self.d(self.end(self.last(self.layer(self.add.add(x, x)))))
        return result


def static() -> nn.Module:
    model = Static().eval()
    model.qconfig = tq.get_default_qconfig("fbgemm")
    model = tq.prepare(tq.fuse_modules(model, [["conv", "relu"], ["last", "end"]]))
    model(torch.randn(2, 1, 4, 4))
    return tq.convert(model)  # type: ignore[no-any-return]


def dynamic(dtype: torch.dtype = torch.qint8) -> nn.Module:
    kinds = {nn.Linear, nn.LSTM, nn.GRU}
    if dtype == torch.qint8:
        kinds |= {nn.LSTMCell, nn.GRUCell, nn.RNNCell}
    layers = [nn.Linear(2, 3), nn.LSTM(3, 3, bidirectional=True), nn.GRU(3, 3, num_layers=2), nn.LSTMCell(3, 3)]
    return tq.quantize_dynamic(nn.Sequential(*layers, nn.GRUCell(3, 3), nn.RNNCell(3, 3)), kinds, dtype=dtype)  # type: ignore[no-any-return]


def half_precision() -> nn.Module:
    return dynamic(torch.float16)


def embeddings() -> nn.Module:
    model = nn.Sequential(nn.EmbeddingBag(4, 8), nn.Embedding(4, 8))
    model.qconfig = tq.float_qparams_weight_only_qconfig
    return tq.convert(tq.prepare(model))  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    package = torch.ao.nn.quantized
    return nn.Sequential(package.Conv1d(2, 2, 3), package.Conv3d(1, 2, 1, bias=False), package.ConvTranspose2d(2, 4, 2))


MODELS: list[Callable[[], nn.Module]] = [static, dynamic, half_precision, embeddings, convolutions]


@pytest.fixture(autouse=True)
def _quiet_engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = before


def unpacked(name: str, value: Any) -> dict[str, torch.Tensor]:
    """What a value of a state dict holds, by our names: tuples of weight and bias by number."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, torch.ScriptObject):
        value = value.__getstate__()[0]  # As pickling asks for it.
    if isinstance(value, tuple | list):
        inner = [unpacked(f"{name}.{index}", item) for index, item in enumerate(value)]
        return {key: tensor for part in inner for key, tensor in part.items()}
    return {}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("build", MODELS)
def test_a_module_and_its_state_dict_give_the_same(
    build: Callable[[], nn.Module], zipped: bool, tmp_path: Path
) -> None:
    model = build()
    module = saved(model, tmp_path / "module.pt", _use_new_zipfile_serialization=zipped)
    state = saved(model.state_dict(), tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    outcome = sdconvert.verify(module, state)
    assert outcome.equal, outcome
    report = sdconvert.convert(module, tmp_path / "o.safetensors")
    assert report.warnings == ()
    expected = {key: t for name, value in model.state_dict().items() for key, t in unpacked(name, value).items()}
    for path in (module, tmp_path / "o.safetensors"):
        found = tensors(path)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            identical(found[name], tensor.detach())


def test_a_layer_by_itself(tmp_path: Path) -> None:
    for layer in (static().conv, static().linear, static().add):  # type: ignore[union-attr]
        module = saved(layer, tmp_path / "module.pt")
        assert sdconvert.verify(module, saved(layer.state_dict(), tmp_path / "state.pt")).equal


def test_weights_that_come_back_make_the_same_model(tmp_path: Path) -> None:
    """The names that torch keeps a pair under are the pair's: put together again, the model takes them."""
    model, other = dynamic(), dynamic()
    sdconvert.convert(saved(model, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    found = tensors(tmp_path / "o.safetensors")
    linear = "0._packed_params._packed_params"
    other[0].set_weight_bias(found[f"{linear}.0"], found[f"{linear}.1"])
    x = torch.randn(4, 2)
    assert torch.equal(other[0](x), model[0](x))


def test_a_packed_weight_of_an_unknown_kind_is_named() -> None:
    from sdconvert.checkpoint import Dict, LostTensor, Object
    from sdconvert.pickles.quantized import own_weights

    state = Dict([("_packed_params", Object("torch.ScriptObject"))])
    ((name, value),) = own_weights("torch.ao.nn.quantized.modules.linear.LinearPackedParams", state)
    assert (name, type(value)) == ("_packed_params", LostTensor)
