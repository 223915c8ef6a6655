"""`sdconvert.load`: which tensors, whose memory, and what was read for it."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert.load import mapping
from sdconvert.source import FileSource
from tests.load.models import ResNet, same_bits, saved
from tests.test_same_bytes import DTYPES

COPIES = ["auto", "mmap", "read"]


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether the memory of a tensor is that of a file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.endswith(str(path))
    return False


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every read of a file."""
    reads: list[int] = []
    readinto = FileSource.readinto

    def counting(self: FileSource, offset: int, buffer: memoryview) -> None:
        reads.append(len(buffer))
        readinto(self, offset, buffer)

    monkeypatch.setattr(FileSource, "readinto", counting)
    return reads


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype, ending: str, copy: str, tmp_path: Path) -> None:
    bits = torch.arange(48 * 8, dtype=torch.uint8) % (2 if dtype is torch.bool else 251)
    values = bits.view(dtype)
    state = {"a": values[:24].reshape(2, 3, 4), "empty": values[:0].reshape(0, 3), "one": values[:1]}
    if dtype is not torch.float4_e2m1fn_x2:
        state["scalar"] = values[0].clone()
    state = {name: tensor.clone() for name, tensor in state.items()}
    sdconvert.save(state, tmp_path / f"m.{ending}")
    found = sdconvert.load(tmp_path / f"m.{ending}", copy=copy)
    assert list(found) == sorted(state) if ending == "safetensors" else list(state)
    assert all(same_bits(found[name], state[name]) for name in state)


def test_on_the_host_a_local_file_is_mapped_and_copy_read_is_not(tmp_path: Path) -> None:
    for name in ("m.safetensors", "m.pt"):
        path = tmp_path / name
        sdconvert.save({"w": torch.randn(1000)}, path)
        assert is_mapped(sdconvert.load(path)["w"], path)
        assert is_mapped(sdconvert.load(path, copy="mmap")["w"], path)
        assert not is_mapped(sdconvert.load(path, copy="read")["w"], path)
        assert not is_mapped(sdconvert.load(path, dtype="bfloat16")["w"], path)


def test_a_file_on_a_network_file_system_is_read_unless_mapping_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.randn(1000)}, path)
    monkeypatch.setattr(mapping, "is_remote", lambda source: True)
    assert not is_mapped(sdconvert.load(path)["w"], path)
    assert is_mapped(sdconvert.load(path, copy="mmap")["w"], path)


def test_a_storage_of_a_mapped_tensor_is_its_own_bytes_so_saving_it_saves_no_more(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({f"w{i}": torch.randn(100) for i in range(50)}, path)
    one = sdconvert.load(path)["w7"]
    assert one.untyped_storage().nbytes() == 400


def test_ties_are_one_tensor_and_slices_of_one_storage_are_right(tmp_path: Path) -> None:
    base = torch.randn(9, 4)
    state = {"q": base[:3], "k": base[3:6], "v": base[6:], "all": base, "again": base, "t": base.t()}
    torch.save(state, tmp_path / "m.pt")
    for copy in COPIES:
        found = sdconvert.load(tmp_path / "m.pt", copy=copy)
        assert found["all"] is found["again"]
        assert all(same_bits(found[name], state[name]) for name in state)
        assert all(tensor.is_contiguous() for tensor in found.values())


@pytest.mark.parametrize("copy", COPIES)
def test_strided_conjugated_negated_and_unaligned_tensors_get_memory_of_their_own(copy: str, tmp_path: Path) -> None:
    numbers = torch.randn(6, 6, dtype=torch.complex64)
    state = {
        "strided": torch.randn(8, 8)[::2, 1::3],
        "conj": numbers.conj(),
        "neg": torch.randn(4, dtype=torch.complex64).conj().imag,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.randn(3, 1).expand(3, 5),
    }
    torch.save(state, tmp_path / "m.pt")
    found = sdconvert.load(tmp_path / "m.pt", copy=copy)
    assert all(same_bits(found[name], tensor.resolve_conj().resolve_neg()) for name, tensor in state.items())

    # The old format puts storages one after the other, wherever that is.
    state = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.randn(5, dtype=torch.float64)}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = sdconvert.load(tmp_path / "old.pt", copy=copy)
    assert all(same_bits(found[name], state[name]) for name in state)
    assert found["b"].data_ptr() % 8 == 0


@pytest.mark.parametrize("copy", COPIES)
def test_dtype_casts_floating_point_tensors_as_torch_does(copy: str, tmp_path: Path) -> None:
    state = {"w": torch.randn(3_000_001), "t": torch.randn(5, 7).t(), "n": torch.arange(4), "h": torch.randn(3).half()}
    torch.save(state, tmp_path / "m.pt")
    found = sdconvert.load(tmp_path / "m.pt", dtype=torch.bfloat16, copy=copy)
    for name, tensor in state.items():
        assert same_bits(found[name], tensor.bfloat16() if tensor.is_floating_point() else tensor)


