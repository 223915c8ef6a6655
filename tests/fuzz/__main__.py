"""The long run: ``python -m tests.fuzz TARGET... [--runs N] [--seconds S] [--engine atheris|bytes|structure]``.

TARGET ``all`` is every one, one after the other, and the line of each says what it took. ``bytes`` changes bytes
blindly, ``structure`` what they are, the same inputs everywhere for a ``--seed``; an input that fails is in the
exception, as hex. With atheris (``pip install atheris``) both are guided by coverage; an input that crashes, computes
for over 5 seconds or takes over 512 MB is written to ``crash-*``, ``timeout-*`` or ``oom-*`` in the current directory,
and the exit code is not 0. The seeds are built anew into a temporary directory.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .holding import timed

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="+")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "bytes", "structure"), default="atheris")
    args = parser.parse_args()
    if args.target == ["all"] or len(args.target) > 1:
        return _each(args)
    (target,) = args.target
    if args.engine != "atheris":
        print(_in_python(target, args), flush=True)
        return 0
    _guided(target, args)
    return 0


def _guided(target: str, args: argparse.Namespace) -> None:
    """By atheris, until it exits: half of the changes are libFuzzer's own, half those of `structure`."""
    import atheris

    # Nothing of sdconvert may be imported before it is instrumented.
    with atheris.instrument_imports(include=["sdconvert"]):
        from .structure import Mutator
        from .targets import TARGETS
    with tempfile.TemporaryDirectory() as folder:
        _write_seeds(target, folder)
        seeds = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
        largest = max(map(len, seeds))
        limits = [
            f"-runs={args.runs}",
            "-timeout=120",  # By the clock, for what Python cannot interrupt; `timed` counts what it computes.
            "-rss_limit_mb=512",
            f"-max_len={max(8192, 2 * largest)}",
            f"-seed={args.seed}",
            "-print_final_stats=1",
        ]
        if args.seconds:
            limits.append(f"-max_total_time={args.seconds}")
        mutator, run = Mutator(seeds, seeds, random.Random(args.seed)), timed(TARGETS[target])

        def changed(data: bytes, largest: int, seed: int) -> bytes:
            mutator.chance.seed(seed)
            if seed % 2 or len(other := mutator.changed(data)) > largest:
                return bytes(atheris.Mutate(data, largest))
            return other

        def once(data: bytes) -> None:
            run(data)

        atheris.Setup([sys.argv[0], *limits, folder], once, custom_mutator=changed)
        atheris.Fuzz()


def _in_python(target: str, args: argparse.Namespace) -> str:
    """What the run did, as a line."""
    from . import mutate
    from .structure import Mutator
    from .targets import TARGETS

    with tempfile.TemporaryDirectory() as folder:
        _write_seeds(target, folder)
        seeds = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    chance, run = random.Random(args.seed), TARGETS[target]
    draw = Mutator(seeds, [*filter(run, seeds)], chance).next
    if args.engine == "bytes":
        draw = functools.partial(mutate.mutated, seeds, chance)
    began = time.monotonic()
    done = mutate.fuzz(run, draw, runs=args.runs, seconds=args.seconds or 1e9)
    memory, share = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, done.converted / max(done.inputs, 1)
    took = f"{time.monotonic() - began:.0f} s, {memory} MB"
    return f"{target}: {done.inputs} inputs, {share:.1%} gave weights, in {took}, no crash"


def _write_seeds(target: str, folder: str) -> None:
    """In a process of its own: what building takes would count as memory of the target."""
    subprocess.run([sys.executable, "-m", "tests.fuzz.corpus", target, folder], cwd=ROOT, check=True)


def _each(args: argparse.Namespace) -> int:
    """Every target in a process of its own; 1 if any of them found something."""
    from .targets import TARGETS

    worst = 0
    for target in TARGETS if args.target == ["all"] else args.target:
        command = [sys.executable, "-m", "tests.fuzz", target]
        for flag in ("runs", "seconds", "seed", "engine"):
            command += [f"--{flag}", str(getattr(args, flag))]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
        what = f"{said['number_of_executed_units']} inputs, {said['peak_rss_mb']} MB" if said else done.stdout.strip()
        print(f"{target}: {what}, {time.monotonic() - began:.0f} s, exit code {done.returncode}", flush=True)
        if done.returncode:
            print(done.stdout[-1000:], done.stderr[-3000:], sep="\n", flush=True)
        worst = max(worst, min(abs(done.returncode), 1))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
