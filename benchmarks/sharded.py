"""A sharded checkpoint beside ``cp -r`` and ``sync``, pair by pair in one run.

    python -m benchmarks.sharded --shards 8 --gigabytes 1 --pairs 5

Makes a half-precision language model in so many ``.bin`` shards of that size, with torch, and its
index. Then, in turn, several times: ``cp -r DIR OUT && sync`` of all its files, and ``sdconvert
to-safetensors DIR OUT/``, which keeps the shards, syncs and verifies them; and, without a pair, the
same into one file and into shards of half the size. All start with the source in the page cache and
nothing dirty. Prints medians, ratios, and the largest resident memory of any run.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.measure import files, made, measured, sdconvert, size, warm


def timed(source: Path, *options: str) -> tuple[float, int]:
    """Seconds and peak memory of a conversion into a directory that is not there afterwards."""
    out = source.with_name("converted")
    out.mkdir()
    taken = measured(sdconvert("to-safetensors", source, f"{out}/", *options))
    shutil.rmtree(out)
    return taken.seconds, taken.peak


def copied(source: Path) -> float:
    """Seconds of ``cp -r`` and a ``sync`` of every file and of the directory."""
    out = source.with_name("copy")
    taken = measured(f"cp -r '{source}' '{out}' && sync '{out}' '{out}'/*")
    shutil.rmtree(out)
    return taken.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of a shard")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        source = Path(directory) / "source"
        made("shards", source, args.gigabytes * 1e9, args.shards)
        print(f"{args.shards} shards, {size(source) / 1e9:.2f} GB", flush=True)
        warm(files(source))
        ours: list[float] = []
        theirs: list[float] = []
        peak = 0
        for number in range(args.pairs):
            if number % 2:  # Who goes first alternates, as in convert.py.
                theirs.append(copied(source))
            seconds, rss = timed(source)
            ours.append(seconds)
            peak = max(peak, rss)
            if not number % 2:
                theirs.append(copied(source))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(
            f"shard for shard   sdconvert {statistics.median(ours):6.2f} s   cp -r and sync "
            f"{statistics.median(theirs):6.2f} s   ratio {ratio:.2f}   peak {peak / 2**20:.1f} MiB",
            flush=True,
        )
        for label, options in (
            ("into one file", ["--max-shard-size", "0"]),
            ("shards of half", ["--max-shard-size", str(int(args.gigabytes * 5e8))]),
        ):
            seconds, rss = timed(source, *options)
            print(f"{label:17} sdconvert {seconds:6.2f} s   peak {rss / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
