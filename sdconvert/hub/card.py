"""The card of a new repository: what is known of the weights, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .evidence import Evidence, code

# What a card of the source says of the model itself stays true of the same weights in another file. What it says of
# files (library_name, tags) may not.
_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag", "base_model")


def front_matter(source_card: Mapping[str, Any], license: str | None, base_model: str | None) -> dict[str, Any]:  # noqa: A002
    """The metadata of a card: of the source's card what holds here too, and what was asked for."""
    known = {key: source_card[key] for key in _KEPT if source_card.get(key)}
    if license:
        known = {key: value for key, value in known.items() if not key.startswith("license")} | {"license": license}
    if base_model:
        known["base_model"] = base_model
    return known


def card(evidence: Evidence, license: str | None, base_model: str | None) -> str:  # noqa: A002
    """The README of a new repository."""
    from huggingface_hub import ModelCardData

    known = front_matter(evidence.origin.card, license, base_model)
    front = f"---\n{ModelCardData(**known).to_yaml()}\n---\n\n" if known else ""
    return (
        f"{front}# {evidence.repo_id.partition('/')[2]}\n\n"
        f"Weights from {code(evidence.origin.name)}, as [safetensors](https://github.com/huggingface/safetensors).\n\n"
        f"{evidence.table()}\n\n{evidence.check(None, proposed=False)}\n"
    )
