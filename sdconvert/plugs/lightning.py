"""A Lightning `CheckpointIO` without pickle: safetensors, and JSON for what is no tensor.

    Trainer(plugins=[SafeCheckpointIO()])

A checkpoint is a directory under the name that Lightning gives it:

    model.safetensors   the state dict, as any library reads it
    rest.json           everything else: loops, callbacks, optimizers, hyper-parameters; tensors are references
    rest.safetensors    the tensors that `rest.json` refers to, such as an optimizer's moments

In JSON, what JSON has not is an object with the key ``$``: ``tuple``, ``dict`` (keys that are no text),
``tensor``, ``bytes``, ``dtype``, ``device``. Lightning's own ``.ckpt`` files are read too, and nothing in them is run.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from ..checkpoint import Dict, Object, TensorRef
from ..errors import UnreadableError, UnsupportedError, within
from ..load import load
from ..load.place import Placer, Want
from ..opening import OpenCheckpoint, PathLike
from ..opening import open as open_checkpoint
from ..save import save

WEIGHTS, REST, TENSORS = "model.safetensors", "rest.json", "rest.safetensors"
_DEPTH = 200
_MOST = 1 << 30  # Bytes of JSON.


class SafeCheckpointIO(CheckpointIO):  # type: ignore[misc]
    """Saves and loads checkpoints of one process, on local paths."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any = None) -> None:
        """Write `checkpoint` as a directory `path`, whole or not at all; one that is there is replaced.

        UnsupportedError names what would need a pickle; then nothing was written.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported: paths are local")
        target = Path(path)
        state = checkpoint.get("state_dict", {})
        weights = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        tensors: dict[str, torch.Tensor] = {}
        rest: dict[str, Any] = {name: value for name, value in checkpoint.items() if name != "state_dict"}
        beside = {name: value for name, value in state.items() if name not in weights}
        document = {
            "version": 1,
            "rest": _encoded(rest, "checkpoint", tensors, 0),
            "state_dict": _encoded(beside, "state_dict", tensors, 0),
            "metadata": _encoded(dict(getattr(state, "_metadata", {})), "_metadata", tensors, 0),
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:50]}.", dir=target.parent) as place:
            made, old = Path(place, "new"), Path(place, "old")
            made.mkdir()
            for name, some in ((WEIGHTS, weights), (TENSORS, tensors)):
                if some:
                    save(some, made / name)
            with (made / REST).open("w") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            _sync(made)
            _put(made, target, old)
            _sync(target.parent)

    def load_checkpoint(
        self, path: PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What was saved, from a directory of this class or a file of Lightning's own.

        Tensors go to `map_location` if that is one device, otherwise to the host. UnreadableError and
        UnsupportedError as for `sdconvert.load`.
        """
        device = map_location if isinstance(map_location, str | torch.device | int) else "cpu"
        place = Path(path)
        if not place.exists():
            raise FileNotFoundError(f"Checkpoint file not found: {path}")
        with within(str(path)):
            return _from_directory(place, device) if (place / REST).is_file() else _from_file(place, device)

    def remove_checkpoint(self, path: PathLike) -> None:
        """Remove the directory, or the file, at `path`."""
        target = Path(path)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _put(made: Path, target: Path, old: Path) -> None:
    """`made` becomes `target`, and what `target` was becomes `old` or takes the place of `made`.

    In one step where Linux has one, so that a kill leaves the old one or the new; otherwise by two renames.
    """
    if not target.exists():
        made.rename(target)
    elif not _exchanged(made, target):
        target.rename(old)
        made.rename(target)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two have exchanged their names: renameat2(2) with RENAME_EXCHANGE, for which Python has no name."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here = ctypes.c_int(-100)  # AT_FDCWD
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(2)) == 0


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encoded(value: Any, name: str, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    """`value` as JSON-ready data, its tensors put into `tensors`. UnsupportedError names what cannot be."""
    if depth > _DEPTH:
        raise UnsupportedError(f"{name[:200]}: is nested more than {_DEPTH} times")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = value.detach()
        return {"$": "tensor", "name": key}
    if type(value) in (list, tuple):
        items = [_encoded(item, f"{name}.{at}", tensors, depth + 1) for at, item in enumerate(value)]
        return items if type(value) is list else {"$": "tuple", "items": items}
    if isinstance(value, Mapping):
        pairs = [(key, _encoded(item, f"{name}.{key}", tensors, depth + 1)) for key, item in value.items()]
        if all(type(key) is str for key, _ in pairs) and "$" not in value:
            return dict(pairs)
        return {"$": "dict", "pairs": [[_encoded(key, name, tensors, depth + 1), item] for key, item in pairs]}
    if type(value) is bytes:
        return {"$": "bytes", "base64": base64.b64encode(value).decode()}
    if type(value) in (torch.dtype, torch.device):
        return {"$": type(value).__name__, "name": str(value).removeprefix("torch.")}
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", ()):
        return _encoded(value.item(), name, tensors, depth + 1)
    if isinstance(value, os.PathLike | str):
        return str(value)
    if isinstance(value, int | float):  # An enumeration of numbers, say.
        return float(value) if isinstance(value, float) else int(value)
    raise UnsupportedError(f"{name}: a {type(value).__qualname__} needs a pickle. Keep plain data or tensors there")


def _decoded(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get("$"):
        case None:
            return {key: _decoded(item, tensors) for key, item in value.items()}
        case "tensor":
            return tensors[value["name"]]
        case "tuple":
            return tuple(_decoded(item, tensors) for item in value["items"])
        case "dict":
            return {_decoded(key, tensors): _decoded(item, tensors) for key, item in value["pairs"]}
        case "bytes":
            return base64.b64decode(value["base64"])
        case "device":
            return torch.device(value["name"])
        case "dtype" if isinstance(found := getattr(torch, value["name"], None), torch.dtype):
            return found
    raise UnreadableError(f"{REST}: nothing is known of {str(value)[:80]!r}. The file is damaged")


def _from_directory(place: Path, device: Any) -> dict[str, Any]:
    if (place / REST).stat().st_size > _MOST:
        raise UnreadableError(f"{REST}: is larger than {_MOST} bytes")
    files = {
        name: load(place / name, device=device, copy="read") for name in (WEIGHTS, TENSORS) if (place / name).is_file()
    }
    tensors = files.get(TENSORS, {})
    try:
        document = json.loads((place / REST).read_bytes())
        rest = _decoded(document["rest"], tensors)
        beside = _decoded(document["state_dict"], tensors)
        metadata = _decoded(document["metadata"], tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableError(
            f"{REST}: is not what was written ({type(error).__name__}). The file is damaged"
        ) from error
    weights = {**files.get(WEIGHTS, {}), **beside}
    return {**rest, "state_dict": _with_metadata(weights, metadata)}


def _with_metadata(weights: dict[str, Any], metadata: Any) -> dict[str, Any]:
    from collections import OrderedDict

    state: OrderedDict[str, Any] = OrderedDict(weights)
    if metadata:
        state._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    return state


def _from_file(place: Path, device: Any) -> dict[str, Any]:
    """A pickled checkpoint as plain data: the tree that was read, tensors in their places."""
    with open_checkpoint(place) as opened:
        found = _Plain(opened, torch.device(device)).of(opened.checkpoint.root, "checkpoint", 0)
    if type(found) is not dict:
        raise UnsupportedError("is no training checkpoint but a single object")
    return found


class _Plain:
    """Values of a tree as Python's own. What was shared in it is shared in them."""

    def __init__(self, opened: OpenCheckpoint, device: torch.device) -> None:
        self.placer, self.device = Placer("read", None), device
        self.made: dict[int, Any] = {}

    def of(self, value: Any, name: str, depth: int) -> Any:
        """UnsupportedError where there is an object of some class, UnreadableError where there is no end."""
        if depth > _DEPTH:
            raise UnreadableError(f"{name[:200]}: is nested more than {_DEPTH} times")
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            return value
        if id(value) in self.made:
            return self.made[id(value)]
        if type(value) is TensorRef:
            (tensor,) = self.placer.place([Want(value, value.dtype, self.device)], lambda nbytes: None)
            self.made[id(value)] = tensor
            return tensor
        if type(value) is list:
            items: list[Any] = []
            self.made[id(value)] = items
            items += (self.of(item, f"{name}.{at}", depth + 1) for at, item in enumerate(value))
            return items
        if type(value) is Dict or (type(value) is Object and value.pairs):
            mapping: dict[Any, Any] = {}
            self.made[id(value)] = mapping
            for key, item in value.pairs:
                if type(key) not in (str, int, float, bool):
                    raise UnsupportedError(f"{name}: has a key that is neither text nor a number")
                mapping[key] = self.of(item, f"{name}.{key}", depth + 1)
            return mapping
        kind = value.type_name if type(value) is Object else type(value).__name__
        raise UnsupportedError(
            f"{name}: is a {kind}, which only unpickling could make. torch.load reads it, and runs it"
        )
