"""All checkpoints below a directory, on the processes of this machine or on Ray; run it again to go on.

    python examples/batch_anywhere.py runs/ converted/            # this machine
    python examples/batch_anywhere.py runs/ converted/ ray        # a Ray of its own
    python examples/batch_anywhere.py runs/ converted/ ray:auto   # the cluster that RAY_ADDRESS names

The same as `sdconvert batch`, with a look at each outcome: files whose pickles name more than weights are listed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sdconvert.batch import Job, Options, Outcome, Summary, convert_many, jobs


def convert_all(source: str, output: str, executor: str = "processes") -> tuple[Summary, list[str]]:
    """The summary, and the sources whose pickles name something that weights do not need."""
    odd: list[str] = []

    def look(job: Job, outcome: Outcome) -> None:
        if outcome.about.get("unknown_globals"):
            odd.append(job.source)

    def todo() -> Iterator[Job]:
        for job in jobs([source], output, ".safetensors", Options()):
            Path(job.output).parent.mkdir(parents=True, exist_ok=True)
            yield job

    Path(output).mkdir(parents=True, exist_ok=True)
    manifest = Path(output) / "manifest.jsonl"
    summary = convert_many(todo(), executor=executor, workers=2, manifest=manifest, resume=True, progress=look)
    return summary, odd


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    summary, odd = convert_all(*sys.argv[1:])
    print(summary)
    print("name more than weights:", *odd or ["none"])
    raise SystemExit(0 if summary.ok else 1)
