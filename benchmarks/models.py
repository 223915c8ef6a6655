"""Checkpoints to measure with, made by torch: ``python -m benchmarks.models WHAT PATH [NUMBERS]``.

    small                    1 MB in 25 tensors
    many COUNT               so many tensors of 64 bytes
    language BYTES [TIED]    a half-precision language model; TIED: its first and last name are one tensor
    shards BYTES COUNT       a directory of so many shards of that size, and their index
    rows BYTES               a torch.distributed checkpoint of four ranks, sharded by rows, as FSDP does
    columns BYTES            the same by rows and columns, as FSDP with tensor parallelism does
    zero BYTES               a DeepSpeed ZeRO-3 checkpoint of four ranks, by the builder of the tests

A process for each: a child's peak memory begins with its parent's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RANKS = 4
LAYERS, VOCABULARY = 32, 32_000


def shapes(nbytes: float, itemsize: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a language model of 32 layers and about `nbytes` bytes: 291 tensors."""
    width = max(64, int(2048 * (nbytes / 3e9) ** 0.5) // 64 * 64)
    rest = int((nbytes - 2 * VOCABULARY * width * itemsize) / LAYERS / itemsize - 4 * width * width)
    inner = max(64, rest // (3 * width))
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    layer |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for number in range(LAYERS):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (VOCABULARY, width)}


def language_model(nbytes: float, *, tied: bool = False) -> dict[str, torch.Tensor]:
    """A state dict of about `nbytes` bytes of float16.

    Its values are parts of one block of random numbers, from a place of each tensor's own: of 12 GB they are
    made in seconds, no two tensors are equal, and nobody here compresses.
    """
    import torch

    numbers = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    twice = torch.cat((numbers, numbers))
    state = {}
    for number, (name, shape) in enumerate(shapes(nbytes, 2).items()):
        flat = torch.empty(shape, dtype=torch.float16).view(-1)
        for at in range(0, flat.numel(), numbers.numel()):
            piece = flat[at : at + numbers.numel()]
            piece.copy_(twice[number * 977 :][: piece.numel()])
        state[name] = flat.view(shape)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def shards(folder: Path, nbytes: float, count: int) -> None:
    """Shards and their index; one is in memory at a time."""
    import torch

    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(1, count + 1):
        file = f"pytorch_model-{number:05d}-of-{count:05d}.bin"
        state = {f"part{number}.{name}": tensor for name, tensor in language_model(nbytes).items()}
        torch.save(state, folder / file)
        weight_map |= dict.fromkeys(state, file)
    index = {"metadata": {"total_size": int(nbytes * count)}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def rank_saves(rank: int, folder: str, nbytes: float, columns: bool) -> None:
    """One of the ranks: its random parts of every tensor, saved together."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}.meeting", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (2, 2) if columns else (RANKS,))
    state: dict[str, Any] = {}
    for name, shape in shapes(nbytes, 2).items():
        how = [Shard(0)] if not columns else [Shard(0), Shard(len(shape) - 1)]
        local, _ = compute_local_shape_and_global_offset(shape, mesh, how)
        part = torch.randn(local, dtype=torch.float16)
        stride = (shape[1], 1) if len(shape) == 2 else (1,)
        state[name] = DTensor.from_local(part, mesh, how, run_check=False, shape=torch.Size(shape), stride=stride)
    dcp.save({"model": state}, checkpoint_id=folder)
    dist.destroy_process_group()


def main(what: str, target: str, *numbers: str) -> None:
    import torch

    path, (nbytes, count) = Path(target), (*map(float, numbers), 0.0, 0.0)[:2]
    if what == "small":
        torch.save({f"layers.{i}.weight": torch.randn(100, 100) for i in range(25)}, path)
    elif what == "many":
        torch.save({f"layers.{i // 10}.weight{i}": torch.randn(4, 4) for i in range(int(nbytes))}, path)
    elif what == "language":
        torch.save(language_model(nbytes, tied=bool(count)), path)
    elif what == "shards":
        shards(path, nbytes, int(count))
    elif what == "zero":
        from tests.formats.deepspeed_files import Model, write

        weights = {name: torch.randn(shape) for name, shape in shapes(nbytes, 4).items()}
        write(path, Model([weights]), stage=3, ranks=RANKS)
    elif what in ("rows", "columns"):
        torch.multiprocessing.spawn(rank_saves, (target, nbytes, what == "columns"), nprocs=RANKS)
        Path(f"{target}.meeting").unlink(missing_ok=True)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
