"""Tensors of subclasses: what they wrap is kept, without their class, which is made only where torch allows it."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert.load.decode import decode
from tests.outputs import contents, header
from tests.test_encodings import identical, saved, tensors, there_and_back

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Wrapper(torch.Tensor):
    """What torchao's tensors are: integers, a scale and settings, that say they are one tensor of another dtype."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, scale: Any, dtype: torch.dtype, **settings: Any) -> Wrapper:
        self: Wrapper = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=dtype)  # type: ignore[attr-defined]
        return self

    def __init__(self, data: torch.Tensor, scale: Any, dtype: torch.dtype, **settings: Any) -> None:
        self.qdata, self.scale = data, scale
        self.__dict__.update(settings)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(function)


class Kind(str, enum.Enum):
    AUTO = "auto"


class OldKind(enum.Enum):
    """Pickled as Python 3.11.0 to 3.11.3 does it."""

    FAST = 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (type(self), self.name)


@dataclass
class Settings:
    granularity: tuple[int, ...]
    kind: Kind


def plain() -> Wrapper:
    return Wrapper(torch.arange(6, dtype=torch.int8).reshape(2, 3), torch.rand(2, 1), torch.bfloat16)


def with_settings() -> Wrapper:
    settings = {
        "block_size": [1, 3],
        "shape_of_it": (2, torch.Size([3])),
        "target": torch.int8,
        "act": Settings((1, 2), Kind.AUTO),
        "kind": Kind.AUTO,
        "old": OldKind.FAST,
        "none": None,
        "nan": float("nan"),
        "nested": {"zero": torch.zeros(2), 3: {"deep": [torch.ones(1)]}},
        "names": {"a"},
    }
    return Wrapper(torch.randn(2, 3).to(torch.float8_e4m3fn), torch.rand(2, 1), torch.float32, **settings)


def around_another() -> Wrapper:
    return Wrapper(plain(), torch.rand(2, 1).to_sparse(), torch.float32)


BUILDS: list[Callable[[], Wrapper]] = [plain, with_settings, around_another]


@pytest.fixture
def allowed() -> Iterator[None]:
    with torch.serialization.safe_globals([Wrapper, Settings, Kind, OldKind]):
        yield


