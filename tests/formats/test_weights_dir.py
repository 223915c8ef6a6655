"""Directories around checkpoints: the right file is taken, and what was not is said.

The layouts are those that transformers 5.24, accelerate 1.15, diffusers 0.42, PEFT 0.21 and Lightning 2.6 wrote
(`test_trainers` makes them anew where these are installed).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sdconvert
from sdconvert import formats
from sdconvert.checkpoint import Checkpoint
from sdconvert.formats.protocol import Nested
from sdconvert.formats.weight_files import choose, training_state, weights
from sdconvert.limits import Limits
from sdconvert.source import Folder

Tree = dict[str, Any]
TRAINER = """optimizer.pt scheduler.pt rng_state.pth training_args.bin trainer_state.json config.json
    generation_config.json tokenizer.json""".split()


def make(directory: Path, *names: str) -> Path:
    """Files with a tensor that is called like its file, or of nothing where the name is not a checkpoint's."""
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {f"{name}.w": torch.zeros(2)}
        if name.endswith(".safetensors"):
            save_file(state, path)
        elif name.endswith((".json", ".md")):
            path.write_text("{}")
        else:
            torch.save(state, path)
    return directory


def taken(directory: Path, **options: Any) -> tuple[sdconvert.Report, dict[str, str]]:
    """The report of a dry run, and what was left out, by name."""
    report = sdconvert.convert(directory, dry_run=True, **options)
    return report, {one.name: one.why for one in report.skipped}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "epoch9.ckpt"])
def test_the_one_checkpoint_of_a_directory_is_taken_and_said(name: str, tmp_path: Path) -> None:
    make(tmp_path, name, "README.md")
    report, skipped = taken(tmp_path)
    assert report.files == (name,)
    assert report.tensors == 1
    assert skipped == {}
    assert f"  files     {name}" in str(report)


def test_a_trainers_directory(tmp_path: Path) -> None:
    make(tmp_path, "model.safetensors", *TRAINER)
    report, skipped = taken(tmp_path)
    assert report.files == ("model.safetensors",)
    assert skipped == dict.fromkeys(
        ["optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"], "training state"
    )


def test_the_last_model_beside_checkpoints_on_the_way_to_it(tmp_path: Path) -> None:
    make(tmp_path, "model.safetensors", "checkpoint-500/model.safetensors", *[f"checkpoint-500/{n}" for n in TRAINER])
    report, skipped = taken(tmp_path)
    assert report.files == ("model.safetensors",)
    assert skipped == {"checkpoint-500/": "a directory with checkpoints"}


def test_several_checkpoints_are_a_choice_by_path(tmp_path: Path) -> None:
    for step in (500, 1000):
        make(tmp_path / f"checkpoint-{step}", "model.safetensors", *TRAINER)
    with pytest.raises(sdconvert.ChoiceError, match=r"several checkpoints\. Name one of them") as caught:
        taken(tmp_path)
    assert [(one.key, one.kind) for one in caught.value.candidates] == [
        (f"{tmp_path}/checkpoint-1000", "directory"),
        (f"{tmp_path}/checkpoint-500", "directory"),
    ]
    assert f"{tmp_path}/checkpoint-500" in str(caught.value)
    assert taken(tmp_path / "checkpoint-500")[0].files == ("model.safetensors",)


def test_one_checkpoint_further_down_is_taken(tmp_path: Path) -> None:
    make(tmp_path, "version_0/checkpoints/epoch=0-step=2.ckpt", "version_0/checkpoints/readme.md")
    assert taken(tmp_path)[0].files == ("version_0/checkpoints/epoch=0-step=2.ckpt",)


@pytest.mark.parametrize("model", ["model.safetensors", "pytorch_model.bin"])
def test_accelerates_directory(model: str, tmp_path: Path) -> None:
    rest = ["optimizer.bin", "optimizer_1.bin", "random_states_0.pkl", "sampler.bin", "scheduler.bin", "scaler.pt"]
    make(tmp_path, model, "custom_checkpoint_0.pkl", "dl_state_dict.bin", *rest)
    report, skipped = taken(tmp_path)
    assert report.files == (model,)
    assert skipped == dict.fromkeys(["custom_checkpoint_0.pkl", "dl_state_dict.bin", *rest], "training state")


