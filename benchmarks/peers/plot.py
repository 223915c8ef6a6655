"""Results as a picture: ``python -m benchmarks.peers.plot RESULTS OUT.svg``, in an interpreter with matplotlib.

Text and lines are of a grey that can be read on white and on black; there is no background.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

GREY = "#7d8590"
COLORS = {
    "sdconvert": "#2f81f7",
    "cp": GREY,
    "torch.load, safetensors save_file": "#d29922",
    "torch.load, huggingface_hub": "#3fb950",
    "pt-safe-loader": "#f85149",
}


def points(contests: list[dict[str, Any]], way: str, value: str, over: str) -> tuple[list[float], list[float]]:
    """Where a line goes: contests that this way has run in."""
    found = [(one[over], one["ways"][way]) for one in contests if one["ways"][way]["seconds"]]
    return [x for x, _ in found], [
        statistics.median(runs["durable"]) if value == "durable" else runs["peak"] / 2**20 for _, runs in found
    ]


def drawn(results: dict[str, Any], out: Path) -> None:
    """Time and memory over the size of a file, and over its number of tensors."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",  # Text stays text: small, and in the reader's own font.
            "svg.hashsalt": "sdconvert",  # The same results give the same file.
            "font.family": "sans-serif",
            "font.size": 9,
            "path.simplify": True,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
        }
    )
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    panels = [
        ("files", "bytes", "durable", "size of the file", "seconds until on the disk"),
        ("files", "bytes", "peak", "size of the file", "peak memory, MiB"),
        ("counts", "count", "durable", "tensors of 64 bytes", "seconds until on the disk"),
        ("counts", "count", "peak", "tensors of 64 bytes", "peak memory, MiB"),
    ]
    figure, grid = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained")
    for axes, (group, over, value, horizontal, vertical) in zip(grid.flat, panels, strict=True):
        for way, color in COLORS.items():
            if way == "cp" and value == "peak":  # What cp holds is less than what it is started from.
                continue
            x, y = points(results[group], way, value, over)
            ours = way == "sdconvert"
            axes.plot(x, y, "o-", color=color, label=way, linewidth=2.4 if ours else 1.4, markersize=4, zorder=2 + ours)
        axes.set(xscale="log", yscale="log", xlabel=horizontal, ylabel=vertical)
        low, high = (math.log10(limit) for limit in axes.get_ylim())
        axes.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(EngFormatter("B") if over == "bytes" else StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    out.write_text("".join(f"{line.rstrip()}\n" for line in out.read_text().splitlines()))


if __name__ == "__main__":
    drawn(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
