"""``sdconvert to-safetensors SOURCE [OUTPUT]``."""

from __future__ import annotations

import argparse

from . import conversion

NAME = "to-safetensors"
HELP = "write a checkpoint's weights as safetensors"
DESCRIPTION = (
    "Write the weights of a PyTorch checkpoint as a safetensors file, bit for bit, read back and compared. "
    "The checkpoint may be a whole pickled model, a training checkpoint or a state dict of any age; "
    "neither its classes nor torch are needed, and nothing in it is run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A conversion's, and what goes into the header."""
    conversion.add_arguments(parser, ".safetensors")
    parser.add_argument(
        "--metadata",
        metavar="K=V",
        action="append",
        default=[],
        type=conversion.pair,
        help="add to the header (repeatable)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and print the report."""
    return conversion.run(args, "safetensors", args.metadata)