def test_of_a_training_checkpoint_only_the_bytes_of_the_weights_are_read(tmp_path: Path, counted: list[int]) -> None:
    path = saved(ResNet(), "wrapped.ckpt", tmp_path)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in ResNet().state_dict().values())
    counted.clear()
    with sdconvert.open(path) as opened:
        _ = opened.state_dict
    headers = sum(counted)
    counted.clear()
    sdconvert.load_into(ResNet(), path, copy="read")
    assert sum(counted) - headers == weights
    assert path.stat().st_size > 2.5 * weights, "the optimizer is in it"
    counted.clear()
    sdconvert.load(path)
    assert sum(counted) == headers


def test_a_damaged_record_that_is_read_is_refused_and_the_model_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"weight": torch.ones(64, 64), "bias": torch.ones(64)}, path)
    data = bytearray(path.read_bytes())
    at = data.index(torch.ones(64, 64).numpy().tobytes())
    data[at + 5000] ^= 1
    path.write_bytes(data)
    model = nn.Linear(64, 64)
    before = model.weight.detach().clone()
    with pytest.raises(sdconvert.UnreadableError, match="checksum"):
        sdconvert.load_into(model, path, copy="read")
    assert torch.equal(model.weight, before)
    assert sdconvert.load(path)["bias"].sum() == 64, "what is mapped is not checked"


def test_on_meta_nothing_is_read(tmp_path: Path, counted: list[int]) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.randn(100, 100), "v": torch.randn(3, dtype=torch.float64)}, path)
    counted.clear()
    state = sdconvert.load(path, device="meta", copy="read", dtype="half")
    assert [(t.shape, t.dtype, t.is_meta) for t in state.values()] == [
        ((3,), torch.float16, True),
        ((100, 100), torch.float16, True),
    ]
    assert sum(counted) < 1000


def test_names_and_filters_are_those_of_convert(tmp_path: Path) -> None:
    torch.save({"model": {"module.a.w": torch.ones(1), "module.b.w": torch.ones(2)}, "epoch": 3}, tmp_path / "m.pt")
    path = tmp_path / "m.pt"
    assert list(sdconvert.load(path, strip_prefix="auto")) == ["a.w", "b.w"]
    assert list(sdconvert.load(path, include="*.b.*")) == ["module.b.w"]
    assert list(sdconvert.load(path, exclude=["*.b.*"], key="model")) == ["module.a.w"]
    with pytest.raises(sdconvert.ChoiceError, match="nothing at key"):
        sdconvert.load(path, key="ema")


def test_the_result_is_a_state_dict_in_the_order_of_the_source(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    state = sdconvert.load(tmp_path / "m.pt")
    assert type(state) is OrderedDict
    assert list(state) == list(model.state_dict())
    assert str(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).load_state_dict(state, assign=True)).startswith("<All")


def test_a_device_map_goes_by_the_longest_prefix(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"a.x": torch.ones(1), "a.b.x": torch.ones(1), "ab.x": torch.ones(1)}, path)
    state = sdconvert.load(path, device={"": "cpu", "a": "meta", "a.b": "cpu"})
    assert {name: tensor.device.type for name, tensor in state.items()} == {
        "a.b.x": "cpu",
        "a.x": "meta",
        "ab.x": "cpu",
    }
    with pytest.raises(sdconvert.ChoiceError, match=r"the device map names 'layers\.9'"):
        sdconvert.load(path, device={"": "cpu", "layers.9": "cpu"})


def test_choices_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sdconvert.save({"w": torch.ones(1)}, path)
    with pytest.raises(sdconvert.ChoiceError, match="copy='fast'"):
        sdconvert.load(path, copy="fast")
    with pytest.raises(sdconvert.ChoiceError, match="dtype int8"):
        sdconvert.load(path, dtype="int8")
    with pytest.raises(sdconvert.ChoiceError, match="device 'gpu'"):
        sdconvert.load(path, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(sdconvert.ChoiceError, match="no CUDA device"):
            sdconvert.load(path, device="cuda")


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    from contextlib import contextmanager

    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(5_000_000), "b": torch.zeros(10, 10).t()[1:]}, path)
    for copy in COPIES:
        totals: list[tuple[str, int]] = []
        done: list[int] = []

        @contextmanager
        def bar(label: str, nbytes: int):  # type: ignore[no-untyped-def]
            totals.append((label, nbytes))  # noqa: B023
            yield done.append  # noqa: B023

        sdconvert.load(path, copy=copy, progress=bar)
        assert totals == [("loading", 20_000_360)]
        assert sum(done) == 20_000_360


def test_no_file_stays_open_and_no_thread_is_left(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(9_000_000)}, path)
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for copy in COPIES:
        state = sdconvert.load(path, copy=copy)
        del state
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.mark.parametrize("copy", ["auto", "read"])
def test_views_that_repeat_a_few_bytes_are_not_given_terabytes(copy: str, tmp_path: Path) -> None:
    """As in a conversion; Limits.expansion allows more."""
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "model.pt")
    with pytest.raises(sdconvert.UnreadableError, match="by views that repeat them"):
        sdconvert.load(tmp_path / "model.pt", copy=copy)
