"""sdconvert on checkpoints of several ranks, beside ``cp -r`` and ``sync`` and the official tools, in one run.

    python benchmarks/distributed.py --gigabytes 3 --pairs 3
    python benchmarks/distributed.py --gigabytes 3 --deepspeed-python PYTHON --accelerate-python PYTHON

Makes, with four gloo ranks, a torch.distributed checkpoint of a half-precision language model, sharded
by rows (as FSDP does), and one sharded by rows and columns (as FSDP with tensor parallelism does);
and a DeepSpeed ZeRO-3 checkpoint of four ranks, by the builder of the tests. Then, in turn,
several times: ``cp -r DIRECTORY OUT && sync OUT/*`` and ``sdconvert to-safetensors DIRECTORY OUT``, which syncs
and verifies its output. Then once each: ``dcp_to_torch_save``, with an interpreter that has accelerate
``accelerate merge-weights``, which merges what FSDP saved, and with one that has deepspeed ``zero_to_fp32.py``.
Prints medians, ratios and the largest resident memory. sdconvert's modules are compiled beforehand, as
an installation does.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from convert import measured

RANKS = 4
ROOT = Path(__file__).parents[1]
ZERO = """
import sys
from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict
convert_zero_checkpoint_to_fp32_state_dict(*sys.argv[1:])
"""


def shapes(nbytes: float, itemsize: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a language model of 32 layers and about `nbytes` bytes."""
    layers, vocabulary = 32, 32_000
    width = max(64, int(2048 * (nbytes / 3e9) ** 0.5) // 64 * 64)
    inner = max(
        64, int((nbytes - 2 * vocabulary * width * itemsize) / layers / itemsize - 4 * width * width) // (3 * width)
    )
    found: dict[str, tuple[int, ...]] = {"embed.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    for layer in range(layers):
        for part in "qkvo":
            found[f"layers.{layer}.attn.{part}.weight"] = (width, width)
        found[f"layers.{layer}.mlp.gate.weight"] = found[f"layers.{layer}.mlp.up.weight"] = (inner, width)
        found[f"layers.{layer}.mlp.down.weight"] = (width, inner)
        found[f"layers.{layer}.norm1.weight"] = found[f"layers.{layer}.norm2.weight"] = (width,)
    return found


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


def make(what: str, folder: str, gigabytes: str) -> None:
    """Save a checkpoint. In a process of its own: a child's peak memory begins with its parent's."""
    import torch

    nbytes = float(gigabytes) * 1e9
    if what == "zero":
        sys.path.insert(0, str(ROOT))
        from tests.formats.deepspeed_files import Model, write

        weights = {name: torch.randn(shape) for name, shape in shapes(nbytes, 4).items()}
        write(Path(folder), Model([weights]), stage=3, ranks=RANKS)
    else:
        torch.multiprocessing.spawn(rank_saves, (folder, nbytes, what == "columns"), nprocs=RANKS)
        Path(f"{folder}.meeting").unlink(missing_ok=True)


def pairs(label: str, source: Path, count: int) -> None:
    """Print one row: medians over `count` pairs, run in turn."""
    out = source.with_name("out")
    ours: list[float] = []
    theirs: list[float] = []
    peak = 0

    def copy() -> None:
        theirs.append(measured(f"cp -r '{source}' '{out}' && find '{out}' -type f -exec sync {{}} +")[0])
        shutil.rmtree(out)

    def convert() -> None:
        nonlocal peak
        seconds, rss = measured([*sdconvert, "to-safetensors", "-q", str(source), f"{out}.safetensors"])
        ours.append(seconds)
        peak = max(peak, rss)
        Path(f"{out}.safetensors").unlink()

    # For this alone: the official tools have their own compiled files.
    environment = ["env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={source.with_name('compiled')}"]
    sdconvert = [*environment, sys.executable, "-m", "sdconvert"]
    measured([*sdconvert, "--version"])
    measured(f"find '{source}' -type f -exec cat {{}} + > /dev/null")
    for number in range(count):
        for run in (copy, convert) if number % 2 else (convert, copy):
            run()
    nbytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{label:28} {nbytes / 1e6:9,.1f} MB   sdconvert {statistics.median(ours):6.2f} s   "
        f"cp -r + sync {statistics.median(theirs):6.2f} s   ratio {ratio:.2f}   peak {peak / 2**20:.1f} MiB",
        flush=True,
    )


def official(label: str, command: list[str], out: Path) -> None:
    """Print time and memory of another tool that does the same, synced as ours is."""
    seconds, rss = measured(command)
    synced, _ = measured(f"find '{out}' -type f -exec sync {{}} +")
    print(f"{label:28} {'':12}   {'':9} {seconds + synced:6.2f} s   {'':39}   peak {rss / 2**20:.1f} MiB", flush=True)
    shutil.rmtree(out) if out.is_dir() else out.unlink()


def main() -> None:
    if sys.argv[1:2] == ["--make"]:
        make(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", default="3", help="size of each checkpoint")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=["rows", "columns", "zero"], help="one of the three")
    parser.add_argument("--accelerate-python", help="an interpreter with accelerate, for its merge-weights")
    parser.add_argument("--deepspeed-python", help="an interpreter with deepspeed, for its zero_to_fp32.py")
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    args = parser.parse_args()
    labels = {"rows": "DCP, 4 ranks, rows", "columns": "DCP, 2 x 2 ranks, columns", "zero": "DeepSpeed ZeRO-3, 4 ranks"}
    for what, label in labels.items():
        if args.only not in (None, what):
            continue
        with tempfile.TemporaryDirectory(dir=args.dir) as directory:
            source, out = Path(directory) / "ckpt", Path(directory) / "official"
            subprocess.run([sys.executable, __file__, "--make", what, str(source), args.gigabytes], check=True)
            pairs(label, source, args.pairs)
            if what != "zero":
                command = [sys.executable, "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
                official("  dcp_to_torch_save", [*command, str(source), str(out)], out)
                if args.accelerate_python:
                    command = [args.accelerate_python, "-m", "accelerate.commands.merge"]
                    official("  accelerate merge-weights", [*command, str(source), str(out)], out)
            elif args.deepspeed_python:
                official("  zero_to_fp32.py", [args.deepspeed_python, "-c", ZERO, str(source), str(out)], out)


if __name__ == "__main__":
    main()
