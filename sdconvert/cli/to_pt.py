"""``sdconvert to-pt SOURCE [OUTPUT]``."""

from __future__ import annotations

import argparse

from . import conversion

NAME = "to-pt"
HELP = "write a checkpoint's weights as a clean .pt state dict"
DESCRIPTION = (
    "Write the weights of any source that to-safetensors takes as a state dict that "
    "torch.load(weights_only=True, mmap=True) opens: tied tensors stay tied, nothing but weights is in it."
)
EXAMPLES = (
    ("to-pt model.ckpt weights.pt", "a file that torch.load(weights_only=True, mmap=True) opens"),
    ("to-pt model.safetensors", "model.pt beside it, with every name of a tie"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A conversion's."""
    conversion.add_arguments(parser, ".pt")


def run(args: argparse.Namespace) -> int:
    """Convert, and print the report."""
    return conversion.run(args, "pt")
