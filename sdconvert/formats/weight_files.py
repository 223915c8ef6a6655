"""Which files of a directory are the weights, by their names alone.

The names are those that save functions give: transformers' ``Trainer`` (``model.safetensors`` or
``pytorch_model.bin`` beside ``optimizer.pt``, ``scheduler.pt``, ``rng_state.pth``,
``training_args.bin``), accelerate's ``save_state`` (``model_1.safetensors``, ``optimizer.bin``,
``scheduler.bin``, ``sampler.bin``, ``random_states_0.pkl``, ``custom_checkpoint_0.pkl``), diffusers
(``diffusion_pytorch_model.safetensors``), PEFT (``adapter_model.safetensors``); ``.fp16`` and other
variants of them. Other files count when their ending is a checkpoint's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..shardnames import as_index, as_shard

_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".th", ".tar", ".pkl", ".pickle")
_TRAINING = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|sampler|rng_state|random_states?|training_args|dl_state_dict"
    r"|custom_checkpoint|trainer_state|distrib_optim)([_-]?\d+)*|.*_(optim|optimizer)_states|zero_pp_rank_.*"
)
# What libraries call a model's own file; (family, pattern). Two of one family hold the same weights.
_KNOWN = re.compile(
    r"(?:(?:pytorch_)?(?P<family>model(?:_\d+)?|adapter_model)|(?P<own>diffusion_pytorch_model))(?=\.|$)"
)


class Weights(NamedTuple):
    """Weights that a directory holds: one file, or the shards of an index or of a set.

    `entry` is the file, the index or a shard. Those of one `family` hold the same weights, in other
    formats or as other variants. `known` marks the names that libraries give.
    """

    entry: str
    family: str
    variant: str
    safe: bool
    sharded: bool
    known: bool


def training_state(names: Iterable[str]) -> list[str]:
    """Those of the files that hold an optimizer, a scheduler, random states or arguments."""
    return [name for name in names if _is_checkpoint(name) and _is_training(name)]


def weights(names: Iterable[str]) -> list[Weights]:
    """What weights there are, in the order of names, an index or a set of shards once."""
    names = [name for name in names if "/" not in name]
    found: dict[tuple[object, ...], Weights] = {}
    for name in names:
        if (index := as_index(name)) and index.ending in _ENDINGS:
            family, variant, known = _family(index.stem, index.variant)
            one = Weights(name, family, variant, index.ending == ".safetensors", True, known)
            found[(family, variant, one.safe, "index")] = one
    for name in names:
        if shard := as_shard(name):
            before, _, ending = shard.ending[1:].rpartition(".")
            family, variant, known = _family(shard.stem, before)
            one = Weights(name, family, variant, ending == "safetensors", True, known)
            if f".{ending}" in _ENDINGS and (family, variant, one.safe, "index") not in found:
                found.setdefault((family, variant, one.safe, shard.total), one)
        elif _is_checkpoint(name) and not _is_training(name):
            stem, _, ending = name.rpartition(".")
            family, variant, known = _family(stem, "")
            one = Weights(name, family, variant, ending == "safetensors", False, known)
            found[(name,)] = one
    return sorted(found.values())


def choose(found: list[Weights]) -> tuple[list[Weights], list[tuple[Weights, str]]]:
    """The weights that are meant, several when it takes a person to say, and the others with why they are not."""
    others: list[tuple[Weights, str]] = []
    if any(one.known for one in found):
        others += [(one, "not a name that a library gives to a model") for one in found if not one.known]
        found = [one for one in found if one.known]
    best: list[Weights] = []
    for family in dict.fromkeys(one.family for one in found):
        mine = [one for one in found if one.family == family]
        plain = [one for one in mine if not one.variant] or mine
        others += [(one, f"the variant {one.variant}") for one in mine if one not in plain]
        safe = [one for one in plain if one.safe] or plain
        others += [(one, f"the weights of {safe[0].entry} as pickles, by its name") for one in plain if one not in safe]
        best += safe
    return best, others


def _is_checkpoint(name: str) -> bool:
    return "/" not in name and name.endswith(_ENDINGS) and not name.startswith(".")


def _is_training(name: str) -> bool:
    return _TRAINING.fullmatch(name.rpartition(".")[0]) is not None


def _family(stem: str, variant: str) -> tuple[str, str, bool]:
    """The family of a name without its ending, its variant, and whether a library gives it."""
    if known := _KNOWN.match(stem):
        return known["family"] or known["own"], variant or stem[known.end() + 1 :], True
    return stem, variant, False
