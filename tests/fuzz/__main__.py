"""The long run: ``python -m tests.fuzz TARGET [--runs N] [--seconds S] [--engine atheris|python]``.

With atheris (``pip install atheris``) it is guided by coverage; crashes are written to
``crash-*`` in the current directory. The seeds are built anew into a temporary directory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "python"), default="atheris")
    args = parser.parse_args()
    if args.engine == "python":
        from . import corpus, mutate
        from .targets import TARGETS

        began = time.monotonic()
        done = mutate.fuzz(
            TARGETS[args.target], corpus.seeds(args.target), seed=args.seed, runs=args.runs, seconds=args.seconds or 1e9
        )
        print(f"{args.target}: {done} inputs in {time.monotonic() - began:.0f} s, no crash")
        return 0
    import atheris

    # Nothing of sdconvert may be imported before it is instrumented.
    with atheris.instrument_imports(include=["sdconvert"]):
        from .targets import TARGETS
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: what building takes would count as memory of the target.
        subprocess.run([sys.executable, "-m", "tests.fuzz.corpus", args.target, folder], cwd=ROOT, check=True)
        limits = [
            f"-runs={args.runs}",
            "-timeout=5",
            "-rss_limit_mb=512",
            "-max_len=8192",
            f"-seed={args.seed}",
            "-print_final_stats=1",
        ]
        if args.seconds:
            limits.append(f"-max_total_time={args.seconds}")
        atheris.Setup([sys.argv[0], *limits, folder], TARGETS[args.target])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
