"""DeepSpeed's checkpoints: ``latest``, and for each tag a folder with the states of every rank.

``mp_rank_00_model_states.pt`` holds the weights in the precision of training (ZeRO stages 0 to 2), or
``zero_pp_rank_<r>_mp_rank_00_model_states.pt`` placeholders for them (stage 3); each rank's
``*zero_pp_rank_<r>_mp_rank_00_optim_states.pt`` has its part of the weights in float32. These are
what is read, as ``zero_to_fp32.py`` does. Sources: ``deepspeed/runtime/engine.py``,
``deepspeed/checkpoint/constants.py``, ``deepspeed/utils/zero_to_fp32.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

from ..checkpoint import Checkpoint, Dict, Global, Object, TensorRef, Value
from ..errors import ChoiceError, UnreadableError, UnsupportedError, listed, within
from ..limits import Limits
from ..source import Folder
from ..source import read as read_bytes
from ..tensor import MAX_DIMENSIONS, Shape, check_numbers, numel
from .protocol import Nested
from .weight_files import weights
from .zero import Flat, Param, spread, stage_2, stage_3

NAME = "deepspeed"
_OPTIM = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OTHERS = (
    (
        r"layer_\d+_expert_\d+_mp_rank_\d+_model_states\.pt|expp?_rank_.*_optim_states\.pt",
        "a mixture of experts, whose experts are in files of their own",
    ),
    (r"layer_\d+-model_.*states\.pt", "a pipeline-parallel model, whose layers are in files of their own"),
    (r"(?:.*_)?mp_rank_0*[1-9]\d*_.*states\.pt", "a tensor-parallel model, whose parts only its own code can join"),
)
_LATEST = "latest"
_STAGES = ("disabled", "optimizer_states", "gradients", "weights")
# What DeepSpeed keeps for itself beside the weights.
_INTERNAL = frozenset(
    """module buffer_names param_shapes frozen_param_shapes frozen_param_fragments shared_params optimizer ds_config
    ds_version checkpoint_parallel_dimensions""".split()
)
_DAMAGED = "The checkpoint is damaged, or files of several were mixed"


def sniff(folder: Folder) -> bool:
    if folder.entry or any(one.known for one in weights(folder.files)):
        return False  # A trainer's directory: the model is there by itself, what DeepSpeed left is for going on.
    return any(_tag_of(name) is not None for name in folder.files)


def read(folder: Folder, nested: Nested, limits: Limits) -> Checkpoint:
    tag, warnings = _chosen(folder)
    place = f"{tag}/" if tag else ""
    files = [name.removeprefix(place) for name in folder.files if name.startswith(place)]
    _refuse_others([name for name in files if "/" not in name], files)
    with within(tag) if tag else nullcontext():
        return _Tag(folder, place, files, nested, warnings).read()


def _tag_of(name: str) -> str | None:
    """The folder of a file of states, "" for the top; None for other files and deeper folders."""
    tag, _, file = name.rpartition("/")
    return tag if "/" not in tag and re.fullmatch(r".*_(model|optim)_states\.pt", file) else None


def _chosen(folder: Folder) -> tuple[str, list[str]]:
    """The tag to read, "" if the folder is that of a tag, and what there is to say about the choice."""
    tags = list(dict.fromkeys(tag for name in folder.files if (tag := _tag_of(name)) is not None))
    if "" in tags:
        return "", []
    if _LATEST in folder.files:
        source = folder.open(_LATEST)
        tag = read_bytes(source, 0, min(source.nbytes, 4096)).decode("utf-8", "replace").strip()
        if tag not in tags:
            raise UnreadableError(
                f"{_LATEST}: it names {tag!r}, which is not there. There is {listed(tags)}: give that directory"
            )
        others = [other for other in tags if other != tag]
        told = f"{tag} was taken, the latest. There is {listed(others)} too: give that directory to take it"
        return tag, [told] if others else []
    if len(tags) > 1:
        raise ChoiceError(
            f"it holds several checkpoints and no file `latest`. Give the directory of one: {listed(tags)}"
        )
    return tags[0], []


def _by_rank(pattern: re.Pattern[str], names: Sequence[str]) -> dict[int, str]:
    """The files that `pattern` fits, by the rank in their name, in order. UnreadableError for two of one rank."""
    found = sorted((int(match[1] or 0), name) for name in names if (match := pattern.fullmatch(name)))
    by_rank = dict(found)
    if len(by_rank) != len(found):
        twice = next(name for rank, name in found if by_rank[rank] != name)
        raise UnreadableError(f"{twice}: there is another file of this rank. {_DAMAGED}")
    return by_rank


def _refuse_others(names: Sequence[str], below: Sequence[str]) -> None:
    """UnsupportedError for the layouts that spread a model in other ways."""
    for pattern, what in _OTHERS:
        found = next((name for name in names if re.fullmatch(pattern, name)), None)
        if found is not None:
            raise UnsupportedError(
                f"{found}: it is of {what}, which is not read. Save a whole state dict from DeepSpeed"
            )
    if any(name.startswith("zero/") and name.endswith("/fp32.pt") for name in below):
        raise UnsupportedError(
            "it is a universal checkpoint, a folder for each parameter, which is not read. Give its origin"
        )


class _Tag:
    """The files of one tag, and what is known of them."""

    def __init__(self, folder: Folder, place: str, files: list[str], nested: Nested, warnings: list[str]) -> None:
        self.folder, self.place, self.nested, self.warnings = folder, place, nested, warnings
        self.globals: dict[str, Global] = {}
        self.gaps: Value = None
        self.optim = _by_rank(_OPTIM, files)
        self.model = _by_rank(_MODEL, files)

    def read(self) -> Checkpoint:
        if 0 not in self.model:
            raise UnreadableError("the file of rank 0's model states is missing. Copy or download the directory again")
        if not self.optim and self.model[0].startswith("zero_"):
            raise UnreadableError(
                "the *_optim_states.pt are missing, which hold the weights in ZeRO stage 3. "
                "Copy or download the directory again"
            )
        states = self.load(self.model[0])
        module = states.get("module")
        if type(module) is not Dict:
            raise UnreadableError(f"{self.model[0]}: it has no state dict `module`. {_DAMAGED}")
        copies: dict[str, Value] = {}
        weights = self.weights(states, module) if self.optim else dict(module.by_name())
        if self.optim:
            copies = self.copies(states, module, weights)
        else:
            self.warnings.append("there are no ZeRO partitions: the weights are as they were trained")
        rest = [(key, value) for key, value in states.pairs if type(key) is not str or key not in _INTERNAL]
        root = Dict([("module", _state_dict(weights)), *rest])
        version = states.get("ds_version")
        return Checkpoint(
            NAME,
            root,
            tuple(self.globals.values()),
            f"DeepSpeed {version}" if type(version) is str else "",
            tuple(self.warnings),
            copies=copies,
        )

    def load(self, name: str) -> Dict:
        """The object in one of the files, a dict."""
        with within(name):
            inside = self.nested(self.folder.open(f"{self.place}{name}"))
            if type(inside.root) is not Dict:
                raise UnreadableError(f"it does not hold a dict. {_DAMAGED}")
        self.globals.update((mentioned.full, mentioned) for mentioned in inside.globals)
        return inside.root

    def weights(self, states: Dict, module: Dict) -> dict[str, Value]:
        """All tensors of the model by name, in its own order: partitions joined, the rest as stored."""
        stage, ranks = self.partitions()
        groups = [list(_shapes(group)) for group in _list(states.get("param_shapes"), "param_shapes")]
        if len({param.name for group in groups for param in group}) != sum(map(len, groups)):
            raise UnreadableError(f"a parameter is in two groups. {_DAMAGED}")
        if stage == 3:
            found: dict[str, Value] = dict(stage_3([param for group in groups for param in group], ranks))
        else:
            if any(len(partitions) != len(groups) for partitions in ranks):
                raise UnreadableError(f"a rank has partitions of other than {len(groups)} groups. {_DAMAGED}")
            found = dict(stage_2(_with_gaps(groups, self.gaps), ranks))
        found |= self.frozen(states, stage)
        stored = module.by_name()
        for name in _list(states.get("buffer_names"), "buffer_names"):
            if type(name) is str and name in stored:
                found[name] = stored[name]
        for alias, kept in _dict(states.get("shared_params"), "shared_params").by_name().items():
            if type(kept) is str and kept in found:
                found[alias] = found[kept]
        self.tell(found, stored, stage)
        return {name: found[name] for name in dict.fromkeys([*stored, *found]) if name in found}

    def partitions(self) -> tuple[int, list[list[TensorRef]]]:
        """The ZeRO stage, and the flat tensors of every rank."""
        ranks: list[list[TensorRef]] = []
        stage = 0
        for name in self.optim.values():
            state = self.load(name).get("optimizer_state_dict")
            with within(name):
                if type(state) is not Dict or "zero_stage" not in state:
                    raise UnsupportedError(
                        "it was not saved by ZeRO: it names no stage. zero_to_fp32.py refuses it too"
                    )
                mine = _stage(state.get("zero_stage"))
                if not ranks:
                    stage = mine
                    self.gaps = state.get("param_alignment_paddings")
                    self.check_ranks(state.get("partition_count"))
                if mine != stage:
                    raise UnreadableError(f"it is of stage {mine}, others are of stage {stage}. {_DAMAGED}")
                key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
                flat = _list(state.get(key), key)
                if not flat or not all(type(part) is TensorRef for part in flat):
                    raise UnreadableError(f"{key} does not hold tensors. {_DAMAGED}")
                ranks.append(flat)
        return stage, ranks

    def check_ranks(self, count: Value) -> None:
        """UnreadableError unless there is a file of every rank."""
        # Groups may be cut into different numbers of partitions; the largest is the number of ranks.
        counts = count if type(count) is list else [count]
        if not counts or not all(type(one) is int for one in counts):
            raise UnreadableError(f"partition_count is not a number. {_DAMAGED}")
        world = max(counts)
        missing = [rank for rank in range(min(world, len(self.optim) + 1)) if rank not in self.optim]
        if missing or world != len(self.optim):
            what = f"that of rank {missing[0]} is missing" if missing else "there are more than that"
            raise UnreadableError(
                f"{world} ranks saved optimizer states, {len(self.optim)} files are here: {what}. {_DAMAGED}"
            )

    def frozen(self, states: Dict, stage: int) -> dict[str, Value]:
        """The parameters that were not trained, in the dtype that they were stored in."""
        shapes = list(_shapes(states.get("frozen_param_shapes") or Dict()))
        if not shapes:
            return {}
        parts = [_dict(states.get("frozen_param_fragments"), "frozen_param_fragments")]
        if stage == 3:
            if list(self.model) != list(self.optim):
                raise UnreadableError(
                    f"{len(self.optim)} ranks saved, {len(self.model)} files of model states are here"
                )
            for rank, name in self.model.items():
                if rank:
                    parts.append(_dict(self.load(name).get("frozen_param_fragments"), "frozen_param_fragments"))
        found: dict[str, Value] = {}
        for name, shape, _ in shapes:
            with within(name):
                mine = [part.get(name) for part in parts]
                tensors = [tensor for tensor in mine if type(tensor) is TensorRef]
                if len(tensors) != len(mine):
                    raise UnreadableError(f"it is not among the frozen parameters of every rank. {_DAMAGED}")
                if stage == 3:
                    found[name] = spread(shape, [Flat([tensor]) for tensor in tensors], 0)
                elif tensors[0].shape != shape:
                    raise UnreadableError(f"it is stored as {list(tensors[0].shape)}, not {list(shape)}. {_DAMAGED}")
                else:
                    found[name] = tensors[0]
        return found

    def tell(self, found: dict[str, Value], stored: Mapping[str, Value], stage: int) -> None:
        """Say what is not float32, and take or miss what only the module has."""
        kept = [n for n, t in found.items() if type(t) is TensorRef and t.dtype.kind == "f" and t.dtype.itemsize < 4]
        if kept:
            self.warnings.append(
                f"{listed(kept)}: not trained, so only as stored, not in float32; --dtype float32 widens them"
            )
        alone = [name for name, value in stored.items() if type(value) is TensorRef and name not in found]
        if alone and stage < 3:
            found.update((name, stored[name]) for name in alone)
            self.warnings.append(f"{listed(alone)}: not in the optimizer; taken from the module, as stored")
        elif alone:
            self.warnings.append(f"{listed(alone)}: in the module, but no partition has any of it; left out")

    def copies(self, states: Dict, module: Dict, weights: dict[str, Value]) -> dict[str, Value]:
        """The weights as the module has them, by the dtype of its parameters, if it has all of them whole."""
        stored = module.by_name()
        same = all(
            type(stored.get(name)) is TensorRef and stored[name].shape == tensor.shape
            for name, tensor in weights.items()
            if type(tensor) is TensorRef
        )
        trained = [name for group in _list(states.get("param_shapes"), "param_shapes") for name, _, _ in _shapes(group)]
        dtypes = {stored[name].dtype.name for name in trained} if same else set()
        if len(dtypes) != 1 or not any(numel(stored[name].shape) for name in trained):
            return {}
        return {dtypes.pop(): Dict([("module", _state_dict({name: stored[name] for name in weights}))])}


def _state_dict(weights: dict[str, Value]) -> Dict:
    return Dict(list(weights.items()), attributes=Dict([("_metadata", Dict())]))  # As state_dict() marks its own.


def _shapes(node: Value) -> Iterator[Param]:
    """The names and shapes in one dict of ``param_shapes``."""
    for name, size in _dict(node, "param_shapes").by_name().items():
        with within(name):
            shape: Shape = tuple(size) if type(size) is list and len(size) <= MAX_DIMENSIONS else (-1,)
            check_numbers(shape, len(shape))
            if numel(shape) >> 63:
                raise UnreadableError(f"its dimensions multiply to more than 64 bits hold. {_DAMAGED}")
        yield Param(name, shape)


def _with_gaps(groups: list[list[Param]], gaps: Value) -> list[list[Param]]:
    """The padding between parameters that newer versions write down, for each group a list."""
    if gaps is None:
        return groups
    result = []
    for group, own in zip(groups, _list(gaps, "param_alignment_paddings"), strict=False):
        if type(own) is not list or len(own) != len(group) or not all(type(gap) is int and gap >= 0 for gap in own):
            raise UnreadableError(f"param_alignment_paddings does not fit the parameters. {_DAMAGED}")
        result.append([Param(param.name, param.shape, gap) for param, gap in zip(group, own, strict=True)])
    if len(result) != len(groups):
        raise UnreadableError(f"param_alignment_paddings does not fit the groups. {_DAMAGED}")
    return result


def _stage(node: Value) -> int:
    """A number, or a member of ZeroStageEnum: of its value, or by Python 3.11.0 to 3.11.3 of itself and its name."""
    if type(node) is Object and node.args:
        node = node.args[-1]
    if type(node) is str and node in _STAGES:
        node = _STAGES.index(node)
    if type(node) is not int or not 0 <= node <= 3:
        raise UnreadableError(f"its ZeRO stage is not a number from 0 to 3. {_DAMAGED}")
    return node


def _list(node: Value, what: str) -> list[Value]:
    if type(node) is Dict and what == "param_shapes":  # Before groups were told apart.
        return [node]
    if type(node) is not list:
        raise UnreadableError(f"{what} is not a list. {_DAMAGED}")
    return node


def _dict(node: Value, what: str) -> Dict:
    if node is None:
        return Dict()
    if type(node) is not Dict:
        raise UnreadableError(f"{what} is not a dict. {_DAMAGED}")
    return node