def same_state(ours: Any, theirs: Any) -> None:
    """Attributes, whatever they are, are equal: tensors to the bit, NaN as NaN."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, Wrapper):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        same_state(vars(ours), vars(theirs))
    elif isinstance(theirs, torch.Tensor):
        identical(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            same_state(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for mine, yours in zip(ours, theirs, strict=True):
            same_state(mine, yours)
    else:
        assert ours == theirs or (ours != ours and theirs != theirs)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_wrapper_comes_back_with_all_that_it_holds(build: Callable[[], Wrapper], ending: str, tmp_path: Path) -> None:
    source = saved({"x.w": build(), "x.b": torch.ones(2)}, tmp_path / "m.pt")
    truth = torch.load(source, weights_only=False)
    for before, after in (("m.pt", f"a.{ending}"), (f"a.{ending}", "b.pt"), ("b.pt", "c.safetensors")):
        sdconvert.convert(tmp_path / before, tmp_path / after)
        found = tensors(tmp_path / after)
        assert found.keys() == {"x.w", "x.b"}
        same_state(found["x.w"], truth["x.w"])
        assert sdconvert.verify(source, tmp_path / after).equal


def test_its_parts_are_plain_tensors_called_after_its_attributes(tmp_path: Path) -> None:
    report = sdconvert.convert(saved({"x.w": with_settings()}, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    names = {"x.w.qdata", "x.w.scale", "x.w.nested.zero", "x.w.nested.3.deep"}
    assert contents(tmp_path / "o.safetensors").keys() >= names
    assert report.encoded["x.w"].recipe["class"] == f"{__name__}.Wrapper"
    assert report.encoded["x.w"].recipe["dtype"] == "float32"


def test_a_class_that_torch_does_not_allow_is_not_made(tmp_path: Path) -> None:
    sdconvert.convert(saved({"x.w": plain()}, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    with pytest.raises(sdconvert.UnsupportedError, match=r"Wrapper.*add_safe_globals"):
        tensors(tmp_path / "o.safetensors")


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("of", "member"), [("Kind", "NO"), ("Kind", "__class__"), ("Settings", "kind"), ("Wrapper", "numpy"), ("x", "AUTO")]
)
def test_only_members_of_enumerations_are_taken_by_name(of: str, member: str) -> None:
    recipe = {"encoding": "subclass", "dtype": "float32", "shape": [1], "class": f"{__name__}.Wrapper", "strides": [1]}
    state = {"dict": [["a", {"tensor": "a"}], ["b", {"member": member, "of": f"{__name__}.{of}"}]]}
    with pytest.raises((sdconvert.UnsupportedError, sdconvert.UnreadableError), match=r"does not know|no member"):
        decode({**recipe, "state": state}, {"a": torch.ones(1)})


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.hub.load", "torch.Tensor", "torch.load", "x"])
def test_no_name_is_ever_looked_up(name: str) -> None:
    recipe = {"encoding": "subclass", "dtype": "float32", "shape": [1], "class": name, "strides": [1], "state": None}
    recipe["state"] = {"dict": [["a", {"tensor": "a"}], ["b", {"call": name, "args": ["id"], "state": None}]]}
    with pytest.raises((sdconvert.UnsupportedError, sdconvert.UnreadableError), match=r"does not know|not a class"):
        decode(recipe, {"a": torch.ones(1)})


def test_attributes_that_a_recipe_cannot_hold_are_said(tmp_path: Path) -> None:
    for value, why in (
        ([0] * 3000, "more than a recipe holds"),
        ("x" * 20_000, "text"),
        (b"\xff" * 300, "text"),
    ):
        source = saved({"x.w": Wrapper(torch.ones(2), torch.ones(2), torch.float32, big=value)}, tmp_path / "m.pt")
        with pytest.raises(sdconvert.UnsupportedError, match=rf"x\.w is a .*Wrapper.*{why}.*--exclude"):
            sdconvert.convert(source, tmp_path / "o.safetensors")


class Named(torch.Tensor):
    """A subclass whose values are its own."""


def test_a_subclass_with_values_of_its_own_is_its_values(tmp_path: Path) -> None:
    tensor, parameter = torch.randn(3).as_subclass(Named), nn.Parameter(torch.randn(2))
    tensor.note, parameter.note = "hello", torch.ones(9)  # type: ignore[attr-defined]
    sdconvert.convert(saved({"x.w": tensor, "x.p": parameter}, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    found = contents(tmp_path / "o.safetensors")
    assert found.keys() == {"x.w", "x.p"}
    assert torch.equal(found["x.w"], tensor.as_subclass(torch.Tensor))
    assert torch.equal(found["x.p"], parameter)


def test_a_sparse_tensor_with_attributes_is_sparse(tmp_path: Path) -> None:
    tensor = torch.eye(3).to_sparse()
    tensor.note = 1  # type: ignore[attr-defined]
    source = saved({"x.w": tensor, "x.p": nn.Parameter(torch.eye(2).to_sparse_csr())}, tmp_path / "m.pt")
    truth = {name: value.detach() for name, value in torch.load(source, weights_only=True).items()}
    there_and_back(source, truth, tmp_path)


# DTensor


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch.distributed import tensor as dtensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield dtensor.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


def test_a_dtensor_of_one_rank_is_its_local_tensor(mesh: Any, tmp_path: Path) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    base = torch.randn(4, 2)
    state = {
        f"x.{i}": distribute_tensor(base + i, mesh, [how]) for i, how in enumerate((Shard(0), Shard(1), Replicate()))
    }
    state["x.p"] = nn.Parameter(distribute_tensor(base, mesh, [Shard(0)]))
    report = sdconvert.convert(saved(state, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    found = contents(tmp_path / "o.safetensors")
    assert report.encoded == {}
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor.full_tensor())


def test_one_ranks_part_of_a_dtensor_is_refused_with_what_is_missing(mesh: Any, tmp_path: Path) -> None:
    from torch.distributed.tensor import DTensor, Partial, Shard

    part = DTensor.from_local(
        torch.randn(2, 2), mesh, [Shard(0)], shape=torch.Size((4, 2)), stride=(2, 1), run_check=False
    )
    source = saved({"x.w": part}, tmp_path / "m.pt")
    with pytest.raises(
        sdconvert.UnsupportedError, match=r"x\.w is a DTensor of shape \[4, 2\].*holds \[2, 2\] \(Shard\)"
    ):
        sdconvert.convert(source, tmp_path / "o.safetensors")
    partial = DTensor.from_local(torch.randn(2, 2), mesh, [Partial()], run_check=False)
    with pytest.raises(sdconvert.UnsupportedError, match=r"\(Partial\)"):
        sdconvert.convert(saved({"x.w": partial}, tmp_path / "m.pt"), tmp_path / "o.safetensors")


class MyDTensor(Wrapper):
    """Called like torch's class, and something else."""


