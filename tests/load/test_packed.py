"""Modules of torch's quantization, from any source: as `load_state_dict` does it with the state dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert.errors import UnsupportedError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def quantized(seed: int) -> Any:
    """A convolution and two linear layers, one without bias, after training, in int8."""
    torch.manual_seed(seed)
    quantization: Any = torch.ao.quantization
    model = nn.Sequential(
        quantization.QuantStub(),
        nn.Conv2d(3, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 9, 5),
        nn.Linear(5, 2, bias=False),
        quantization.DeQuantStub(),
    ).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(model)
    prepared(torch.randn(2, 3, 5, 5))
    return quantization.convert(prepared)


def dynamic(seed: int, dtype: torch.dtype, kind: Any = nn.Linear) -> Any:
    torch.manual_seed(seed)
    model = nn.Sequential(kind(4, 3), nn.Linear(3, 2)) if kind is nn.Linear else nn.Sequential(kind(4, 3))
    return torch.ao.quantization.quantize_dynamic(model, {kind}, dtype=dtype)


@pytest.fixture
def example() -> torch.Tensor:
    return torch.randn(2, 3, 5, 5)


@pytest.fixture
def original() -> Any:
    return quantized(0)


def sources(model: Any, directory: Path) -> list[Any]:
    torch.save(model.state_dict(), directory / "state.pt")
    torch.save(model, directory / "whole.pt")
    sdconvert.convert(directory / "state.pt", directory / "state.safetensors")
    sdconvert.convert(directory / "whole.pt", directory / "again.pt")
    return [
        model.state_dict(),
        *(directory / name for name in ("state.pt", "whole.pt", "state.safetensors", "again.pt")),
    ]


@pytest.mark.parametrize("assign", ["auto", True])
def test_packed_weights_are_loaded(assign: Any, original: Any, example: torch.Tensor, tmp_path: Path) -> None:
    truth = original(example)
    expected = quantized(1)
    expected.load_state_dict(original.state_dict())
    assert torch.equal(expected(example), truth)
    for source in sources(original, tmp_path):
        model = quantized(1)
        assert not torch.equal(model(example), truth)
        assert str(sdconvert.load_into(model, source, assign=assign)) == "<All keys matched successfully>"
        assert torch.equal(model(example), truth)
        for layer in (1, 3, 4):
            assert (model[layer].scale, model[layer].zero_point) == (original[layer].scale, original[layer].zero_point)
            assert torch.equal(model[layer].weight().int_repr(), original[layer].weight().int_repr())


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_dynamically_quantized_weights_are_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    original, example = dynamic(0, dtype), torch.randn(2, 4)
    for source in sources(original, tmp_path):
        model = dynamic(1, dtype)
        assert not torch.equal(model(example), original(example))
        assert str(sdconvert.load_into(model, source)) == "<All keys matched successfully>"
        assert torch.equal(model(example), original(example))
        assert model[0]._packed_params.dtype == dtype


def test_what_is_missing_is_an_error_that_names_it_and_the_model_is_as_it_was(
    original: Any, example: torch.Tensor, tmp_path: Path
) -> None:
    """The convolution, which comes first, has taken its new weights by the time that the linear layer is asked."""
    sources(original, tmp_path)
    for source in (tmp_path / "state.pt", tmp_path / "state.safetensors"):
        for left_out in ("4._packed_params*", "4.scale"):
            model = quantized(1)
            before = model(example)
            with pytest.raises(UnsupportedError, match=r": 4.*: Linear.* way of loading, which needs '4\."):
                sdconvert.load_into(model, source, exclude=left_out)
            assert torch.equal(model(example), before)
            assert model[1].scale != original[1].scale


def test_what_is_packed_as_no_tensors_is_an_error_that_names_it(tmp_path: Path) -> None:
    original = dynamic(0, torch.qint8, nn.LSTM)
    torch.save(original.state_dict(), tmp_path / "m.pt")
    with pytest.raises((UnsupportedError, sdconvert.UnreadableError)) as caught:
        sdconvert.load_into(dynamic(1, torch.qint8, nn.LSTM), tmp_path / "m.pt")
    assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedError, match=r": 0\._all_weight_values\.0: PackedParameter has"):
        sdconvert.load_into(dynamic(1, torch.qint8, nn.LSTM), {"0.x": torch.ones(1)}, strict=False)


@pytest.mark.filterwarnings("ignore")
def test_what_was_asked_is_put_back_when_torch_refuses_another_tensor(original: Any) -> None:
    def holder(seed: int) -> Any:
        module = nn.Module()
        module.layers = quantized(seed)
        rows = [torch.ones(2, 3), torch.ones(1, 3)]
        module.register_buffer("rows", torch.nested.nested_tensor(rows, layout=torch.jagged))
        return module

    model = holder(1)
    before = model.layers[1].scale
    assert before != original[1].scale
    with pytest.raises(UnsupportedError, match="rows does not go into the model"):
        sdconvert.load_into(model, holder(0).state_dict())
    assert model.layers[1].scale == before
