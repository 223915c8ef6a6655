"""Makes inspect.png: the page of a training checkpoint in which somebody has hidden a command.

    python -m docs.screenshot [DIRECTORY]

Needs torch, selenium, and Chromium with its driver; `DIRECTORY` (default: here) gets the picture, and
beside it the same page in dark as inspect-dark.png unless it is this one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import sdconvert
from tests.browser import browser, open_file, prefer

HERE = Path(__file__).parent
SIZE = (1280, 1680)


class Hidden:
    """What it takes to run a command when a checkpoint is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo this could have been anything",)


def checkpoint(path: Path) -> None:
    """A language model of GPT-2's shape, its moving average, and what training leaves beside them."""
    import torch

    width, layers, words = 768, 12, 50_257

    def weights() -> dict[str, torch.Tensor]:
        state = {
            "transformer.wte.weight": torch.zeros(words, width, dtype=torch.bfloat16),
            "transformer.wpe.weight": torch.zeros(1024, width, dtype=torch.bfloat16),
        }
        for layer in range(layers):
            for name, shape in (
                ("attn.c_attn", (3 * width, width)),
                ("attn.c_proj", (width, width)),
                ("mlp.c_fc", (4 * width, width)),
                ("mlp.c_proj", (width, 4 * width)),
            ):
                state[f"transformer.h.{layer}.{name}.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
                state[f"transformer.h.{layer}.{name}.bias"] = torch.zeros(shape[0], dtype=torch.bfloat16)
            for name in ("ln_1", "ln_2"):
                state[f"transformer.h.{layer}.{name}.weight"] = torch.ones(width)
                state[f"transformer.h.{layer}.{name}.bias"] = torch.zeros(width)
        state |= {"transformer.ln_f.weight": torch.ones(width), "transformer.ln_f.bias": torch.zeros(width)}
        return state | {"lm_head.weight": state["transformer.wte.weight"]}

    rest = {"epoch": 20, "optimizer": {"state": {0: {"exp_avg": torch.zeros(8)}}}, "callbacks": Hidden()}
    torch.save({"model": weights(), "ema": weights(), **rest}, path)


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    with tempfile.TemporaryDirectory() as directory, browser(*SIZE) as driver:
        source, page = Path(directory) / "gpt2-epoch20.ckpt", Path(directory) / "page.html"
        checkpoint(source)
        before = Path.cwd()
        os.chdir(directory)  # So that the page says no more than the file's name.
        try:
            sdconvert.inspect(source.name).write_html(page)
        finally:
            os.chdir(before)
        for scheme, name in (("light", "inspect.png"), ("dark", "inspect-dark.png")):
            if scheme == "light" or target != HERE:
                prefer(driver, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
                open_file(driver, page)
                driver.save_screenshot(str(target / name))


if __name__ == "__main__":
    main()
