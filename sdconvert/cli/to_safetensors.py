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
EXAMPLES = (
    ("to-safetensors model.pt", "model.safetensors beside it"),
    (
        "to-safetensors last.ckpt weights.safetensors --extras epoch.json",
        "of a training checkpoint the weights; what is plain data beside them as JSON",
    ),
    ("to-safetensors gan.pt --key generator", "one of several state dicts"),
    ("to-safetensors ddp.pt --strip-prefix auto", "without module. and _orig_mod. before the names"),
    ("to-safetensors llm/ out/ --max-shard-size 5GB", "shards and an index; out is there already"),
    ("to-safetensors big.ckpt --dry-run --json", "what would be done, for a machine"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A conversion's, and what goes into the header."""
    conversion.add_arguments(parser, ".safetensors")
    conversion.add_metadata(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and print the report."""
    return conversion.run(args, "safetensors", args.metadata)
