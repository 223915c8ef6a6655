"""Patterns, and files that are parts of every tensor: taken where they are one checkpoint, named where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdconvert
from sdconvert.formats.parallel import parts
from tests.formats.test_sharded import ONE, TWO, put, tensors
from tests.formats.test_weights_dir import make


def test_a_pattern_that_fits_one_file_or_directory_is_that_one(tmp_path: Path) -> None:
    make(tmp_path, "run/model.safetensors", "other.json")
    for pattern in ("run/mod*.safetensors", "r*", "[r]un/model.?afetensors"):
        assert sdconvert.convert(f"{tmp_path}/{pattern}", tmp_path / "o.safetensors", dry_run=True).tensors == 1


def test_a_file_that_is_called_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    make(tmp_path, "a[1].pt", "a1.pt")
    with sdconvert.open(tmp_path / "a[1].pt") as opened:
        assert list(opened.state_dict) == ["a[1].pt.w"]


@pytest.mark.parametrize("pattern", ["model-*.safetensors", "*.safetensors", "model*", "*"])
@pytest.mark.parametrize("index", [True, False])
def test_a_pattern_of_all_shards_is_the_checkpoint(pattern: str, index: bool, tmp_path: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")})
    if not index:
        (source / "model.safetensors.index.json").unlink()
    report = sdconvert.convert(f"{source}/{pattern}", tmp_path / "o.safetensors", max_shard_size=0)
    assert report.tensors == 2
    assert bool(report.warnings) is not index


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("nothing*", "fits no file"),
        ("model-00001*", None),
        ("model-0000[12]*", "fits 2 of the 3 shards"),
        ("*", "fits 5 files, and not the shards of one checkpoint"),
        ("*.pt", "fits 2 files"),
    ],
)
def test_other_patterns_are_refused(pattern: str, words: str | None, tmp_path: Path) -> None:
    make(tmp_path, *[f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)], "a.pt", "b.pt")
    if words is None:
        report = sdconvert.convert(f"{tmp_path}/{pattern}", tmp_path / "o.safetensors", dry_run=True)
        assert "shard 1 of 3" in report.warnings[0]
        return
    with pytest.raises(sdconvert.SdconvertError, match=words) as caught:
        sdconvert.convert(f"{tmp_path}/{pattern}", dry_run=True)
    if isinstance(caught.value, sdconvert.ChoiceError):
        assert [Path(one.key).name for one in caught.value.candidates][:2] == ["a.pt", "b.pt"]


PARTS = {
    "Llama": ["consolidated.00.pth", "consolidated.01.pth"],
    "Megatron-LM": ["iter_0000100/mp_rank_00/model_optim_rng.pt", "iter_0000100/mp_rank_01/model_optim_rng.pt"],
    "NeMo": ["tp_rank_00_pp_rank_000/model_weights.ckpt", "tp_rank_01_pp_rank_000/model_weights.ckpt"],
    "DeepSeek": ["model0-mp2.safetensors", "model1-mp2.safetensors"],
    "metaseq": ["reshard-model_part-0.pt", "reshard-model_part-1.pt"],
    "fairseq": ["checkpoint_last-shard0.pt", "checkpoint_last-shard1.pt"],
    "pipeline-parallel": ["layer_01-model_00-model_states.pt", "layer_02-model_00-model_states.pt"],
    "LOCAL_STATE_DICT": ["pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin"],
}


@pytest.mark.parametrize("what", PARTS)
def test_parts_of_every_tensor_are_refused_for_what_they_are(what: str, tmp_path: Path) -> None:
    names = PARTS[what]
    make(tmp_path, *names)
    with pytest.raises(sdconvert.UnsupportedError, match=what) as caught:
        sdconvert.convert(tmp_path)
    assert names[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    pattern = f"{tmp_path}/" + names[0].replace("00", "*", 1).replace("0000100", "*").replace("rank0", "rank*")
    if "*" in pattern and what not in ("Megatron-LM", "pipeline-parallel"):
        with pytest.raises(sdconvert.UnsupportedError, match=what):
            sdconvert.convert(pattern)


def test_the_only_part_is_the_whole(tmp_path: Path) -> None:
    for number, name in enumerate(["consolidated.00.pth", "mp_rank_00/model_optim_rng.pt"]):
        make(tmp_path / str(number), name)
        report = sdconvert.convert(tmp_path / str(number) / name, tmp_path / f"{number}.safetensors")
        assert (report.tensors, report.warnings) == (1, ())
        assert sdconvert.convert(tmp_path / str(number), tmp_path / "o.safetensors", dry_run=True).tensors == 1


def test_one_part_named_by_itself_is_converted_with_a_word(tmp_path: Path) -> None:
    make(tmp_path, *PARTS["Llama"])
    report = sdconvert.convert(tmp_path / "consolidated.00.pth")
    assert report.warnings[0].startswith("it is one of tensor-parallel parts of a Llama model, 2 of them")


def test_a_rank_of_fsdp_is_refused_even_alone(tmp_path: Path) -> None:
    make(tmp_path, "pytorch_model_fsdp_rank0.bin")
    with pytest.raises(sdconvert.UnsupportedError, match="LOCAL_STATE_DICT"):
        sdconvert.convert(tmp_path)


def test_a_model_in_the_usual_place_is_taken_whatever_is_beside_it(tmp_path: Path) -> None:
    make(tmp_path, "model.safetensors", "original/consolidated.00.pth", "original/consolidated.01.pth")
    assert sdconvert.convert(tmp_path, dry_run=True).files == ("model.safetensors",)
    with pytest.raises(sdconvert.UnsupportedError, match="Llama"):
        sdconvert.convert(tmp_path / "original")


@pytest.mark.parametrize("names", [[], ["a.pt", "b.pt"], ["consolidated.00.pth"], ["model-mp2.safetensors"] * 2])
def test_other_files_are_no_parts(names: list[str]) -> None:
    assert parts(names) is None


def test_the_default_output_of_a_pattern_is_called_after_the_set(tmp_path: Path) -> None:
    source = tmp_path / "m"
    source.mkdir()
    for number in (1, 2):
        torch.save(tensors(f"w{number}"), source / f"pytorch_model-0000{number}-of-00002.bin")
    report = sdconvert.convert(f"{source}/pytorch_model-*", max_shard_size=0)
    assert report.outputs[0].path == str(source / "pytorch_model.safetensors")
