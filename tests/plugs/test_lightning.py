"""A trainer of Lightning saves through the plug, goes on from it, and nothing is pickled on the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert

lightning = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'sdconvert[lightning]'")

from sdconvert.plugs.lightning import SafeCheckpointIO  # noqa: E402 - only with lightning

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


class Module(lightning.LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))

    def training_step(self, batch: Any, at: int) -> torch.Tensor:
        loss = self.body(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def trainer(place: Path, epochs: int, *plugins: Any) -> Any:
    from lightning.pytorch.callbacks import ModelCheckpoint

    return lightning.Trainer(
        max_epochs=epochs, plugins=list(plugins), default_root_dir=place, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=place, save_last=True, monitor="loss", save_top_k=1)],
    )  # fmt: skip


def data() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3)), batch_size=4)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_training_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    first, module = trainer(tmp_path, 2, SafeCheckpointIO()), Module()
    monkeypatch.setattr(torch, "save", None)  # Whoever would pickle fails.
    first.fit(module, data())
    last = tmp_path / "last.ckpt"
    assert sorted(path.name for path in last.iterdir()) == ["model.safetensors", "rest.json", "rest.safetensors"]
    assert json.loads((last / "rest.json").read_text())["rest"]["epoch"] == 1
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 0
    monkeypatch.setattr(torch, "load", None)
    found = SafeCheckpointIO().load_checkpoint(last)
    assert same(found["state_dict"], dict(module.state_dict()))
    assert same(found["optimizer_states"][0], first.optimizers[0].state_dict())
    assert found["hyper_parameters"] == {"width": 4}
    assert found["state_dict"]._metadata["body.1"] == {"version": 2}
    again, resumed = trainer(tmp_path / "more", 3, SafeCheckpointIO()), Module()
    again.fit(resumed, data(), ckpt_path=str(last))
    assert (again.current_epoch, again.global_step) == (3, 6)
    assert again.optimizers[0].state_dict()["state"][0]["step"] == 6


def test_the_weights_in_it_are_what_everybody_reads(tmp_path: Path) -> None:
    module = Module()
    SafeCheckpointIO().save_checkpoint({"state_dict": module.state_dict(), "epoch": 1}, tmp_path / "m.ckpt")
    assert sdconvert.inspect(tmp_path / "m.ckpt").dangerous_globals == ()
    sdconvert.load_into(Module(), tmp_path / "m.ckpt" / "model.safetensors")
    sdconvert.convert(tmp_path / "m.ckpt", tmp_path / "out.safetensors")


def test_a_checkpoint_of_lightning_itself_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, module = trainer(tmp_path, 1), Module()
    before.fit(module, data())
    monkeypatch.setattr(torch, "load", None)
    found = SafeCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert same(found["state_dict"], dict(module.state_dict()))
    assert same(found["optimizer_states"][0], before.optimizers[0].state_dict())
    again = trainer(tmp_path / "more", 2, SafeCheckpointIO())
    again.fit(Module(), data(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.global_step == 4


def test_what_json_has_not_comes_back(tmp_path: Path) -> None:
    tied = torch.randn(3)
    rest = {
        "t": (1, [2.5, None], ()), "n": {0: "a", "$": float("inf")}, "b": b"\0\xff", "d": torch.bfloat16,
        "dev": torch.device("cpu"), "a": tied, "same": tied, "x": {"$": "tuple"},
        "c": torch.randn(2, dtype=torch.complex128),
    }  # fmt: skip
    SafeCheckpointIO().save_checkpoint({**rest, "state_dict": {}}, tmp_path / "m.ckpt")
    found = SafeCheckpointIO().load_checkpoint(tmp_path / "m.ckpt")
    assert same({key: found[key] for key in rest}, rest)
    assert type(found["t"]) is tuple
    assert found["a"].data_ptr() == found["same"].data_ptr()


def test_a_checkpoint_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no moment without a whole one, and where the system cannot do it so, two renames do."""
    plug, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    plug.save_checkpoint({"epoch": 1}, path)
    if sys.platform == "linux":
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", None)  # Whoever would take two steps fails.
            plug.save_checkpoint({"epoch": 2}, path)
        assert plug.load_checkpoint(path)["epoch"] == 2
    monkeypatch.setattr("sdconvert.plugs.lightning._exchanged", lambda one, other: False)
    plug.save_checkpoint({"epoch": 3}, path)
    assert plug.load_checkpoint(path)["epoch"] == 3
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_needs_a_pickle_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    io = SafeCheckpointIO()
    io.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, tmp_path / "m.ckpt")
    with pytest.raises(sdconvert.UnsupportedError, match=r"checkpoint\.callbacks\.x: a Module needs a pickle"):
        io.save_checkpoint({"state_dict": {}, "callbacks": {"x": Module()}}, tmp_path / "m.ckpt")
    assert torch.equal(io.load_checkpoint(tmp_path / "m.ckpt")["state_dict"]["w"], torch.ones(2))
    io.save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "m.ckpt")
    assert torch.equal(io.load_checkpoint(tmp_path / "m.ckpt")["state_dict"]["w"], torch.zeros(2))
    torch.save({"state_dict": {}, "args": Module}, tmp_path / "p.ckpt")
    with pytest.raises(sdconvert.UnsupportedError, match=r"checkpoint\.args"):
        io.load_checkpoint(tmp_path / "p.ckpt")
    io.remove_checkpoint(tmp_path / "m.ckpt")
    io.remove_checkpoint(tmp_path / "p.ckpt")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(tmp_path / "m.ckpt")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"rest": {"$": "dtype", "name": "load"}}', '{"rest": {"$": "tensor", "name": "x"}}']
)
def test_a_damaged_remainder_is_refused(text: str, tmp_path: Path) -> None:
    SafeCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "m.ckpt")
    (tmp_path / "m.ckpt" / "rest.json").write_text(text)
    with pytest.raises(sdconvert.UnreadableError, match="damaged"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "m.ckpt")
