"""DeepSpeed's ZeRO checkpoints: the weights that were cut up, whole again, and lies refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdconvert
from tests.hostile.pickling import dict_of, list_of, tensor, tuple_of
from tests.hostile.zips import torch_zip
from tests.outputs import contents, same

from .deepspeed_files import Model, ZeroStageEnum, edit, write


def model(dtype: torch.dtype = torch.bfloat16) -> Model:
    torch.manual_seed(0)
    return Model(
        groups=[
            {"emb.weight": torch.randn(13, 7), "a.weight": torch.randn(11, 7), "c.weight": torch.randn(3, 5)},
            {"a.bias": torch.randn(11), "scale": torch.randn(()), "c.bias": torch.randn(1)},
        ],
        frozen={"frozen.weight": torch.randn(7, 3), "frozen.bias": torch.randn(5)},
        buffers={"pos": torch.randn(11), "count": torch.tensor(7)},
        tied={"head.weight": "emb.weight"},
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_partitions_become_whole_parameters(stage: int, ranks: int, dtype: torch.dtype, tmp_path: Path) -> None:
    saved = model(dtype)
    write(tmp_path / "c", saved, stage=stage, ranks=ranks)
    report = sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")
    assert same(contents(tmp_path / "o.safetensors"), saved.expected())
    assert (report.container, report.key) == ("deepspeed", "module")
    assert dict(report.aliases) == {"head.weight": "emb.weight"}
    assert any("frozen.weight" in warning for warning in report.warnings) == (dtype != torch.float32)


@settings(max_examples=60)
@given(
    shapes=st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=6),
    ranks=st.integers(1, 5),
    stage=st.integers(1, 3),
    split=st.integers(1, 6),
    gaps=st.sampled_from([None, 0, 3]),
)
def test_any_parameters_on_any_number_of_ranks(
    shapes: list[list[int]], ranks: int, stage: int, split: int, gaps: int | None, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("zero")
    named = [(f"p{i}.weight", torch.randn(shape)) for i, shape in enumerate(shapes)]
    saved = Model([dict(group) for group in (named[:split], named[split:]) if group])
    write(folder / "c", saved, stage=stage, ranks=ranks, gaps=gaps)
    sdconvert.convert(folder / "c", folder / "o.safetensors")
    assert same(contents(folder / "o.safetensors"), saved.expected())


def test_stage_3_parts_may_go_on_in_the_next_flat_tensor(tmp_path: Path) -> None:
    """DeepSpeed cuts flat tensors at sub_group_size, wherever that falls."""
    saved = model()
    place = write(tmp_path / "c", saved, stage=3, ranks=2)

    def cut(states: Any) -> None:
        state = states["optimizer_state_dict"]
        state["fp32_flat_groups"] = [p.clone() for p in torch.cat(state["fp32_flat_groups"]).split(10)]

    for file in place.glob("*_optim_states.pt"):
        edit(file, cut)
    sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")
    assert same(contents(tmp_path / "o.safetensors"), saved.expected())


def test_a_parameter_in_too_many_parts_is_refused(tmp_path: Path) -> None:
    """One element that is named again and again is a small file; looking through its parts takes long."""
    saved = Model([{"a.weight": torch.zeros(100_000)}], dtype=torch.float32)
    place = write(tmp_path / "c", saved, stage=3, ranks=1)

    def repeat(states: Any) -> None:
        states["optimizer_state_dict"]["fp32_flat_groups"] = [torch.zeros(1)] * 100_000

    edit(place / "zero_pp_rank_0_mp_rank_00_optim_states.pt", repeat)
    with pytest.raises(sdconvert.UnreadableError, match=r"a\.weight: it is in 100000 parts, more than Limits\.pieces"):
        sdconvert.convert(tmp_path / "c")


def test_the_folder_of_a_tag_and_the_latest_of_several(tmp_path: Path) -> None:
    old, new = model(), model()
    new.groups[0]["emb.weight"] += 1
    write(tmp_path / "c", new, stage=2, ranks=2, tag="global_step9")
    place = write(tmp_path / "c", old, stage=2, ranks=2, tag="global_step10")
    for source, expected in ((place, old), (tmp_path / "c", old)):
        report = sdconvert.convert(source, tmp_path / "o.safetensors", overwrite=True)
        assert same(contents(tmp_path / "o.safetensors"), expected.expected())
    assert "global_step10 was taken, the latest. There is global_step9 too" in report.warnings[0]
    (tmp_path / "c" / "latest").write_text("global_step9\n")
    sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors", overwrite=True)
    assert same(contents(tmp_path / "o.safetensors"), new.expected())
    for lie in ("global_step7", "../c/global_step9", "/etc", "global_step9/x", "\x00"):
        (tmp_path / "c" / "latest").write_text(lie)
        with pytest.raises(sdconvert.UnreadableError, match=r"is not there\. There is global_step10, global_step9"):
            sdconvert.convert(tmp_path / "c", tmp_path / "x.safetensors")
    (tmp_path / "c" / "latest").unlink()
    with pytest.raises(sdconvert.ChoiceError, match="Give the directory of one: global_step10, global_step9"):
        sdconvert.convert(tmp_path / "c", tmp_path / "x.safetensors")


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_the_module_s_own_copy_is_taken_where_it_is_whole(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    saved = model(dtype)
    place = write(tmp_path / "c", saved, stage=2, ranks=2)

    def mark(states: Any) -> None:  # Not what rounding the float32 weights would give.
        states["module"]["a.weight"].fill_(7)

    edit(place / "mp_rank_00_model_states.pt", mark)
    sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors", dtype=name)
    found = contents(tmp_path / "o.safetensors")
    assert torch.equal(found["a.weight"], torch.full((11, 7), 7, dtype=dtype))
    assert torch.equal(found["emb.weight"], saved.groups[0]["emb.weight"].to(dtype))
    assert found["pos"].dtype == dtype
    assert found["count"].dtype == torch.int64


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_by_its_name(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.11.0 to 3.11.3 pickles members of enumerations."""
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", lambda one, protocol: (getattr, (type(one), one.name)))
    saved = model()
    write(tmp_path / "c", saved, stage=stage, ranks=2)
    sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")
    assert same(contents(tmp_path / "o.safetensors"), saved.expected())


