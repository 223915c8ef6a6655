"""The way to a device, shown on a device that is none: its copies happen as late as they may, on the host.

Whoever fills a buffer again before what was in it has left, or takes a tensor before all of it is there, shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert.load import transfer as transfer_module
from sdconvert.load.place import dtype_named
from sdconvert.load.transfer import STAGING, Load, transfer
from tests.load.models import Transformer, same_bits, same_model, saved, trained


class LateLane:
    """A device whose copies are made when somebody waits for them, from what is in the buffer by then."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        self.queued: list[tuple[torch.Tensor, torch.Tensor, bytes]] = []
        self.most = 0

    def buffer(self, nbytes: int) -> torch.Tensor:
        self.buffers.append(torch.zeros(nbytes, dtype=torch.uint8))
        return self.buffers[-1]

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def send(self, target: torch.Tensor, staged: torch.Tensor) -> None:
        self.queued.append((target, staged, bytes(staged.numpy())))
        self.most = max(self.most, len(self.queued))

    def mark(self) -> Callable[[], None]:
        count = len(self.queued)

        def wait() -> None:
            for target, staged, then in self.queued[:count]:
                assert bytes(staged.numpy()) == then, "the buffer was filled again before it was empty"
                target.copy_(staged)
            self.queued[:count] = [(t, s, b) for t, s, b in self.queued[:count] if False]

        return wait


@pytest.mark.parametrize("staging", [64, 1000, 4096, STAGING])
@pytest.mark.parametrize("threads", [1, 3])
def test_all_arrives_whatever_the_size_of_the_buffers(staging: int, threads: int, tmp_path: Path) -> None:
    state = {
        "large": torch.randn(500, 7),
        "small": torch.arange(3, dtype=torch.uint8),
        "double": torch.randn(33, dtype=torch.float64),
        "complex": torch.randn(5, dtype=torch.complex64).conj(),
        "strided": torch.randn(20, 30).t(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "half": torch.randn(99).half(),
    }
    torch.save(state, tmp_path / "m.pt")
    lane, done = LateLane(), []
    with sdconvert.open(tmp_path / "m.pt") as opened:
        refs = opened.state_dict.tensors
        loads = [Load(ref, ref.dtype) for ref in refs.values()]
        found = transfer(loads, lane, threads=threads, progress=done.append, staging=staging)
    assert all(same_bits(ours, state[name].resolve_conj()) for name, ours in zip(refs, found, strict=True))
    assert sum(done) == sum(ref.nbytes for ref in refs.values())
    assert len(lane.buffers) <= 2
    assert all(len(buffer) <= max(staging, 16) for buffer in lane.buffers)
    assert lane.queued == []


def test_the_host_holds_two_buffers_never_the_file(tmp_path: Path) -> None:
    torch.save({f"w{i}": torch.randn(1000) for i in range(200)}, tmp_path / "m.pt")
    lane = LateLane()
    with sdconvert.open(tmp_path / "m.pt") as opened:
        loads = [Load(ref, ref.dtype) for ref in opened.state_dict.tensors.values()]
        transfer(loads, lane, threads=2, progress=lambda count: None, staging=10_000)
    assert [len(buffer) for buffer in lane.buffers] == [10_000, 10_000]
    assert lane.most < 12, "more was under way than two buffers hold"


def test_a_cast_is_made_on_the_way(tmp_path: Path) -> None:
    values = torch.randn(1001)
    torch.save({"w": values}, tmp_path / "m.pt")
    with sdconvert.open(tmp_path / "m.pt") as opened:
        load = Load(opened.state_dict["w"], dtype_named("bfloat16"))
        (found,) = transfer([load], LateLane(), threads=2, progress=lambda count: None, staging=96)
    assert same_bits(found, values.bfloat16())


def test_a_damaged_source_is_an_error_and_nothing_is_left_under_way(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(5000)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\0\0\x80\x3f" * 100) + 9000] ^= 4
    path.write_bytes(data)
    lane = LateLane()
    with sdconvert.open(path) as opened:
        load = Load(opened.state_dict["w"], opened.state_dict["w"].dtype)
        with pytest.raises(sdconvert.UnreadableError, match="checksum"):
            transfer([load], lane, threads=2, progress=lambda count: None, staging=1024)
    assert lane.queued == []


@pytest.fixture
def xpu_is_the_host(monkeypatch: pytest.MonkeyPatch) -> list[LateLane]:
    """A device of another type, whose memory is the host's: all but the hardware is what runs for it."""
    lanes: list[LateLane] = []

    def lane_to(device: torch.device) -> LateLane:
        assert device.type == "xpu"
        lanes.append(LateLane())
        return lanes[-1]

    from sdconvert.load import place

    monkeypatch.setattr(place, "lane_to", lane_to)
    return lanes


def test_load_sends_to_another_device(xpu_is_the_host: list[LateLane], tmp_path: Path) -> None:
    original = trained(Transformer())
    path = saved(original, "safetensors", tmp_path)
    state = sdconvert.load(path, device="xpu:0")
    assert len(xpu_is_the_host) == 1
    assert all(same_bits(state[name], tensor) for name, tensor in original.state_dict().items())
    assert state["head.weight"] is state["embedding.weight"]


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the hardware itself is tested")


@cuda
@pytest.mark.parametrize("copy", ["auto", "read"])
@pytest.mark.parametrize("how", ["safetensors", "state_dict.pt"])
def test_cuda(how: str, copy: str, tmp_path: Path) -> None:
    original = trained(Transformer())
    path = saved(original, how, tmp_path)
    with sdconvert.skeleton():
        model = Transformer()
    assert sdconvert.load_into(model, path, device="cuda", copy=copy) == ([], [])
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cuda"}
    assert same_model(model.cpu(), original)
    there = Transformer().cuda()
    held = there.scale
    sdconvert.load_into(there, path, copy=copy)
    assert there.scale is held
    assert same_model(there.cpu(), original)
    moved = Transformer()
    optimizer = torch.optim.SGD(moved.parameters(), lr=0.1)
    sdconvert.load_into(moved, path, device="cuda:0", copy=copy)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in moved.parameters()}
    state = sdconvert.load(path, device={"": "cpu", "layers.0": 0}, copy=copy)
    assert {name for name, tensor in state.items() if tensor.is_cuda} == {n for n in state if n.startswith("layers.0.")}


@cuda
def test_cuda_save(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    sdconvert.save(model, tmp_path / "host.safetensors")
    sdconvert.save(model.cuda(), tmp_path / "device.safetensors")
    assert (tmp_path / "host.safetensors").read_bytes() == (tmp_path / "device.safetensors").read_bytes()


def test_the_lane_of_a_device_without_streams_is_done_when_it_returns() -> None:
    lane = transfer_module.lane_to(torch.device("cpu"))
    target, staged = lane.empty((4,), torch.uint8), lane.buffer(4)
    staged.fill_(7)
    lane.send(target, staged)
    assert target.tolist() == [7] * 4
    lane.mark()()