class Distributed:
    """A layout of its own, in the place of the one of DCP: it sees the part of the folder that is its."""

    NAME = "distributed"

    def sniff(self, folder: Folder) -> bool:
        return ".metadata" in folder.files

    def read(self, folder: Folder, nested: Nested, limits: Limits) -> Checkpoint:
        assert list(folder.files) == [".metadata", "__0_0.distcp"]
        assert (folder.name.rsplit("/", 1)[1], folder.entry) == ("pytorch_model_fsdp_0", "")
        return replace(nested(folder.open("__0_0.distcp")), files=("__0_0.distcp",))


def test_a_layout_inside_a_trainers_directory_is_handed_to_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP under Trainer and accelerate: the model in one directory with DCP's files, the optimizer in another."""
    run = make(tmp_path / "checkpoint-5", "scheduler.pt", "rng_state_0.pth", "trainer_state.json")
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        make(run / part, "__0_0.pt")
        (run / part / "__0_0.pt").rename(run / part / "__0_0.distcp")
        (run / part / ".metadata").write_bytes(b"")
    monkeypatch.setattr(formats, "DIRECTORIES", (Distributed(), *formats.DIRECTORIES))
    report, skipped = taken(tmp_path)
    assert report.files == ("checkpoint-5/pytorch_model_fsdp_0/__0_0.distcp",)
    assert skipped == dict.fromkeys(["checkpoint-5/rng_state_0.pth", "checkpoint-5/scheduler.pt"], "training state")


def test_two_models_of_accelerate_are_a_choice(tmp_path: Path) -> None:
    make(tmp_path, "model.safetensors", "model_1.safetensors", "optimizer.bin")
    with pytest.raises(sdconvert.ChoiceError) as caught:
        taken(tmp_path)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.safetensors"))]
    assert [(one.key, one.nbytes) for one in caught.value.candidates] == [
        (f"{tmp_path}/model.safetensors", sizes[0]),
        (f"{tmp_path}/model_1.safetensors", sizes[1]),
    ]


def test_only_training_state_is_no_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, *TRAINER)
    with pytest.raises(sdconvert.UnsupportedError, match="checkpoint"):
        taken(tmp_path)


def test_safetensors_is_taken_before_the_same_as_pickles(tmp_path: Path) -> None:
    make(tmp_path, "model.safetensors", "pytorch_model.bin", "other.pt")
    report, skipped = taken(tmp_path)
    assert report.files == ("model.safetensors",)
    assert skipped == {
        "pytorch_model.bin": "the weights of model.safetensors as pickles, by its name",
        "other.pt": "not a name that a library gives to a model",
    }


def test_a_variant_is_taken_only_when_there_is_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, "model.fp16.safetensors", "pytorch_model.fp16.bin")
    assert taken(tmp_path)[0].files == ("model.fp16.safetensors",)
    make(tmp_path, "pytorch_model.bin")
    report, skipped = taken(tmp_path)
    assert report.files == ("pytorch_model.bin",)
    assert skipped == dict.fromkeys(["model.fp16.safetensors", "pytorch_model.fp16.bin"], "the variant fp16")


def index(directory: Path, name: str, *shards: str) -> None:
    (directory / name).write_text(json.dumps({"weight_map": {f"{shard}.w": shard for shard in shards}}))


def test_both_sets_of_shards(tmp_path: Path) -> None:
    safe = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    pickles = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    make(tmp_path, *safe, *pickles)
    index(tmp_path, "model.safetensors.index.json", *safe)
    index(tmp_path, "pytorch_model.bin.index.json", *pickles)
    report, skipped = taken(tmp_path)
    assert report.files == ("model.safetensors.index.json", *safe)
    assert skipped == {
        "pytorch_model.bin.index.json": "the weights of model.safetensors.index.json as pickles, by its name"
    }
    assert taken(tmp_path / "pytorch_model.bin.index.json")[0].files == ("pytorch_model.bin.index.json", *pickles)


def test_a_single_file_and_shards_of_one_name_are_a_choice(tmp_path: Path) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    make(tmp_path, *shards, "model.safetensors")
    index(tmp_path, "model.safetensors.index.json", *shards)
    with pytest.raises(sdconvert.ChoiceError) as caught:
        taken(tmp_path)
    assert [Path(one.key).name for one in caught.value.candidates] == [
        "model.safetensors",
        "model.safetensors.index.json",
    ]


