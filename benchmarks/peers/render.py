"""Results as Markdown: what stands between the markers in docs/performance.md and in the README."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from benchmarks.peers.contest import ratio

RESULTS = ROOT / "benchmarks" / "results.json"
PLOT = ROOT / "docs" / "assets" / "peers.svg"
BEGIN, END = "<!-- benchmarks.peers: begin -->", "<!-- benchmarks.peers: end -->"
OURS, COPY, RIGHT = "sdconvert", "cp", "right"
COMMON = 5e9  # Bytes below which every way fits into the memory of an ordinary machine.
LOADERS = {
    "mapped": "`sdconvert.load_into`",
    "mapped .pt": "`sdconvert.load_into` of the `.pt`",
    "owned": '`sdconvert.load_into(copy="read")`',
    "load_model": "`safetensors.torch.load_model`",
    "torch": "`torch.load(mmap=True)`, `load_state_dict`",
    "torch assign": "the same on the meta device, `assign=True`",
    "accelerate": "`accelerate.load_checkpoint_in_model`",
}
_LOADED = (
    "Imports are not part of the times. *Ready* is until the model can be used; *every parameter read* until each of "
    "its values was, which is when a map costs, and *times ours* compares that. *Memory of its own* is anonymous."
)
Results = dict[str, Any]
_PICTURE = "Time and memory over the size of a file and over its number of tensors"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"


def memory(nbytes: float) -> str:
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.1f} GiB"


def amount(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:.2f} GB"


def times(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _contest(contest: Results) -> list[list[str]]:
    """A row for each way; the first one says which checkpoint."""
    rows = []
    ours = contest["ways"][OURS]["durable"]
    for number, (name, runs) in enumerate(contest["ways"].items()):
        label = f"**{contest['label']}**, {amount(contest['bytes'])}" if number == 0 else ""
        if not runs["seconds"]:
            rows.append([label, name, runs["not_run"], "", "", "", ""])
            continue
        note = " (once)" if len(runs["seconds"]) < len(ours) else ""
        cells = [seconds(statistics.median(runs[kind])) for kind in ("seconds", "durable")]
        beside = "1" if name == OURS else times(ratio(ours, runs["durable"]))
        peak = "" if name == COPY else memory(runs["peak"])
        rows.append([label, name, cells[0] + note, cells[1], beside, peak, amount(runs["read"])])
    return rows


def contests(found: Sequence[Results]) -> str:
    """Checkpoints and the ways over them."""
    head = ["checkpoint", "way", "time", "on the disk", "times ours", "peak memory", "read"]
    return table(head, [row for contest in found for row in _contest(contest)])


def loaders(found: Results) -> str:
    """The ways from a file to a model."""
    rows = []
    ours = [run["all"] for run in found["ways"]["mapped"]]
    for name, runs in found["ways"].items():
        if not runs:
            rows.append([LOADERS[name], "not installed", "", "", "", "", ""])
            continue
        ready, whole = (statistics.median(run[part] for run in runs) for part in ("ready", "all"))
        beside = "1" if name == "mapped" else times(ratio(ours, [run["all"] for run in runs]))
        most = [max(run[part] for run in runs) for part in ("peak", "resident", "read")]
        kept = [memory(kib * 1024) for kib in most[:2]]  # In KiB, as the kernel says them.
        cells = [seconds(ready), seconds(whole), beside, *kept, amount(most[2])]
        wrong = ["buffers without values"] * any(run["left empty"] for run in runs)
        wrong += ["ties lost"] * any(run["untied"] for run in runs)
        rows.append([LOADERS[name] + f" (**{', '.join(wrong)}**)" * bool(wrong), *cells])
    head = ["way", "ready", "every parameter read", "times ours", "memory of its own", "peak memory", "read"]
    return table(head, rows)


def verdict(entry: dict[str, str] | None) -> str:
    """One cell: what came out, and what with something given by hand."""
    if entry is None:
        return ""
    said = entry["verdict"]
    return f"{said}; with {entry['called']}: {entry['by_hand']}" if "by_hand" in entry else said


def correctness(found: Sequence[Results]) -> str:
    """A row for each case, a column for each way that goes over files; those over directories have their own table."""
    parts = []
    for names in dict.fromkeys(tuple(row["ways"]) for row in found):
        rows = [row for row in found if tuple(row["ways"]) == names]
        head = ["", *names]
        parts.append(table(head, [[row["label"], *(verdict(row["ways"][name]) for name in names)] for row in rows]))
    return "\n".join(parts)


def named(results: Results) -> str:
    """When, on what and with what it was measured."""
    machine, ours, peers = results["machine"], results["ours"], dict(results["peers"])
    python = peers.pop("python")
    versions = ", ".join(f"{name} {version}" for name, version in peers.items())
    quick = "**A quick run, with fewer rounds and without the largest file: its numbers say little.** "
    return (
        f"{quick * results['quick']}By `{results['command']}` in {results['took'] / 60:.0f} minutes on "
        f"{results['when']}: {machine['cpu']}, {machine['cores']} cores, {memory(machine['memory'])}, "
        f"{machine['filesystem']}, Linux {machine['kernel']}; sdconvert {ours['sdconvert']} ({ours['commit']}) "
        f"on Python {ours['python']}; {versions} on Python {python}.\n"
    )


def page(results: Results) -> str:
    """The part of docs/performance.md."""
    parts = [named(results), f"![{_PICTURE}]({PLOT.relative_to(ROOT / 'docs')})\n"]
    if results["files"]:
        parts += ["### Files\n", contests(results["files"])]
    if results["counts"]:
        parts += ["### Many small tensors\n", contests(results["counts"])]
    if results["directories"]:
        parts += ["### Directories\n", contests(results["directories"])]
    if results["loader"]:
        parts += [f"### Into a model\n\nA transformer of {amount(results['loader']['bytes'])}. {_LOADED}\n"]
        parts += [loaders(results["loader"])]
    if results["correctness"]:
        parts += ["### What comes out\n", correctness(results["correctness"])]
    return "\n".join(parts)


def _right(results: Results, name: str) -> str:
    tried = [row["ways"][name] for row in results["correctness"] if name in row["ways"]]
    return f"{sum(entry['verdict'] == RIGHT for entry in tried)} of {len(tried)}" if tried else ""


def short(results: Results) -> str:
    """The part of the README: one size of file, the directories, and how many cases come out right."""
    fitting = [one for one in results["files"] if one["bytes"] < COMMON]
    rows: list[list[str]] = []
    for contest in [*fitting[-1:], *results["directories"]]:
        for row in _contest(contest):
            label, name, taken, disk, beside, peak, _ = row
            if name != COPY:
                rows.append([label, name, taken, disk, beside, peak, _right(results, name)])
    head = ["", "", "time", "on the disk", "times ours", "peak memory", "comes out right"]
    quick = "\n*From a quick run: its numbers say little.*\n" * results["quick"]
    picture = f"![{_PICTURE}]({PLOT.relative_to(ROOT)})\n"
    return f"{picture}{quick}\n{table(head, rows)}"


def parts() -> list[tuple[Path, str]]:
    """Each page that has markers, and what has to stand between them: nothing without results."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
    pages = ((ROOT / "docs" / "performance.md", page), (ROOT / "README.md", short))
    return [(path, render(results) if results else "") for path, render in pages]


def between(text: str) -> str:
    """What stands between the markers."""
    return text.partition(BEGIN + "\n")[2].partition(END)[0].strip("\n")


def write() -> None:
    """The pages anew."""
    for path, part in parts():
        before, begin, rest = path.read_text().partition(BEGIN + "\n")
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise SystemExit(f"{path} has no {BEGIN} and {END}")
        body = f"\n{part.strip()}\n\n" if part else ""
        path.write_text(before + begin + body + end + after)
