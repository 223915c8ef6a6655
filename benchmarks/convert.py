"""sdconvert beside ``cp`` and ``sync``, pair by pair in one run.

    python benchmarks/convert.py --gigabytes 3 --pairs 5

Makes a half-precision language model of 291 names and 290 tensors (input and output embedding
tied) of the size asked for, one of 1 MB, and one of 100,000 small tensors, with torch. Then, in
turn, several times: ``cp FILE OUT && sync OUT``, and ``sdconvert to-safetensors FILE OUT``, which
syncs and verifies its output. Both start with the source in the page cache and nothing dirty.
Prints medians, ratios, and the largest resident memory of any run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def make(what: str, path: str) -> None:
    """Save a checkpoint. In a process of its own: a child's peak memory begins with its parent's."""
    import torch

    if what == "small":
        state = {f"layers.{i}.weight": torch.randn(100, 100) for i in range(25)}
    elif what == "many":
        state = {f"layers.{i // 10}.weight{i}": torch.randn(4, 4) for i in range(100_000)}
    else:
        state = language_model(float(what) * 1e9)
    torch.save(state, path)


def language_model(nbytes: float) -> dict[str, torch.Tensor]:
    """A state dict of 32 layers and about `nbytes` bytes; the first and last name are one tensor."""
    import torch

    layers, vocabulary = 32, 32_000
    width = max(64, int(2048 * (nbytes / 3e9) ** 0.5) // 64 * 64)
    inner = max(64, int((nbytes - vocabulary * width * 2) / layers / 2 - 4 * width * width) // (3 * width))
    shapes = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    shapes |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    model = {"model.embed_tokens.weight": torch.randn(vocabulary, width, dtype=torch.float16)}
    for layer in range(layers):
        for name, shape in shapes.items():
            model[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape, dtype=torch.float16)
    model["model.norm.weight"] = torch.ones(width, dtype=torch.float16)
    model["lm_head.weight"] = model["model.embed_tokens.weight"]
    return model


def measured(command: list[str] | str) -> tuple[float, int]:
    """Seconds of wall time and bytes of peak resident memory of one command."""
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, shell=isinstance(command, str), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{command} failed")
    return seconds, usage.ru_maxrss * 1024


def pairs(label: str, source: Path, count: int, copies: bool) -> None:
    """Print one row: medians over `count` pairs, run in turn."""
    out = source.with_name("out")
    ours: list[float] = []
    theirs: list[float] = []
    peak = 0

    def copy() -> None:
        theirs.append(measured(f"cp '{source}' '{out}' && sync '{out}'")[0])
        out.unlink()

    def convert() -> None:
        nonlocal peak
        command = [sys.executable, "-m", "sdconvert", "to-safetensors", "-q", str(source), f"{out}.safetensors"]
        seconds, rss = measured(command)
        ours.append(seconds)
        peak = max(peak, rss)
        Path(f"{out}.safetensors").unlink()

    measured(f"cat '{source}' > /dev/null")
    for number in range(count):
        # Who goes first alternates: on virtual machines, memory that was just given back costs the next to take it.
        for run in (copy, convert) if number % 2 else (convert, copy):
            if copies or run is convert:
                run()
    row = f"{label:24} {source.stat().st_size / 1e6:10,.1f} MB   sdconvert {statistics.median(ours):6.2f} s"
    if copies:
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        row += f"   cp+sync {statistics.median(theirs):6.2f} s   ratio {ratio:.2f}"
    print(f"{row}   peak {peak / 2**20:.1f} MiB", flush=True)


def saved(what: str, path: Path) -> None:
    """`make`, elsewhere."""
    subprocess.run([sys.executable, __file__, "--make", what, str(path)], check=True)


def main() -> None:
    if sys.argv[1:2] == ["--make"]:
        make(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[3.0], help="sizes of the large checkpoints")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        source = Path(directory) / "model.pt"
        saved("small", source)
        pairs("1 MB", source, args.pairs, copies=False)
        saved("many", source)
        pairs("100,000 small tensors", source, args.pairs, copies=False)
        for size in args.gigabytes:
            saved(str(size), source)
            pairs(f"{size:g} GB, 290 tensors, tied", source, args.pairs, copies=True)


if __name__ == "__main__":
    main()
