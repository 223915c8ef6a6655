"""Loading from the Hub and over http: the weights' bytes are read, and next to nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

import sdconvert
from sdconvert.dtypes import BY_NAME
from sdconvert.load import place
from sdconvert.load.place import CPU, Placer, Want
from sdconvert.load.transfer import BlockingLane
from sdconvert.source import FileSource
from sdconvert.tensor import Storage, TensorRef, strided
from tests.hub_server import HubServer


class Tied(nn.Module):
    """18 MB and more of weights; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3000, 512)
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(12))
        self.head = nn.Linear(512, 3000, bias=False)
        self.head.weight = self.embedding.weight


def training_checkpoint() -> tuple[Tied, bytes]:
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    out = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, out)
    return model, out.getvalue()


def nbytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("copy", ["auto", "read"])
def test_of_a_training_checkpoint_only_the_weights_are_read(copy: str, here: HubServer) -> None:
    model, data = training_checkpoint()
    here.add_repo("me/model", {"checkpoint.pt": data})
    assert nbytes(model) > 18e6
    assert len(data) > 2.9 * nbytes(model)
    with sdconvert.skeleton():
        again = Tied()
    sdconvert.load_into(again, "hf://me/model/checkpoint.pt", copy=copy)
    assert nbytes(model) <= here.log.sent() <= 1.02 * nbytes(model)
    assert again.head.weight is again.embedding.weight
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    before = here.log.sent()
    found = sdconvert.load("hf://me/model/checkpoint.pt", include="layers.*")
    assert found.keys() == {name for name in model.state_dict() if name.startswith("layers.")}
    wanted = sum(tensor.nbytes for tensor in found.values())
    assert wanted <= here.log.sent() - before <= 1.05 * wanted


def test_a_sharded_repository_with_ties_over_its_shards(here: HubServer, tmp_path: Path) -> None:
    model = Tied()
    sdconvert.save(model, tmp_path, max_shard_size="3MB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["head.weight"] == "embedding.weight"
    here.add_repo("me/model", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    with sdconvert.skeleton():
        again = Tied()
    result = sdconvert.load_into(again, "hf://me/model")
    assert dict(result.ties) == {"head.weight": "embedding.weight"}
    assert again.head.weight is again.embedding.weight
    assert here.log.sent() <= 1.02 * nbytes(model)
    found = sdconvert.load("hf://me/model", include="*.weight", exclude="layers.*")
    assert found["head.weight"] is found["embedding.weight"]
    assert torch.equal(found["head.weight"], model.head.weight)


def test_a_revision_of_a_private_repository(here: HubServer) -> None:
    """By arguments, for a process whose environment holds no token or another's."""
    model, old, new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    commits = []
    here.add_repo("me/model", private=True)
    for state in (old.state_dict(), new.state_dict()):
        commits.append(here.add_files("me/model", {"model.safetensors": save(state, {"format": "pt"})}))
    how = {"revision": commits[0].oid, "token": here.token}
    sdconvert.load_into(model, "hf://me/model", **how)
    assert torch.equal(model.weight, old.weight)
    assert torch.equal(sdconvert.load("hf://me/model", **how)["weight"], old.weight)
    assert torch.equal(sdconvert.load("hf://me/model", token=here.token)["weight"], new.weight)
    for call in (lambda: sdconvert.load("hf://me/model"), lambda: sdconvert.load_into(model, "hf://me/model")):
        with pytest.raises(sdconvert.UnreadableError, match="or it is private"):
            call()
    with pytest.raises(sdconvert.ChoiceError, match="in memory has no revisions"):
        sdconvert.load_into(model, model.state_dict(), revision="main")


class Far:
    """A file that is far: what is asked of it ahead is noted."""

    far = True

    def __init__(self, path: Path) -> None:
        self._file = FileSource(path)
        self.name, self.nbytes = self._file.name, self._file.nbytes
        self.expected: list[tuple[int, int]] = []
        self.was_read = False

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self.was_read = True
        self._file.readinto(offset, buffer)

    def expect(self, begin: int, end: int, *, checked: bool) -> None:
        assert not self.was_read, "it is told too late"
        self.expected.append((begin, end))


@pytest.mark.parametrize("on_host", [True, False])
def test_what_will_be_read_of_a_far_file_is_told_before_it_is(
    on_host: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it comes in few requests, while a load of that file reads one tensor after the other."""
    (tmp_path / "data").write_bytes(bytes(range(96)))
    far = Far(tmp_path / "data")
    tensors = [filling(Storage(far, at, 16, str(at))) for at in (0, 32, 64)]
    device = CPU if on_host else torch.device("mps")
    monkeypatch.setattr(place, "lane_to", lambda device: BlockingLane(CPU))  # Not there, but all the same on the way.
    wants = [Want(tensors[0], tensors[0].dtype, device), Want(tensors[1], tensors[1].dtype, torch.device("meta"))]
    wants += [Want(tensors[2], tensors[2].dtype, device), Want(tensors[0], tensors[0].dtype, device)]
    first, nothing, third, again = Placer("auto", None).place(wants, lambda nbytes: None)
    assert sorted(far.expected) == [(0, 16), (64, 80)]
    assert (bytes(first.numpy()), bytes(third.numpy())) == (bytes(range(16)), bytes(range(64, 80)))
    assert again is first
    assert nothing.is_meta


def filling(storage: Storage) -> TensorRef:
    return strided(BY_NAME["uint8"], (storage.nbytes,), storage, 0, (1,))
