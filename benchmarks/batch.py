"""What a batch costs beside the conversions themselves, and what a second worker brings.

    python benchmarks/batch.py --pairs 5

Three tables. Conversions with ``--dtype bfloat16``, which keep a processor busy, by one and by two
workers in turn. Small conversions, by which the cost of a job is seen: the same files one after the
other in one process, and as a batch of one worker. And the memory of a driver of 100,000 jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    """`count` checkpoints of one tensor each, by a process of its own."""
    code = f"import torch\nfor n in range({count}): torch.save({{'w': torch.randn({numel})}}, r'{directory}/%d.pt' % n)"
    directory.mkdir()
    subprocess.run([sys.executable, "-c", code], check=True)


def batch(source: Path, out: Path, workers: int) -> float:
    """Seconds of a whole ``sdconvert batch --dtype bfloat16``."""
    os.sync()
    began = time.perf_counter()
    options = ["--json", "--no-digest", "--dtype", "bfloat16", "--workers", str(workers)]
    done = subprocess.run(
        [sys.executable, "-m", "sdconvert", "batch", str(source), "--output-dir", str(out), *options],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    assert json.loads(done.stdout)["failed"] == 0
    for path in out.iterdir():
        path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--files", type=int, default=64, help="files to cast")
    parser.add_argument("--megabytes", type=float, default=64, help="of each")
    parser.add_argument("--small", type=int, default=1000, help="small files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make(root / "large", args.files, int(args.megabytes * 1e6 / 4))
        make(root / "small", args.small, 1000)
        ratios, times = [], []
        for number in range(args.pairs):
            seconds = {
                workers: batch(root / "large", root / "out", workers) for workers in ((1, 2), (2, 1))[number % 2]
            }
            times.append(seconds)
            ratios.append(seconds[1] / seconds[2])
        one, two = (statistics.median(seconds[workers] for seconds in times) for workers in (1, 2))
        print(f"casting {args.files} files of {args.megabytes:g} MB: 1 worker {one:.2f} s, 2 workers {two:.2f} s, ")
        print(f"  {statistics.median(ratios):.2f} times as fast")
        costs = []
        for number in range(args.pairs):
            took = []
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
