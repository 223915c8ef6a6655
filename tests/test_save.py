"""Saving what lives in memory: what other writers refuse or get wrong, nothing copied, all or nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sdconvert
from sdconvert.live import Bounce, LiveStorage
from tests.load.models import MODELS, Transformer, same_bits, same_model, trained
from tests.outputs import contents, header


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_model_comes_back(name: str, ending: str, tmp_path: Path) -> None:
    model = trained(MODELS[name]())
    path = tmp_path / f"m.{ending}"
    report = sdconvert.save(model, path)
    assert report.verified
    assert report.tensors == len(dict(model.named_parameters())) + len(dict(model.named_buffers())) - (
        name == "transformer"  # Its buffer is not persistent.
    )
    again = MODELS[name]()
    sdconvert.load_into(again, path)
    assert same_model(again, model)
    if ending == "pt":
        again.load_state_dict(torch.load(path, weights_only=True, mmap=True))


def test_the_bytes_are_those_of_safetensors_own_writer_and_of_a_conversion(tmp_path: Path) -> None:
    state = trained(MODELS["resnet"]()).state_dict()
    sdconvert.save(state, tmp_path / "ours.safetensors")
    save_file(dict(state), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()

    state = trained(Transformer()).state_dict()
    torch.save(state, tmp_path / "m.pt")
    for ending in ("safetensors", "pt"):
        sdconvert.save(state, tmp_path / f"saved.{ending}", overwrite=True)
        sdconvert.convert(tmp_path / "m.pt", tmp_path / f"converted.{ending}")
        assert (tmp_path / f"saved.{ending}").read_bytes() == (tmp_path / f"converted.{ending}").read_bytes()


base = torch.randn(9, 4)
pairs = torch.randn(4, 4, dtype=torch.complex64)
REFUSED_ELSEWHERE: dict[str, dict[str, Any]] = {
    "a slice": {"w": base[:3]},
    "slices of one storage": {"q": base[:3], "k": base[3:6], "v": base[6:]},
    "a transpose beside its base": {"w": base, "t": base.t()},
    "strided": {"w": base[::2, 1:3]},
    "conjugated": {"w": pairs.conj()},
    "negated": {"w": pairs.conj().imag},
    "conjugated and transposed": {"w": pairs.conj().t()},
    "expanded": {"w": torch.ones(1).expand(5)},
    "a partial overlap": {"a": base[:6], "b": base[3:]},
    "tied": {"z": base, "a": base},
    "a scalar of a larger storage": {"w": base[2, 3]},
    "empty": {"w": torch.empty(0, 3), "v": base[9:]},
    "a parameter": {"w": nn.Parameter(base)},
    "nested": {"a": {"w": base}, "b": {"c.d": {"v": base[1]}}},
}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("case", REFUSED_ELSEWHERE)
def test_what_others_refuse_or_get_wrong(case: str, ending: str, tmp_path: Path) -> None:
    state = REFUSED_ELSEWHERE[case]
    expected = {"a.w": base, "b.c.d.v": base[1]} if case == "nested" else state
    path = tmp_path / f"m.{ending}"
    sdconvert.save(state, path)
    found = contents(path) if ending == "safetensors" else torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], tensor.resolve_conj().resolve_neg()) for name, tensor in expected.items())


def test_a_tie_whose_dropped_name_is_format_keeps_the_format(tmp_path: Path) -> None:
    sdconvert.save({"aaa": base, "format": base}, tmp_path / "m.safetensors")
    assert header(tmp_path / "m.safetensors")["__metadata__"] == {"format": "pt"}
    assert torch.equal(contents(tmp_path / "m.safetensors")["format"], base)


def test_the_callers_dict_is_not_touched(tmp_path: Path) -> None:
    state = {"z": base, "a": base, "n": 3, "inner": {"w": base[1]}}
    before = dict(state)
    sdconvert.save(state, tmp_path / "m.safetensors")
    assert state.keys() == before.keys()
    assert all(state[name] is before[name] for name in state)
    model = Transformer()
    held = dict(model.named_parameters(remove_duplicate=False))
    sdconvert.save(model, tmp_path / "n.safetensors")
    assert all(param is held[name] for name, param in model.named_parameters(remove_duplicate=False))


def test_what_is_not_a_tensor_is_left_out_and_said(tmp_path: Path) -> None:
    report = sdconvert.save({"w": base, "epoch": 3, "name": "x"}, tmp_path / "m.safetensors")
    assert {one.name: one.why for one in report.skipped} == {
        "epoch": "not a tensor (int)",
        "name": "not a tensor (str)",
    }
    assert contents(tmp_path / "m.safetensors").keys() == {"w"}


def test_of_a_training_checkpoint_the_weights_are_taken(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    report = sdconvert.save(whole, tmp_path / "m.safetensors")
    assert contents(tmp_path / "m.safetensors").keys() == {"weight", "bias"}
    assert report.key == "model"
    assert "optimizer" in {one.name for one in report.skipped}


def test_a_model_in_a_dict_is_taken_as_in_a_file_of_that_dict(tmp_path: Path) -> None:
    whole = {"model": nn.Linear(2, 2), "epoch": 3}
    report = sdconvert.save(whole, tmp_path / "saved.safetensors")
    torch.save(whole, tmp_path / "m.pt")
    sdconvert.convert(tmp_path / "m.pt", tmp_path / "converted.safetensors")
    assert (tmp_path / "saved.safetensors").read_bytes() == (tmp_path / "converted.safetensors").read_bytes()
    assert report.key == "model"


def test_an_object_that_is_left_out_is_named_by_its_class(tmp_path: Path) -> None:
    report = sdconvert.save({"w": base, "args": Namespace(lr=0.1), "none": None}, tmp_path / "m.safetensors")
    assert {one.name: one.why for one in report.skipped} == {
        "args": "an object (argparse.Namespace)",
        "none": "None",
    }


def test_a_flat_dict_is_taken_whole_whatever_its_names(tmp_path: Path) -> None:
    state = {"optimizer": torch.ones(1), "model": torch.ones(2), "ema": torch.ones(3)}
    sdconvert.save(state, tmp_path / "m.safetensors")
    assert contents(tmp_path / "m.safetensors").keys() == state.keys()


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: {"w": torch.empty(2, device="meta")}, "w is on the meta device"),
    (lambda: {}, "no tensors"),
    (lambda: 3, "a int is neither a model nor a dict"),
    (lambda: nn.LazyLinear(3), "not initialised"),
]


@pytest.mark.filterwarnings("ignore")  # Of torch, about lazy modules and quantized tensors.
@pytest.mark.parametrize(("make", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_cannot_be_saved_is_refused_and_nothing_is_left(make: Callable[[], Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(sdconvert.SdconvertError, match=why):
        sdconvert.save(make(), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_unless_overwrite_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises(sdconvert.OutputError, match="exists already"):
        sdconvert.save({"w": torch.zeros(3)}, path)
    with pytest.raises(sdconvert.UnsupportedError):
        sdconvert.save({"w": torch.empty(3, device="meta")}, path, overwrite=True)
    assert path.read_bytes() == before
    sdconvert.save({"w": torch.zeros(3)}, path, overwrite=True)
    assert not contents(path)["w"].any()
    with pytest.raises(sdconvert.ChoiceError, match="its ending names no output format"):
        sdconvert.save({"w": torch.zeros(3)}, tmp_path / "m.bin")
    sdconvert.save({"w": torch.zeros(3)}, tmp_path / "m.bin", format="pt")


def test_saving_over_the_file_that_the_tensors_are_mapped_from(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.arange(100_000.0)}, path)
    state = sdconvert.load(path)
    state["w"][0] = 5
    sdconvert.save(state, path, overwrite=True)
    expected = torch.arange(100_000.0)
    expected[0] = 5
    assert torch.equal(state["w"], expected)
    assert torch.equal(contents(path)["w"], expected)


def test_metadata_joins_the_header(tmp_path: Path) -> None:
    sdconvert.save({"w": base}, tmp_path / "m.safetensors", metadata={"step": "3"})
    assert header(tmp_path / "m.safetensors")["__metadata__"] == {"format": "pt", "step": "3"}
    with pytest.raises(sdconvert.ChoiceError, match="no place for metadata"):
        sdconvert.save({"w": base}, tmp_path / "m.pt", metadata={"step": "3"})


def test_a_model_is_never_there_twice(tmp_path: Path) -> None:
    code = """
