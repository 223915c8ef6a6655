"""torch's own distributed checkpoints, of four ranks on one machine, and what torch's own reader makes of them.

    python -m tests.formats.dcp_writers FOLDER

Each subfolder is one checkpoint; ``<name>.truth.pt`` beside it is the state dict that
``dcp_to_torch_save`` or ``torch.distributed.checkpoint.load`` gives.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

RANKS = 4


class Net(nn.Module):
    """Rows that four ranks cannot share evenly, fewer rows than ranks, half precision, a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 7), nn.Linear(7, 3))
        self.low = nn.Linear(5, 9, dtype=torch.bfloat16)
        self.norm = nn.LayerNorm(8)
        self.register_buffer("count", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.norm(x)).sum() + self.low(x[:, :5].bfloat16()).float().sum()


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 8)).backward()
    optimizer.step()
    return optimizer


def fsdp2(folder: Path, rank: int) -> None:
    """`fully_shard`, with the optimizer and other things beside the model, as torch's tutorial saves it."""
    model = Net()
    fully_shard(model.low, mesh=init_device_mesh("cpu", (RANKS,)))  # Apart: the parameters of a group have one dtype.
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    weights, state = get_state_dict(model, trained(model))
    dcp.save({"model": weights, "optim": state, "epoch": 7, "history": [{"loss": 0.5}]}, checkpoint_id=folder)


def hybrid(folder: Path, rank: int) -> None:
    """Replicated over one dimension of the mesh, sharded over the other."""
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder)


def mesh(folder: Path, rank: int) -> None:
    """Every kind of placement on a mesh of two dimensions, names without nesting."""
    across = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(1)
    placements = {
        "rows.columns": (torch.randn(5, 7), [Shard(0), Shard(1)]),
        "columns.rows": (torch.randn(5, 7), [Shard(1), Shard(0)]),
        "rows.rows": (torch.randn(11, 3), [Shard(0), Shard(0)]),
        "copies.columns": (torch.randn(3, 200).bfloat16(), [Replicate(), Shard(1)]),
        "rows.middle": (torch.randint(0, 99, (3, 5, 4)), [Shard(0), Shard(1)]),
        "last.rows": (torch.randn(2, 3, 6, dtype=torch.complex64), [Shard(2), Shard(0)]),
        "one.row": (torch.randn(1, 6).half(), [Shard(0), Shard(1)]),
        "copies.copies": (torch.tensor(2.5, dtype=torch.float64), [Replicate(), Replicate()]),
        "nothing.rows": (torch.empty(0, 4), [Shard(0), Replicate()]),
        "flags.rows": (torch.rand(9) > 0.5, [Shard(0), Shard(0)]),
        "large.columns": (torch.randn(300, 1030), [Shard(1), Shard(0)]),
    }
    state: dict[str, Any] = {name: distribute_tensor(whole, across, how) for name, (whole, how) in placements.items()}
    state["plain.w"] = torch.arange(6.0).reshape(2, 3).t()
    dcp.save(state, checkpoint_id=folder)


def fsdp1(folder: Path, rank: int) -> None:
    """The older wrapper, whose state dict holds ShardedTensors."""
    model = FullyShardedDataParallel(Net().float(), device_id=torch.device("cpu"), use_orig_params=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        dcp.save({"state_dict": model.state_dict(), "optimizer_0": {}}, checkpoint_id=folder)


def many_files(folder: Path, rank: int) -> None:
    """One file for each item instead of one for each rank."""
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    writer = FileSystemWriter(folder, single_file_per_rank=False, thread_count=2)
    dcp.save({"model": model.state_dict()}, storage_writer=writer)


def in_safetensors(folder: Path, rank: int) -> None:
    """``.distcp`` files that are safetensors files."""
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    writer = FileSystemWriter(folder, serialization_format=SerializationFormat.SAFETENSORS)
    dcp.save({"model": model.state_dict()}, storage_writer=writer)


def huggingface(folder: Path, rank: int) -> None:
    """Safetensors shards without a ``.metadata``."""
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    dcp.save(model.state_dict(), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


WRITERS = (fsdp2, hybrid, mesh, fsdp1, many_files, in_safetensors, huggingface)


def work(rank: int, folder: str) -> None:
    """What one rank does."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    for write in WRITERS:
        torch.manual_seed(0)
        write(Path(folder) / write.__name__, rank)
        dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Write all checkpoints, then their truths."""
    warnings.simplefilter("ignore")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    (folder / "meeting").unlink(missing_ok=True)
    for write in WRITERS:
        name = write.__name__
        if write in (in_safetensors, huggingface):
            # torch's FileSystemReader cannot read what its writer writes here; the weights are those of `many_files`.
            torch.manual_seed(0)
            truth: Any = dict(Net().state_dict())
            if write is huggingface:
                truth = {key: torch.zeros_like(tensor) for key, tensor in truth.items()}
                dcp.load(truth, storage_reader=HuggingFaceStorageReader(str(folder / name)), no_dist=True)
            torch.save(truth if write is huggingface else {"model": truth}, folder / f"{name}.truth.pt")
        else:
            dcp_to_torch_save(folder / name, folder / f"{name}.truth.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