def test_several_indexes_are_a_choice(tmp_path: Path) -> None:
    for stem in ("first", "second"):
        make(tmp_path, f"{stem}-00001-of-00001.safetensors")
        index(tmp_path, f"{stem}.safetensors.index.json", f"{stem}-00001-of-00001.safetensors")
    with pytest.raises(sdconvert.ChoiceError) as caught:
        taken(tmp_path)
    assert [Path(one.key).name for one in caught.value.candidates] == [
        "first.safetensors.index.json",
        "second.safetensors.index.json",
    ]


def test_several_files_are_a_choice(tmp_path: Path) -> None:
    make(tmp_path, "best.pt", "last.pt", "optimizer.pt")
    with pytest.raises(sdconvert.ChoiceError) as caught:
        taken(tmp_path)
    assert [Path(one.key).name for one in caught.value.candidates] == ["best.pt", "last.pt"]


def test_a_pipelines_components_are_candidates(tmp_path: Path) -> None:
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    make(tmp_path / "unet", *shards, "diffusion_pytorch_model.fp16.safetensors")
    index(tmp_path / "unet", "diffusion_pytorch_model.safetensors.index.json", *shards)
    make(tmp_path, "model_index.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/pytorch_model.bin")
    make(tmp_path, "scheduler/scheduler_config.json", "v1-5-pruned.ckpt")
    with pytest.raises(sdconvert.ChoiceError) as caught:
        taken(tmp_path)
    assert [(one.key, one.tensors) for one in caught.value.candidates] == [
        ("text_encoder", 1),
        ("unet", 2),
        ("vae", 1),
    ]
    report, skipped = taken(tmp_path, key="unet")
    assert (report.tensors, report.shards) == (2, ())
    assert skipped["unet/diffusion_pytorch_model.fp16.safetensors"] == "the variant fp16"
    assert skipped["v1-5-pruned.ckpt"] == "beside the pipeline"
    assert skipped["vae"] == "outside of the state dict (1 tensor)"
    assert len(taken(tmp_path / "unet")[0].shards) == 2


def test_a_damaged_file_is_named_with_its_place(tmp_path: Path) -> None:
    make(tmp_path, "model_index.json", "unet/diffusion_pytorch_model.safetensors")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(sdconvert.UnsupportedError, match=r": unet: diffusion_pytorch_model\.safetensors: is a Git LFS"):
        taken(tmp_path)


def test_directories_inside_directories_have_an_end(tmp_path: Path) -> None:
    make(tmp_path, "a/b/c/d/e/f/model.safetensors")
    with pytest.raises(sdconvert.UnsupportedError, match="without a checkpoint"):
        taken(tmp_path)


@pytest.mark.parametrize("name", [".hidden.pt", ".model.safetensors.1234.sdconvert-tmp", "notes.txt", "vocab.json"])
def test_what_has_no_checkpoints_name_is_not_looked_at(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(sdconvert.UnsupportedError, match="is a directory with"):
        taken(tmp_path)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("model.safetensors tokenizer.bin vocab.pt", ["model.safetensors"]),
        ("consolidated.safetensors model.safetensors", ["model.safetensors"]),
        ("adapter_model.safetensors model.safetensors", ["adapter_model.safetensors", "model.safetensors"]),
        ("model.fp16.safetensors model.bf16.safetensors", ["model.bf16.safetensors", "model.fp16.safetensors"]),
        ("model-00001-of-00002.safetensors model-00002-of-00002.safetensors", ["model-00001-of-00002.safetensors"]),
        (
            "model-00001-of-00001.safetensors model-00001-of-00002.safetensors",
            ["model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"],
        ),
        ("w.safetensors w.pt w.ckpt", ["w.safetensors"]),
        ("modeling.pt models.bin", ["modeling.pt", "models.bin"]),
        ("tf_model.h5.index.json tf_model-00001-of-00001.h5 w.pt", ["w.pt"]),
        ("optimizer.pt", []),
        ("sub/model.safetensors", []),
    ],
)
def test_names_decide(names: str, chosen: list[str]) -> None:
    assert [one.entry for one in choose(weights(names.split()))[0]] == chosen


@pytest.mark.parametrize(
    "name",
    """optimizer.pt optimizer_2.bin scheduler.pt scaler.pt rng_state.pth rng_state_3.pth random_states_12.pkl
    training_args.bin sampler_1.bin custom_checkpoint_0.pkl zero_pp_rank_0_mp_rank_00_optim_states.pt""".split(),
)
def test_training_state_is_told_by_its_name(name: str) -> None:
    assert training_state([name]) == [name]
    assert weights([name]) == []
