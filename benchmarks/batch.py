"""What a batch costs beside the conversions themselves, and what a second worker brings.

    python -m benchmarks.batch --pairs 5
    python -m benchmarks.batch --pairs 5 --directory /data    # with a disk, which all workers share

Three tables. Conversions with ``--dtype bfloat16``, as ``sdconvert batch`` does them by default: cast, verified, with
their SHA-256. They are in memory (``/dev/shm``), where nothing but the processors is in the way, and by turns done by

- one worker of one thread,
- one worker of as many threads as there are processors, which is what one worker does by default,
- two workers, which on two processors have one thread each by default.

A batch begins with the start of Python and torch, about two seconds in each worker, at the same time in all. That is
measured by itself, as a batch of one small file for each worker, and it is a part of every time that is shown.
The processor's time beside it shows what was busy. Then small conversions, by which the cost of a job is seen: the same
files one after the other in one process, and as a batch of one worker. And the memory of a driver of 100,000 jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_DISTINCT = 8  # Files that are really there; the others are links to them.
_SETTINGS = {"1 worker, 1 thread": (1, 1), "1 worker": (1, None), "2 workers": (2, None)}

_ONE_BY_ONE = """
import sys, time, pathlib, sdconvert
from sdconvert.batch import Job, run
source, out = map(pathlib.Path, sys.argv[1:])
jobs = [Job(str(path), str(out / path.name) + ".safetensors") for path in source.iterdir()]
run(Job(jobs[0].source, jobs[0].output + "-first"))
began = time.perf_counter()
for job in jobs:
    assert run(job).status == "done"
print(time.perf_counter() - began)
"""

_BATCH = """
import sys, time, pathlib
from sdconvert.batch import Job, convert_many
def main():
    source, out = map(pathlib.Path, sys.argv[1:])
    jobs = [Job(str(path), str(out / path.name) + ".safetensors") for path in source.iterdir()]
    ended = []
    note = lambda job, outcome: ended.append(time.perf_counter())
    summary = convert_many(jobs, workers=1, manifest=out / "manifest", progress=note)
    assert summary.done == len(jobs)
    # From the first job's end on: starting a process is paid once.
    print((ended[-1] - ended[0]) / (len(ended) - 1) * len(ended))
if __name__ == "__main__":
    main()
"""

_DRIVER = """
import resource
from concurrent.futures import Executor, Future
from sdconvert.batch import Job, Outcome, convert_many
class AtOnce(Executor):
    def submit(self, fn, job, part):
        future = Future()
        future.set_result(Outcome("done"))
        return future
jobs = (Job(f"s3://bucket/runs/{n}/model.pt", f"s3://bucket/out/{n}/model.safetensors") for n in range(100_000))
print(convert_many(jobs, executor=AtOnce(), workers=64).done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make(directory: Path, count: int, numel: int) -> None:
    """`count` checkpoints of one tensor each, by a process of its own; from some number on, links to the first ones."""
    real = min(count, _DISTINCT)
    code = f"import torch\nfor n in range({real}): torch.save({{'w': torch.randn({numel})}}, r'{directory}/%d.pt' % n)"
    directory.mkdir()
    subprocess.run([sys.executable, "-c", code], check=True)
    for number in range(real, count):
        os.link(directory / f"{number % real}.pt", directory / f"{number}.pt")


class Took(NamedTuple):
    """Seconds of the clock, and of processors, driver and workers together."""

    wall: float
    busy: float


def batch(source: Path, out: Path, workers: int, threads: int | None) -> Took:
    """What a whole ``sdconvert batch --dtype bfloat16`` took."""
    os.sync()
    options = ["--json", "--dtype", "bfloat16", "--workers", str(workers)]
    if threads is not None:
        options += ["--threads", str(threads)]
    before, began = _processor_seconds(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sdconvert", "batch", str(source), "--output-dir", str(out), *options],
        check=True,
        capture_output=True,
        text=True,
    )
    took = Took(time.perf_counter() - began, _processor_seconds() - before)
    assert json.loads(done.stdout)["done"] == len(list(source.iterdir()))
    shutil.rmtree(out)
    return took


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def casts(root: Path, files: int, megabytes: float, pairs: int) -> None:
    """The first table: a batch of casts by one worker and by two."""
    make(root / "large", files, int(megabytes * 1e6 / 4))
    make(root / "two", 2, 1000)
    starts = [batch(root / "two", root / "out", 2, None) for _ in range(pairs)]
    rounds = []
    for number in range(pairs):
        order = list(_SETTINGS.items())[:: -1 if number % 2 else 1]
        rounds.append({name: batch(root / "large", root / "out", *setting) for name, setting in order})
    print(f"casting {files} files of {megabytes:g} MB in {root.parent}, medians of {pairs}:")
    for name in _SETTINGS:
        wall = statistics.median(one[name].wall for one in rounds)
        busy = statistics.median(one[name].busy for one in rounds)
        speed = files * megabytes / wall / 1e3
        print(f"  {name:<20} {wall:6.2f} s, {speed:.2f} GB/s, {busy:6.2f} s of processors")
    print(f"  {'starting 2 workers':<20} {statistics.median(one.wall for one in starts):6.2f} s of each of these")
    for name in list(_SETTINGS)[:2]:
        ratios = sorted(one[name].wall / one["2 workers"].wall for one in rounds)
        middle = statistics.median(ratios)
        print(f"  2 workers are {middle:.2f} times as fast as {name} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--files", type=int, default=256, help="files to cast")
    parser.add_argument("--megabytes", type=float, default=32, help="of each")
    parser.add_argument("--small", type=int, default=1000, help="small files")
    parser.add_argument("--directory", help="where all files are (default: /dev/shm, memory, where there is one)")
    args = parser.parse_args()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=args.directory or memory) as directory:
        casts(Path(directory), args.files, args.megabytes, args.pairs)
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        root = Path(directory)
        make(root / "small", args.small, 1000)
        costs = []
        for number in range(args.pairs):
            took: list[float] = []
            for code in (_ONE_BY_ONE, _BATCH):
                out = root / f"small-{number}-{len(took)}"
                out.mkdir()
                script = root / "script.py"
                script.write_text(code)
                done = subprocess.run(
                    [sys.executable, str(script), str(root / "small"), str(out)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                took.append(float(done.stdout) / args.small * 1e3)
            costs.append(took)
        alone, batched = (statistics.median(column) for column in zip(*costs, strict=True))
        extra = statistics.median(b - a for a, b in costs)
        print(
            f"{args.small} small files: {alone:.2f} ms each by themselves, {batched:.2f} ms in a batch of one worker,"
        )
        print(f"  {extra:.2f} ms for handing out, manifest and the way back")
        count, rss = subprocess.run(
            [sys.executable, "-c", _DRIVER], check=True, capture_output=True, text=True
        ).stdout.split()
        print(f"a driver of {int(count):,} jobs: peak {int(rss) / 1024:.1f} MiB, with the interpreter")


if __name__ == "__main__":
    main()