def test_stage_3_has_no_copy_so_it_is_cast(tmp_path: Path) -> None:
    saved = model()
    write(tmp_path / "c", saved, stage=3, ranks=2)
    sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors", dtype="bf16")
    cast = {n: t.bfloat16() if t.is_floating_point() else t for n, t in saved.expected().items()}
    assert same(contents(tmp_path / "o.safetensors"), cast)


def test_without_zero_the_module_is_taken_as_it_is(tmp_path: Path) -> None:
    saved = model()
    place = write(tmp_path / "c", saved, stage=1, ranks=2)
    for file in place.glob("*_optim_states.pt"):
        file.unlink()
    report = sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")
    expected = {
        name: t.bfloat16() if t.is_floating_point() and name != "pos" else t for name, t in saved.expected().items()
    }
    assert same(contents(tmp_path / "o.safetensors"), expected)
    assert any("no ZeRO partitions" in warning for warning in report.warnings)


def test_without_its_partitions_stage_3_has_no_weights(tmp_path: Path) -> None:
    place = write(tmp_path / "c", model(), stage=3, ranks=2)
    for file in place.glob("*_optim_states.pt"):
        file.unlink()
    with pytest.raises(sdconvert.UnreadableError, match="which hold the weights in ZeRO stage 3"):
        sdconvert.convert(tmp_path / "c")


def test_files_of_two_saves_are_not_mixed(tmp_path: Path) -> None:
    place = write(tmp_path / "c", model(), stage=2, ranks=2)
    (place / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"of another run")
    with pytest.raises(sdconvert.UnreadableError, match="there is another file of this rank"):
        sdconvert.convert(tmp_path / "c")


