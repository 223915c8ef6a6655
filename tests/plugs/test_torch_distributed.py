"""torch's own `dcp.load` reads any checkpoint through the reader, and each rank reads what is its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import sdconvert
from sdconvert.plugs.torch_distributed import SourceReader
from tests.docs_files import ROOT, Net

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def load(source: Path, state: dict[str, object], **options: object) -> None:
    dcp.load(state, storage_reader=SourceReader(source, **options), no_dist=True)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "whole", "legacy"])
def test_a_model_from_any_container(suffix: str, tmp_path: Path) -> None:
    source, path = Net(), tmp_path / f"m.{suffix}"
    if suffix == "whole":
        torch.save(source, path)
    elif suffix == "legacy":
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        sdconvert.save(source, path)
    state = {"model": Net().state_dict()}
    load(path, state, prefix="model.")
    for name, tensor in source.state_dict().items():
        assert torch.equal(state["model"][name], tensor)


def test_what_is_not_contiguous_or_of_another_dtype(tmp_path: Path) -> None:
    base = torch.randn(6, 8, dtype=torch.float64)
    torch.save({"t": base.t(), "slice": base[1:3, 2:5], "scalar": base[0, 0].clone(), "none": base[:0]}, tmp_path / "m")
    state = {
        "t": torch.zeros(8, 6),
        "slice": torch.zeros(3, 2, dtype=torch.float64).t(),
        "scalar": torch.zeros((), dtype=torch.float64),
        "none": torch.zeros(0, 8, dtype=torch.float64),
    }
    load(tmp_path / "m", state)
    assert torch.equal(state["t"], base.t().float())
    assert torch.equal(state["slice"], base[1:3, 2:5])
    assert state["scalar"] == base[0, 0]


@pytest.mark.parametrize("lost", ["missing", "shape"])
def test_what_does_not_fit_is_an_error_of_torch(lost: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4, 4)}, tmp_path / "m.pt")
    state = {"missing": {"v": torch.zeros(4, 4)}, "shape": {"w": torch.zeros(5, 4)}}[lost]
    with pytest.raises((dcp.CheckpointException, ValueError, RuntimeError)):
        load(tmp_path / "m.pt", state)


def test_quantized_tensors_are_refused_with_what_to_do(tmp_path: Path) -> None:
    state = {"w": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (3,), check_invariants=True)}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises((sdconvert.UnsupportedError, dcp.CheckpointException), match="densify"):
        load(tmp_path / "m.pt", {"w": torch.zeros(3)})


def test_every_box_of_a_tensor_in_parts(tmp_path: Path) -> None:
    """The parts of another checkpoint of ranks, and ranges that ZeRO cuts without regard to rows."""
    from sdconvert.dtypes import BY_NAME
    from sdconvert.formats.boxes import Box, assemble
    from sdconvert.plugs.torch_distributed import _read, read_all
    from sdconvert.source import MemorySource
    from sdconvert.tensor import Piece, Storage, TensorRef, contiguous_strides, strided

    whole = torch.arange(5 * 1 * 7).reshape(5, 1, 7)
    boxes, ranges = [], []
    for offsets, size in (((0, 0, 0), (2, 1, 7)), ((2, 0, 0), (3, 1, 4)), ((2, 0, 4), (3, 1, 3))):
        where = tuple(slice(o, o + n) for o, n in zip(offsets, size, strict=True))
        data = whole[where].contiguous().numpy().tobytes()
        dtype = BY_NAME["int64"]
        storage = Storage(MemorySource(data, "part"), 0, len(data), "part")
        boxes.append(Box(offsets, strided(dtype, size, storage, 0, contiguous_strides(size))))
    flat = whole.flatten()
    for begin, end in ((0, 11), (11, 35)):
        data = flat[begin:end].numpy().tobytes()
        storage = Storage(MemorySource(data, "range"), 0, len(data), "range")
        ranges.append(Piece(storage, 0, (1,), (end - begin,), begin, (1,)))
    for tensor in (assemble((5, 1, 7), boxes), TensorRef(dtype, (5, 1, 7), tuple(ranges))):
        for r in range(6):
            for rows in range(6 - r):
                for c in range(8):
                    for columns in range(8 - c):
                        read, parts = _read(tensor, (r, 0, c), (rows, 1, columns), None)
                        read_all(parts, threads=1, progress=lambda nbytes: None)
                        assert torch.equal(read, whole[r : r + rows, :, c : c + columns])


RANK = """
import json, os, sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, Replicate, distribute_tensor, zeros
from sdconvert.source import FileSource
from sdconvert.plugs.torch_distributed import SourceReader
rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
real, read = FileSource.readinto, []
def counted(self, offset, buffer):
    read.append(len(buffer))
    return real(self, offset, buffer)
FileSource.readinto = counted
state = {
    "rows": zeros(1000, 500, device_mesh=mesh, placements=[Shard(0)]),
    "columns": zeros(10, 50_000, device_mesh=mesh, placements=[Shard(1)]),
    "odd": zeros(7, 3, device_mesh=mesh, placements=[Shard(0)]),
    "same": zeros(10, device_mesh=mesh, placements=[Replicate()]),
    "plain": torch.zeros(10),
}
columns = {"columns": state.pop("columns")}
dcp.load(state, storage_reader=SourceReader(f"{place}/m.pt"))
rows = sum(read)
dcp.load(columns, storage_reader=SourceReader(f"{place}/m.pt"))
state |= columns
local = {name: (t.to_local() if hasattr(t, "to_local") else t).tolist() for name, t in state.items()}
json.dump({"rows": rows, "columns": sum(read) - rows, "local": local}, open(f"{place}/{rank}.json", "w"))
os._exit(0)  # gloo's threads may abort the interpreter while it shuts down.
"""


def test_two_ranks_read_half_each(tmp_path: Path) -> None:
    state = {"rows": torch.randn(1000, 500), "columns": torch.randn(10, 50_000), "odd": torch.randn(7, 3)}
    state |= {"same": torch.randn(10), "plain": torch.randn(10)}
    torch.save({"model": state, "optimizer": {"state": {0: torch.randn(1000, 1000)}}}, tmp_path / "m.pt")
    script = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RANK)]
    ranks = [subprocess.Popen([*script, str(n), str(tmp_path)], cwd=ROOT) for n in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    found = [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2)]
    for name, cuts in {"rows": (500, 0), "columns": (25_000, 1), "odd": (4, 0)}.items():
        expected = state[name].split(cuts[0], dim=cuts[1])
        for n in range(2):
            assert torch.equal(torch.tensor(found[n]["local"][name]), expected[n])
    for n in range(2):
        assert torch.equal(torch.tensor(found[n]["local"]["same"]), state["same"])
        assert found[n]["rows"] < 1_000_000 + 100_000  # Of 2 MB, beside 2 MB of columns and 4 MB of an optimizer.
        assert found[n]["columns"] < 2_000_000  # Runs are read with what lies between them where that is little.


def test_a_module_is_filled(tmp_path: Path) -> None:
    """In one process: what `dcp.load` does with a plain module's own state dict."""
    model = nn.Linear(3, 2)
    torch.save(nn.Linear(3, 2), tmp_path / "m.pt")
    state = model.state_dict()
    load(tmp_path / "m.pt", state)
    model.load_state_dict(state)
    assert torch.equal(model.weight, sdconvert.load(tmp_path / "m.pt")["weight"])