def test_a_class_is_no_dtensor_for_what_it_is_called(tmp_path: Path) -> None:
    tensor = MyDTensor(torch.arange(6, dtype=torch.int8).reshape(2, 3), torch.rand(2, 1), torch.bfloat16)
    report = sdconvert.convert(saved({"x.w": tensor}, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    assert report.encoded["x.w"].recipe["class"].endswith(".MyDTensor")
    assert torch.equal(contents(tmp_path / "o.safetensors")["x.w.qdata"], tensor.qdata)


# torchao's own


def torchao_models() -> Iterator[tuple[str, nn.Module]]:
    quantization = pytest.importorskip("torchao.quantization")
    for name in (
        "Int8WeightOnlyConfig",
        "Float8WeightOnlyConfig",
        "Int8DynamicActivationInt8WeightConfig",
        "IntxWeightOnlyConfig",
        "Int8DynamicActivationIntxWeightConfig",
    ):
        model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32, bias=False)).to(torch.bfloat16)
        quantization.quantize_(model, getattr(quantization, name)())
        yield name, model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchaos_tensors_compute_the_same_after_the_journey(tmp_path: Path) -> None:
    for name, model in torchao_models():
        source = saved(model.state_dict(), tmp_path / f"{name}.pt")
        sdconvert.convert(source, tmp_path / f"{name}.safetensors")
        sdconvert.convert(tmp_path / f"{name}.safetensors", tmp_path / f"{name}-back.pt")
        assert "0.weight.qdata" in header(tmp_path / f"{name}.safetensors")
        for stop in (tmp_path / f"{name}.safetensors", tmp_path / f"{name}-back.pt"):
            found = tensors(stop)
            for key, tensor in model.state_dict().items():
                assert type(found[key]) is type(tensor)
                if type(tensor) is not torch.Tensor:
                    assert torch.equal(found[key].dequantize(), tensor.dequantize())
                    for attribute, value in vars(tensor).items():
                        if not isinstance(value, torch.Tensor):
                            assert getattr(found[key], attribute) == value
            x = torch.randn(3, 64, dtype=torch.bfloat16)
            before = model(x)
            model.load_state_dict(found, assign=True)
            assert torch.equal(model(x), before)


def test_the_recipe_is_json_that_anyone_can_read(tmp_path: Path) -> None:
    sdconvert.convert(saved({"x.w": with_settings()}, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    document = json.loads(header(tmp_path / "o.safetensors")["__metadata__"]["sdconvert.encoded"])
    state = dict(document["tensors"]["x.w"]["recipe"]["state"]["dict"])
    assert state["qdata"] == {"tensor": "qdata"}
    assert state["block_size"] == [1, 3]
    assert state["target"] == {"global": "torch.int8"}
    by_value = {"call": f"{__name__}.Kind", "args": ["auto"], "state": None}
    assert state["kind"] in (by_value, {"member": "AUTO", "of": f"{__name__}.Kind"})
    assert state["old"] == {"member": "FAST", "of": f"{__name__}.OldKind"}