def test_a_parameter_that_was_not_optimized_is_taken_from_the_module(tmp_path: Path) -> None:
    saved = model()
    place = write(tmp_path / "c", saved, stage=1, ranks=2)
    edit(place / "mp_rank_00_model_states.pt", lambda states: states.update(frozen_param_shapes=None))
    report = sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")
    assert same(contents(tmp_path / "o.safetensors"), saved.expected())
    assert any("frozen.weight, frozen.bias: not in the optimizer" in warning for warning in report.warnings)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_flipped_bit_is_found(stage: int, tmp_path: Path) -> None:
    place = write(tmp_path / "c", model(), stage=stage, ranks=2)
    with sdconvert.open(place) as opened:
        storages = {piece.storage for tensor in opened.state_dict.tensors.values() for piece in tensor.pieces}
    assert len(storages) > 3
    for storage in storages:
        file = Path(storage.source.name)
        data = bytearray(file.read_bytes())
        data[storage.offset + storage.nbytes // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(sdconvert.UnreadableError, match="checksum"):
            sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")
        data[storage.offset + storage.nbytes // 2] ^= 1
        file.write_bytes(data)
    sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")


@pytest.mark.parametrize("stage", [2, 3])
def test_a_missing_file_of_a_rank_is_named(stage: int, tmp_path: Path) -> None:
    place = write(tmp_path / "c", model(), stage=stage, ranks=3)
    victim = place / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = victim.read_bytes()
    victim.unlink()
    with pytest.raises(
        sdconvert.UnreadableError, match="3 ranks saved optimizer states, 2 files are here: that of rank 1"
    ):
        sdconvert.convert(tmp_path / "c")
    victim.write_bytes(data)
    (place / "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt").write_bytes(data)
    with pytest.raises(sdconvert.UnreadableError, match="there are more than that"):
        sdconvert.convert(tmp_path / "c")
    (place / "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt").unlink()
    for name in ("zero_pp_rank_1_mp_rank_00", "zero_pp_rank_0_mp_rank_00", "mp_rank_00"):
        file = place / f"{name}_model_states.pt"
        if file.exists():
            data = file.read_bytes()
            file.unlink()
            with pytest.raises(sdconvert.UnreadableError, match=r"model states|is a directory"):
                sdconvert.convert(tmp_path / "c")
            file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("layer_0_expert_3_mp_rank_00_model_states.pt", "mixture of experts"),
        ("layer_01-model_00-model_states.pt", "pipeline-parallel"),
        ("mp_rank_01_model_states.pt", "tensor-parallel"),
        ("bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor-parallel"),
        ("zero/a.weight/fp32.pt", "universal checkpoint"),
    ],
)
def test_layouts_that_are_not_read_are_named(name: str, what: str, tmp_path: Path) -> None:
    place = write(tmp_path / "c", model(), stage=2, ranks=1)
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(b"never read")
    with pytest.raises(sdconvert.UnsupportedError, match=what):
        sdconvert.convert(tmp_path / "c")


def _optim(**fields: Any) -> Callable[[Any], None]:
    return lambda states: states["optimizer_state_dict"].update(fields)


def _shapes(states: Any, **shapes: Any) -> None:
    states["param_shapes"][0].update({name.replace("_", "."): shape for name, shape in shapes.items()})


def _grown(states: Any) -> None:
    key = next(
        k for k in ("fp32_flat_groups", "single_partition_of_fp32_groups") if k in states["optimizer_state_dict"]
    )
    flat = states["optimizer_state_dict"][key]
    flat[0] = torch.cat([flat[0], torch.zeros(40)])


def _doubled(states: Any) -> None:
    flat = states["optimizer_state_dict"]["fp32_flat_groups"]
    states["optimizer_state_dict"]["fp32_flat_groups"] = [tensor.double() for tensor in flat]


