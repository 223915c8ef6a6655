"""`sdconvert.load_into`: the corners of models and files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert import ChoiceError, MismatchError
from tests.load.models import MODELS, ResNet, Transformer, same_bits, same_model, saved, trained


def pt(state: Any, tmp_path: Path, name: str = "m.pt") -> Path:
    torch.save(state, tmp_path / name)
    return tmp_path / name


def skeleton_of(make: Any) -> nn.Module:
    with sdconvert.skeleton():
        model: nn.Module = make()
    return model


def test_a_parameter_registered_as_none(tmp_path: Path) -> None:
    original = nn.Linear(2, 2, bias=False)
    model = nn.Linear(2, 2, bias=False)
    assert sdconvert.load_into(model, pt(original.state_dict(), tmp_path)) == ([], [])
    with pytest.raises(MismatchError, match=r'Unexpected key\(s\) in state_dict: "bias"'):
        sdconvert.load_into(model, pt(nn.Linear(2, 2).state_dict(), tmp_path))


def test_names_with_dots_inside_one_module(tmp_path: Path) -> None:
    def make() -> nn.Module:
        module = nn.Module()
        module._parameters["a.b"] = nn.Parameter(torch.randn(2))
        module.rest = nn.ParameterDict({"x": nn.Parameter(torch.randn(3))})
        return module

    original = make()
    for model in (make(), make().to("meta")):
        assert sdconvert.load_into(model, pt(original.state_dict(), tmp_path)) == ([], [])
        assert same_model(model, original)


def test_a_buffer_that_a_property_hides(tmp_path: Path) -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._buffers["scale"] = torch.zeros(2)

        @property
        def scale(self) -> torch.Tensor:
            found = self._buffers["scale"]
            assert found is not None
            return found * 2

    path = pt({"scale": torch.ones(2)}, tmp_path)
    for model in (Hiding(), Hiding().to("meta")):
        sdconvert.load_into(model, path)
        assert model.scale.tolist() == [2, 2]


def test_the_same_module_under_two_names(tmp_path: Path) -> None:
    def make() -> nn.Module:
        shared = nn.Linear(2, 2)
        return nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})

    original = make()
    for how in ("state_dict.pt", "safetensors"):
        path = saved(original, how, tmp_path)
        for model in (make(), skeleton_of(make)):
            result = sdconvert.load_into(model, path)
            assert result == ([], [])
            assert same_model(model, original)
            assert dict(result.ties) == {"b.weight": "a.weight", "b.bias": "a.bias"}


def test_ties_across_shards(tmp_path: Path) -> None:
    """The alias is in one file and its tensor in another, as a sharded checkpoint gives it to the loader."""
    original = trained(Transformer())
    state = dict(original.state_dict())
    first = {name: state.pop(name) for name in list(state)[:5]}
    del state["head.weight"]
    shards = [pt(first, tmp_path, "1.pt"), pt(state, tmp_path, "2.pt")]
    both = sdconvert.load(shards[0]) | sdconvert.load(shards[1])
    for model in (Transformer(), skeleton_of(Transformer)):
        assert sdconvert.load_into(model, both) == ([], [])
        assert same_model(model, original)


def test_two_values_for_one_tied_parameter_are_an_error_unless_they_are_equal(tmp_path: Path) -> None:
    state = dict(Transformer().state_dict())
    model = Transformer()
    before = copy.deepcopy(model)
    state["head.weight"] = state["embedding.weight"].clone()
    assert sdconvert.load_into(copy.deepcopy(model), pt(state, tmp_path)) == ([], [])
    state["head.weight"][0, 0] += 1
    with pytest.raises(MismatchError, match=r"tie broken for head\.weight.*embedding\.weight"):
        sdconvert.load_into(model, pt(state, tmp_path))
    assert same_model(model, before)


def test_scalars_of_torch_0_3_are_accepted_one_way_only(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("s", torch.zeros(()))
    sdconvert.load_into(model, pt({"s": torch.ones(1)}, tmp_path))
    assert (model.s.shape, float(model.s)) == ((), 1.0)
    meta = copy.deepcopy(model).to("meta")
    sdconvert.load_into(meta, pt({"s": torch.ones(1)}, tmp_path))
    assert meta.s.shape == ()
    model = nn.Module()
    model.register_buffer("s", torch.zeros(1))
    with pytest.raises(MismatchError, match="size mismatch for s"):
        sdconvert.load_into(model, pt({"s": torch.ones(())}, tmp_path))


@pytest.mark.parametrize("copy_mode", ["auto", "read"])
def test_empty_tensors(copy_mode: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        module = nn.Module()
        module.none = nn.Parameter(torch.empty(0, 3))
        module.one = nn.Parameter(torch.randn(()))
        return module

    original = make()
    for model in (make(), skeleton_of(make)):
        assert sdconvert.load_into(model, pt(original.state_dict(), tmp_path), copy=copy_mode) == ([], [])
        assert same_model(model, original)


def test_strict_false_lets_names_differ_but_not_shapes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    path = pt({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(3), "9.x": torch.ones(1)}, tmp_path)
    with pytest.raises(MismatchError, match=r"size mismatch for 0\.bias"):
        sdconvert.load_into(model, path, strict=False)
    result = sdconvert.load_into(model, path, strict=False, on_mismatch="skip")
    assert result.missing_keys == ["1.weight", "1.bias"]
    assert result.unexpected_keys == ["9.x"]
    assert result.mismatched == (("0.bias", (3,), (2,)),)
    assert result.loaded == ("0.weight",)
    assert repr(result) == ("_IncompatibleKeys(missing_keys=['1.weight', '1.bias'], unexpected_keys=['9.x'])")
    missing, unexpected = result
    assert (missing, unexpected) == (["1.weight", "1.bias"], ["9.x"])


def test_what_strict_false_would_leave_on_meta_is_an_error(tmp_path: Path) -> None:
    model = skeleton_of(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    path = pt({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, tmp_path)
    with pytest.raises(MismatchError, match=r'Left on meta.*"1\.weight", "1\.bias"'):
        sdconvert.load_into(model, path, strict=False)
    assert all(param.is_meta for param in model.parameters())
    with pytest.raises(MismatchError, match="Left on meta"):
        sdconvert.load_into(
            model, pt(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).state_dict(), tmp_path), assign=False
        )


def test_a_tensor_on_meta_in_a_plain_attribute_is_named(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.table = torch.arange(3)
        return model

    with torch.device("meta"):
        model = make()
    with pytest.raises(MismatchError, match='"table"'):
        sdconvert.load_into(model, pt(nn.Linear(2, 2).state_dict(), tmp_path))


PREFIXED = [
    ("module.{}", "module."),
    ("_orig_mod.module.{}", "_orig_mod.module."),
    ("model.{}", "model."),
]


@pytest.mark.parametrize(("form", "prefix"), PREFIXED, ids=lambda value: value)
@pytest.mark.parametrize("name", MODELS)
def test_prefixes_are_looked_past_and_reported(name: str, form: str, prefix: str, tmp_path: Path) -> None:
    original = trained(MODELS[name]())
    path = pt({form.format(key): value for key, value in original.state_dict().items()}, tmp_path)
    model = MODELS[name]()
    result = sdconvert.load_into(model, path)
    assert result == ([], [])
    assert result.prefix == prefix
    assert same_model(model, original)
    assert result.renamed[next(iter(original.state_dict()))] == form.format(next(iter(original.state_dict())))
    with pytest.raises(MismatchError, match="Hint: prefix="):
        sdconvert.load_into(MODELS[name](), path, prefix=None)


def test_a_wrapped_model_takes_a_bare_file_and_a_base_model_one_of_the_whole(tmp_path: Path) -> None:
    original = trained(Transformer())
    path = pt(original.state_dict(), tmp_path)
    wrapped = nn.ModuleDict({"module": Transformer()})
    assert sdconvert.load_into(wrapped, path).prefix == "+module."
    assert same_model(wrapped["module"], original)
    compiled = torch.compile(Transformer(), backend="eager")
    assert sdconvert.load_into(compiled, path) == ([], [])
    larger = nn.ModuleDict({"backbone": Transformer(), "classifier": nn.Linear(2, 2)})
    result = sdconvert.load_into(larger, path, strict=False)
    assert result.prefix == "+backbone."
    assert result.missing_keys == ["classifier.weight", "classifier.bias"]


def test_a_prefix_is_never_guessed_where_two_would_do(tmp_path: Path) -> None:
    state = {
        f"{side}.{key}": value for side in ("student", "teacher") for key, value in nn.Linear(2, 2).state_dict().items()
    }
    path = pt(state, tmp_path)
    with pytest.raises(MismatchError, match=r"prefix='student\.' and prefix='teacher\.' would fit"):
        sdconvert.load_into(nn.Linear(2, 2), path)
    result = sdconvert.load_into(nn.Linear(2, 2), path, prefix="teacher.", include="teacher.*")
    assert (result.prefix, result) == ("teacher.", ([], []))


def test_of_several_state_dicts_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    generator, critic = nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 1))
    path = pt({"generator": generator.state_dict(), "critic": critic.state_dict()}, tmp_path)
    model = nn.Sequential(nn.Linear(2, 1))
    result = sdconvert.load_into(model, path)
    assert result.key == "critic"
    assert same_model(model, critic)
    assert sdconvert.load_into(nn.Linear(3, 2), path, key="generator").key == "generator"
    with pytest.raises(ChoiceError, match="several state dicts"):
        sdconvert.load_into(nn.Conv2d(1, 1, 1), path)


def test_rename_in_all_its_forms(tmp_path: Path) -> None:
    path = pt({"encoder.weight": torch.ones(2, 2), "encoder.bias": torch.ones(2)}, tmp_path)
    for rename in ({"encoder.": "body."}, [("encoder.", "body.")], lambda name: name.replace("encoder", "body")):
        model = nn.ModuleDict({"body": nn.Linear(2, 2)})
        result = sdconvert.load_into(model, path, rename=rename)
        assert result == ([], [])
        assert dict(result.renamed) == {"body.weight": "encoder.weight", "body.bias": "encoder.bias"}
        assert model["body"].weight.sum() == 4
    with pytest.raises(ChoiceError, match="two tensors one name"):
        sdconvert.load_into(model, path, rename=lambda name: "x")
    with pytest.raises(
        MismatchError, match=r"Hint: rename would help if the source has 'encoder\.weight' for 'encoderx"
    ):
        sdconvert.load_into(nn.ModuleDict({"encoderx": nn.ModuleDict({"y": nn.Linear(2, 2)})}), path, prefix=None)


def test_versions_follow_a_rename(tmp_path: Path) -> None:
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    del state["0.num_batches_tracked"]
    with pytest.raises(MismatchError, match="Missing"):
        sdconvert.load_into(nn.ModuleDict({"b": nn.BatchNorm1d(2)}), pt(state, tmp_path), rename={"0.": "b."})


def test_a_dict_in_memory_is_a_source_too_and_shares_with_assign() -> None:
    state = Transformer().state_dict()
    models = [Transformer(), Transformer()]
    for model in models:
        sdconvert.load_into(model, state, assign=True)
    a, b = (dict(model.named_parameters()) for model in models)
    assert all(a[name].data_ptr() == b[name].data_ptr() == state[name].data_ptr() for name in a)
    assert models[0].head.weight is models[0].embedding.weight
    parameters = dict(Transformer().named_parameters(remove_duplicate=False))
    for model in models:
        sdconvert.load_into(model, parameters, assign=True)
    assert models[0].scale is models[1].scale is parameters["scale"]
    in_place = Transformer()
    sdconvert.load_into(in_place, state)
    assert in_place.scale.data_ptr() != state["scale"].data_ptr()
    assert list(state) == list(Transformer().state_dict())


def test_a_dict_that_is_not_a_state_dict_is_refused() -> None:
    with pytest.raises(ChoiceError, match="model is a dict, not a tensor"):
        sdconvert.load_into(nn.Linear(1, 1), {"model": {"weight": torch.ones(1, 1)}})
    with pytest.raises(ChoiceError, match="weight is on the meta device"):
        sdconvert.load_into(nn.Linear(1, 1), {"weight": torch.empty(1, 1, device="meta")})
    with pytest.raises(MismatchError, match=r'Unexpected key\(s\) in state_dict: "epoch"'):
        sdconvert.load_into(nn.Linear(1, 1), {**nn.Linear(1, 1).state_dict(), "epoch": 3})


def test_dtypes_by_rule(tmp_path: Path) -> None:
    path = pt({k: v.bfloat16() for k, v in nn.Linear(2, 2).state_dict().items()}, tmp_path)
    for dtype, real, bare in [
        (None, torch.float32, torch.bfloat16),
        ("file", torch.bfloat16, torch.bfloat16),
        ("model", torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float16),
        ("fp64", torch.float64, torch.float64),
    ]:
        model = nn.Linear(2, 2)
        held = model.weight
        sdconvert.load_into(model, path, dtype=dtype)
        assert model.weight is held, "an optimizer that holds it would be orphaned"
        assert model.weight.dtype == real
        bones = skeleton_of(lambda: nn.Linear(2, 2))
        sdconvert.load_into(bones, path, dtype=dtype)
        assert bones.weight.dtype == bare


def test_an_eight_bit_float_is_cast_where_that_is_asked_for(tmp_path: Path) -> None:
    values = torch.randn(4).to(torch.float8_e4m3fn)
    model = nn.Module()
    model.register_buffer("x", torch.zeros(4))
    sdconvert.load_into(model, pt({"x": values}, tmp_path), dtype="float32")
    assert torch.equal(model.x, values.float())


def test_a_part_of_a_model_may_be_left_on_meta_by_the_device_map(tmp_path: Path) -> None:
    original = trained(ResNet())
    path = saved(original, "safetensors", tmp_path)
    model = skeleton_of(ResNet)
    result = sdconvert.load_into(model, path, device={"": "cpu", "layer1": "meta"})
    assert set(result.left_on_meta) == {n for n, p in model.named_parameters() if n.startswith("layer1.")}
    assert model.fc.weight.device.type == "cpu"
    assert same_bits(model.layer2[0].conv1.weight, original.layer2[0].conv1.weight)
    assert {n for n, p in model.named_parameters() if p.is_meta} == set(result.left_on_meta)


def test_attributes_of_parameters_come_along(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.weight.tensor_parallel = True
        return model

    def marked() -> nn.Module:
        model = nn.Module()
        weight = nn.Parameter(torch.zeros(2, 2))
        weight.tensor_parallel = True
        model.weight = weight
        return model

    model = skeleton_of(marked)
    sdconvert.load_into(model, pt({"weight": torch.ones(2, 2)}, tmp_path))
    assert model.weight.tensor_parallel
    model = skeleton_of(make)
    sdconvert.load_into(model, pt(nn.Linear(2, 2).state_dict(), tmp_path))
    assert model.weight.tensor_parallel


def test_thousands_of_names_take_linear_time(tmp_path: Path) -> None:
    from time import process_time

    def seconds(count: int) -> float:
        model = nn.ModuleList(nn.Linear(1, 1) for _ in range(count // 2))
        state = model.state_dict()
        best = 1e9
        for _ in range(3):
            began = process_time()
            assert sdconvert.load_into(model, state) == ([], [])
            best = min(best, process_time() - began)
        return best

    seconds(100)
    assert seconds(16_000) < 12 * seconds(2000) + 0.2  # Quadratic would be 64 times.


def test_a_flat_list_of_modules_that_are_asked_takes_linear_time() -> None:
    from time import process_time

    def seconds(count: int) -> float:
        model = nn.ModuleList(nn.BatchNorm1d(1) for _ in range(count))
        state = model.state_dict()
        best = 1e9
        for _ in range(3):
            began = process_time()
            assert sdconvert.load_into(model, state) == ([], [])
            best = min(best, process_time() - began)
        return best

    seconds(10)
    assert seconds(4000) < 12 * seconds(500) + 0.2  # Quadratic would be 64 times.


def test_dtypes_that_differ_from_name_to_name_are_each_decided_for_itself() -> None:
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float32]
    state = {f"{number}.weight": torch.ones(1, 1, dtype=kind) for number, kind in enumerate(kinds)}
    with sdconvert.skeleton():
        model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in kinds))
    result = sdconvert.load_into(model, state)
    assert [parameter.dtype for parameter in model.parameters()] == kinds
    assert result.cast == ()
    real = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in kinds))
    result = sdconvert.load_into(real, state)
    assert [one.source_dtype for one in result.cast] == ["float16", "bfloat16"]
    with pytest.raises(MismatchError, match=r"dtype mismatch for 3\.weight"):
        sdconvert.load_into(real, state | {"3.weight": torch.ones(1, 1, dtype=torch.int64)})
