"""``hf://owner/name``: the weights that the repository would be loaded from; when that is unclear, a list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import sdconvert
from tests.hub_server import HubServer


def pickled(value: float, folder: Path) -> bytes:
    torch.save({"w": torch.full((3,), value)}, folder / "one.bin")
    return (folder / "one.bin").read_bytes()


def safe(value: float) -> bytes:
    return save({"w": torch.full((3,), value)})


def index(shard: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {"w": shard}}).encode()


def value_of(url: str, folder: Path) -> float:
    """What the one tensor of a source is full of."""
    sdconvert.convert(url, folder / "out.pt", max_shard_size=0, overwrite=True)
    return float(torch.load(folder / "out.pt")["w"][0])


def test_in_the_order_in_which_libraries_look(here: HubServer, tmp_path: Path) -> None:
    files = {
        "model.safetensors": safe(1),
        "pytorch_model.bin": pickled(2, tmp_path),
        "notes.ckpt": pickled(3, tmp_path),
        "training_args.bin": pickled(4, tmp_path),
        "config.json": b"{}",
    }
    for expected, name in ((1.0, "model.safetensors"), (2.0, "pytorch_model.bin"), (3.0, "notes.ckpt")):
        here.add_repo("you/model", files)
        assert value_of("hf://you/model", tmp_path) == expected
        del files[name]


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards(here: HubServer, tmp_path: Path, ending: str) -> None:
    stem = "model" if ending == "safetensors" else "pytorch_model"
    shard = f"{stem}-00001-of-00001.{ending}"
    data = safe(5) if ending == "safetensors" else pickled(5, tmp_path)
    here.add_repo("you/model", {shard: data, f"{stem}.{ending}.index.json": index(shard), "optimizer.pt": b"x"})
    assert value_of("hf://you/model", tmp_path) == 5.0
    assert value_of(f"hf://you/model/{stem}.{ending}.index.json", tmp_path) == 5.0


def test_a_variant_of_an_index(here: HubServer, tmp_path: Path) -> None:
    shard = "model.fp16-00001-of-00001.safetensors"
    here.add_repo("you/model", {shard: safe(6), "model.safetensors.index.fp16.json": index(shard)})
    assert value_of("hf://you/model/model.safetensors.index.fp16.json", tmp_path) == 6.0


def test_a_directory_of_it(here: HubServer, tmp_path: Path) -> None:
    here.add_repo("you/model", {"unet/diffusion_pytorch_model.safetensors": safe(7), "vae/model.safetensors": safe(8)})
    assert value_of("hf://you/model/unet", tmp_path) == 7.0
    assert value_of("hf://you/model/vae", tmp_path) == 8.0


def test_several_are_listed_by_names_that_can_be_given(here: HubServer, tmp_path: Path) -> None:
    here.add_repo("you/model", {"a.ckpt": pickled(1, tmp_path), "b.ckpt": pickled(2, tmp_path)})
    with pytest.raises(sdconvert.ChoiceError, match=r"hf://you/model/a\.ckpt, hf://you/model/b\.ckpt") as caught:
        sdconvert.open("hf://you/model")
    assert len(caught.value.candidates) == 2
    assert value_of("hf://you/model/b.ckpt", tmp_path) == 2.0


def test_none_at_all(here: HubServer) -> None:
    here.add_repo("you/model", {"README.md": b"# Nothing\n"})
    with pytest.raises(sdconvert.SdconvertError) as caught:
        sdconvert.open("hf://you/model")
    assert str(caught.value).startswith("hf://you/model: ")


def test_a_look_at_a_repository_reads_headers_only(here: HubServer) -> None:
    tensors = {f"w{n}": torch.zeros(1000, 500) for n in range(4)}
    here.add_repo("you/model", {"model.safetensors": save(tensors), "pytorch_model.bin": bytes(9_000_000)})
    with sdconvert.open("hf://you/model") as opened:
        assert len(opened.state_dict) == 4
    assert here.log.sent() < 100_000
    assert here.log.count() <= 4, str(here.log)