LIES: dict[str, tuple[int, str, Callable[[Any], Any], str]] = {
    "a stage that is none": (2, "optim", _optim(zero_stage=9), "stage is not a number"),
    "another stage": (2, "optim", _optim(zero_stage=1), "it is of stage"),
    "no stage": (2, "optim", lambda s: s["optimizer_state_dict"].pop("zero_stage"), "not saved by ZeRO"),
    "no optimizer": (2, "optim", lambda s: s.clear(), "not saved by ZeRO"),
    "more ranks than files": (2, "optim", _optim(partition_count=[1 << 62, 2]), "4611686018427387904 ranks saved"),
    "ranks that are none": (3, "optim", _optim(partition_count="two"), "partition_count is not a number"),
    "partitions that are none": (2, "optim", _optim(single_partition_of_fp32_groups=7), "is not a list"),
    "partitions without tensors": (3, "optim", _optim(fp32_flat_groups=[1, 2]), "does not hold tensors"),
    "no partitions": (3, "optim", _optim(fp32_flat_groups=[]), "does not hold tensors"),
    "fewer groups": (2, "optim", _optim(single_partition_of_fp32_groups=[torch.zeros(92)]), "other than 2 groups"),
    "a short partition": (
        2,
        "optim",
        _optim(single_partition_of_fp32_groups=[torch.zeros(9), torch.zeros(4)]),
        "needs",
    ),
    "a short flat tensor": (3, "optim", _optim(fp32_flat_groups=[torch.zeros(9)]), "different sizes"),
    "a square partition": (3, "optim", _optim(fp32_flat_groups=[torch.zeros(9, 9)]), "not one plain row"),
    "partitions of two dtypes": (
        3,
        "optim",
        _optim(fp32_flat_groups=[torch.zeros(92), torch.zeros(8).half()]),
        "not one plain row",
    ),
    "ranks of two dtypes": (3, "optim", _doubled, "dtypes"),
    "a frozen parameter of two dtypes": (
        3,
        "model",
        lambda s: s.update(frozen_param_fragments={n: t.double() for n, t in s["frozen_param_fragments"].items()}),
        "dtypes",
    ),
    "a large partition": (2, "optim", _grown, "its parameters take"),
    "a large flat tensor": (3, "optim", _grown, "different sizes"),
    "a larger parameter": (2, "model", lambda s: _shapes(s, emb_weight=torch.Size([1000, 7])), "needs 7000 elements"),
    "a larger parameter in equal parts": (
        3,
        "model",
        lambda s: _shapes(s, emb_weight=torch.Size([99, 7])),
        "of a rank's",
    ),
    "a smaller parameter": (2, "model", lambda s: _shapes(s, c_weight=torch.Size([1])), "its parameters take"),
    "a smaller parameter in equal parts": (
        3,
        "model",
        lambda s: _shapes(s, c_weight=torch.Size([1])),
        "parameters take",
    ),
    "a huge parameter": (2, "model", lambda s: _shapes(s, c_weight=torch.Size([1 << 40] * 3)), "more than 64 bits"),
    "a negative size": (3, "model", lambda s: _shapes(s, c_weight=(-3, 5)), "not a whole number"),
    "a shape that is none": (3, "model", lambda s: _shapes(s, c_weight="large"), "not a whole number"),
    "too many dimensions": (2, "model", lambda s: _shapes(s, c_weight=torch.Size([1] * 99)), "not a whole number"),
    "no shapes": (2, "model", lambda s: s.pop("param_shapes"), "param_shapes is not a list"),
    "no module": (2, "model", lambda s: s.pop("module"), "no state dict `module`"),
    "a list for a module": (3, "model", lambda s: s.update(module=[1]), "no state dict `module`"),
    "a parameter in two groups": (
        2,
        "model",
        lambda s: s["param_shapes"][1].update({"emb.weight": (1,)}),
        "in two groups",
    ),
    "gaps that do not fit": (2, "optim", _optim(param_alignment_paddings=[[0]]), "does not fit"),
    "a negative gap": (2, "optim", _optim(param_alignment_paddings=[[0, 0, -5], [0, 0, 0]]), "does not fit"),
    "frozen parts that are none": (3, "model", lambda s: s.update(frozen_param_fragments={}), "not among the frozen"),
    "a frozen part of another shape": (
        2,
        "model",
        lambda s: s["frozen_param_fragments"].update({"frozen.bias": torch.zeros(9)}),
        "stored as",
    ),
    "a short frozen part": (
        3,
        "model",
        lambda s: s["frozen_param_fragments"].update({"frozen.bias": torch.zeros(1, dtype=torch.bfloat16)}),
        "of a rank's",
    ),
}


def test_a_key_that_no_set_takes_is_left_out(tmp_path: Path) -> None:
    """A tuple with a list in it, which no pickler writes."""
    states = dict_of(("module", dict_of(("w", tensor()))), (tuple_of(list_of()), 1))
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(torch_zip(states))
    sdconvert.convert(tmp_path, tmp_path / "o.safetensors")
    assert contents(tmp_path / "o.safetensors").keys() == {"w"}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    stage, kind, change, message = LIES[name]
    place = write(tmp_path / "c", model(), stage=stage, ranks=2)
    edit(min(place.glob(f"*_{kind}_states.pt")), change)
    with pytest.raises(sdconvert.SdconvertError, match=message) as caught:
        sdconvert.convert(tmp_path / "c")
    assert str(caught.value).startswith(f"{tmp_path / 'c'}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_refused(fraction: float, tmp_path: Path) -> None:
    place = write(tmp_path / "c", model(), stage=3, ranks=2)
    for file in sorted(place.iterdir()):
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * fraction)])
        with pytest.raises(sdconvert.UnreadableError, match=file.name):
            sdconvert.convert(tmp_path / "c")
        file.write_bytes(data)
