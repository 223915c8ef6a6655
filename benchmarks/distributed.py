"""sdconvert on checkpoints of several ranks, beside ``cp -r`` and ``sync`` and the official tools, in one run.

    python -m benchmarks.distributed --gigabytes 3 --pairs 3
    python -m benchmarks.distributed --gigabytes 3 --deepspeed-python PYTHON --accelerate-python PYTHON

Makes, with four gloo ranks, a torch.distributed checkpoint of a half-precision language model, sharded
by rows (as FSDP does), and one sharded by rows and columns (as FSDP with tensor parallelism does);
and a DeepSpeed ZeRO-3 checkpoint of four ranks, by the builder of the tests. Then, in turn,
several times: ``cp -r DIRECTORY OUT`` and a sync of its files, and ``sdconvert to-safetensors DIRECTORY OUT``,
which syncs and verifies its output. Then once each: ``dcp_to_torch_save``; with an interpreter that has
accelerate, ``accelerate merge-weights``, which merges what FSDP saved; with one that has deepspeed,
``zero_to_fp32.py``. Prints medians, ratios and the largest resident memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import files, made, measured, remove, sdconvert, size, synced, warm

ZERO = """
import sys
from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict
convert_zero_checkpoint_to_fp32_state_dict(*sys.argv[1:])
"""


def pairs(label: str, source: Path, count: int) -> None:
    """Print one row: medians over `count` pairs, run in turn."""
    out = source.with_name("out")
    ours: list[float] = []
    theirs: list[float] = []
    peak = 0

    def copy() -> None:
        theirs.append(measured(["cp", "-r", str(source), str(out)]).seconds + synced(out))
        remove(out)

    def convert() -> None:
        nonlocal peak
        taken = measured(sdconvert("to-safetensors", source, f"{out}.safetensors"))
        ours.append(taken.seconds)
        peak = max(peak, taken.peak)
        Path(f"{out}.safetensors").unlink()

    warm(files(source))
    for number in range(count):
        for run in (copy, convert) if number % 2 else (convert, copy):
            run()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{label:28} {size(source) / 1e6:9,.1f} MB   sdconvert {statistics.median(ours):6.2f} s   "
        f"cp -r + sync {statistics.median(theirs):6.2f} s   ratio {ratio:.2f}   peak {peak / 2**20:.1f} MiB",
        flush=True,
    )


def official(label: str, command: list[str], out: Path) -> None:
    """Print time and memory of another tool that does the same, synced as ours is."""
    taken = measured(command)
    seconds = taken.seconds + synced(out)
    print(f"{label:28} {'':12}   {'':9} {seconds:6.2f} s   {'':39}   peak {taken.peak / 2**20:.1f} MiB", flush=True)
    remove(out)


def main() -> None:
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
            made(what, source, float(args.gigabytes) * 1e9)
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