import sys, torch, sdconvert
from torch import nn
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)), nn.Linear(2048, 2048).half())
model.register_buffer("strided", torch.zeros(2048, 2048).t())
sdconvert.save({"w": torch.ones(3)}, sys.argv[1] + "/warm.safetensors")
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
import threading, time
peak, done = anonymous(), False
before = peak
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous()); time.sleep(0.002)
watcher = threading.Thread(target=watch); watcher.start()
sdconvert.save(model, sys.argv[1] + "/m.safetensors")
done = True; watcher.join()
print(peak - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 48 << 10, "KiB, of 144 MiB of weights"


def test_bytes_of_a_device_come_through_one_bounded_buffer() -> None:
    """What is read from a device is here on the host, so that all but the hardware is what runs for one."""
    values = torch.randn(10_000)
    bounce = Bounce(1000)
    flat = values.view(torch.uint8)
    found: dict[int, bytearray] = {}

    def read(at: int) -> None:
        out = bytearray(4321)
        bounce.copy(flat[at : at + len(out)], memoryview(out))
        found[at] = out

    threads = [threading.Thread(target=read, args=(at,)) for at in range(0, 30_000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raw = bytes(flat.numpy())
    assert all(bytes(out) == raw[at : at + 4321] for at, out in found.items())
    assert bounce._host is not None
    assert bounce._host.numel() == 1000


def test_a_storage_is_read_within_its_bounds() -> None:
    source = LiveStorage(torch.arange(4, dtype=torch.uint8).untyped_storage(), "w", Bounce())
    with pytest.raises(sdconvert.UnreadableError, match="only 4"):
        source.readinto(2, memoryview(bytearray(3)))


def test_a_wrapped_model_is_saved_under_its_names(tmp_path: Path) -> None:
    model = nn.DataParallel(nn.Linear(2, 2))
    report = sdconvert.save(model, tmp_path / "m.safetensors")
    assert contents(tmp_path / "m.safetensors").keys() == {"module.weight", "module.bias"}
    assert report.prefixes == ("module.",)


def test_a_model_in_a_dict_is_taken_as_from_a_file_of_the_same(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    report = sdconvert.save({"model": model, "epoch": 3, "scaler": object()}, tmp_path / "m.safetensors")
    assert report.key == "model"
    assert contents(tmp_path / "m.safetensors").keys() == model.state_dict().keys()
    assert {one.name for one in report.skipped} == {"epoch", "scaler"}


def test_what_is_no_tensor_is_called_what_it_is(tmp_path: Path) -> None:
    report = sdconvert.save({"w": torch.ones(2), "mean": torch.ones(2).numpy()}, tmp_path / "m.safetensors")
    assert [(one.name, one.why) for one in report.skipped] == [("mean", "an object (numpy.ndarray)")]
