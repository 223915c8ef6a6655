"""sdconvert beside what one would do without it, turn by turn in one run.

    python -m benchmarks.convert --gigabytes 3 --pairs 5

Makes a half-precision language model of 291 names and 290 tensors (input and output embedding
tied) of the size asked for, one of 1 MB, and one of 100,000 small tensors, with torch. Then, in
turn, several times, each in a process of its own:

- ``sdconvert to-safetensors`` and ``to-pt``, which sync and verify their output, and ``cp FILE OUT && sync OUT``;
- ``sdconvert verify`` of the model and its copy as .pt, and torch loading both (as it does by default, and
  with ``mmap=True``) and comparing them with ``torch.equal``; then again with one bit flipped somewhere.

All start with their sources in the page cache and nothing dirty. Prints medians, the ratios of
sdconvert's time to the others', and the largest resident memory of any run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Command, environment, made, measured, remove, sdconvert, warm

# What one would write without sdconvert. torch.equal takes NaNs for different; there are none here.
_TORCH = """
import sys, torch
one, other = (torch.load(path, weights_only=True, mmap={mmap}) for path in sys.argv[1:])
assert one.keys() == other.keys()
assert all(one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one)
"""


def contest(label: str, sources: list[Path], runs: dict[str, Command], count: int, out: Path | None = None) -> None:
    """Print one row: the medians of `runs` in turn, `count` times; the first is sdconvert's.

    `out` is what each of them writes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks = dict.fromkeys(runs, 0)
    warm(sources)
    for number in range(count):
        # Who goes first alternates: on virtual machines, memory that was just given back costs the next to take it.
        for name in list(runs)[:: 1 if number % 2 else -1]:
            taken = measured(runs[name])
            seconds[name].append(taken.seconds)
            peaks[name] = max(peaks[name], taken.peak)
            if out is not None:
                remove(out)
    ours = next(iter(runs))
    parts = [f"{label:24} {sum(source.stat().st_size for source in sources) / 1e6:10,.1f} MB"]
    for name, times in seconds.items():
        parts.append(f"{name} {statistics.median(times):.2f} s, {peaks[name] / 2**20:.0f} MiB")
        if name != ours:
            ratio = statistics.median(a / b for a, b in zip(seconds[ours], times, strict=True))
            parts[-1] += f", ratio {ratio:.2f}"
    print("   ".join(parts), flush=True)


def conversions(label: str, source: Path, count: int, *, copies: bool) -> None:
    for command in ("to-safetensors", "to-pt"):
        out = source.with_name("out.safetensors" if command == "to-safetensors" else "out.pt")
        runs: dict[str, Command] = {command: sdconvert(command, source, out)}
        if copies:
            runs["cp+sync"] = f"cp '{source}' '{out}' && sync '{out}'"
        contest(label, [source], runs, count, out)


def comparisons(label: str, source: Path, count: int) -> None:
    copy = source.with_name("copy.pt")
    measured(sdconvert("to-pt", source, copy))
    runs: dict[str, Command] = {"verify": sdconvert("verify", source, copy)}
    for name, mmap in (("torch", False), ("torch with mmap", True)):
        runs[name] = [sys.executable, "-c", _TORCH.format(mmap=mmap), str(source), str(copy)]
    contest(label, [source, copy], runs, count)
    # In some tensor: they are nearly all of it.
    at = random.randrange(copy.stat().st_size // 4, copy.stat().st_size // 2)
    with copy.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))
    command = [sys.executable, "-m", "sdconvert", "verify", str(source), str(copy)]
    done = subprocess.run(command, capture_output=True, env=environment())
    said = (done.stdout + done.stderr).decode().splitlines()[-1]
    print(f"{'':24} one bit flipped at byte {at:,}: exit code {done.returncode}: {said}")
    copy.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[3.0], help="sizes of the large checkpoints")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        source = Path(directory) / "model.pt"
        made("small", source)
        conversions("1 MB", source, args.pairs, copies=False)
        made("many", source, 100_000)
        conversions("100,000 small tensors", source, args.pairs, copies=False)
        for size in args.gigabytes:
            made("language", source, size * 1e9, 1)
            label = f"{size:g} GB, 290 tensors, tied"
            conversions(label, source, args.pairs, copies=True)
            comparisons(label, source, args.pairs)


if __name__ == "__main__":
    main()
