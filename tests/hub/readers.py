"""What people do with published weights, by the libraries' own functions.

``python -m tests.hub.readers REPO [REVISION]`` prints one line of JSON: names, shapes and a digest of the values,
as each reader sees them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import get_safetensors_metadata, hf_hub_download, load_state_dict_from_file, snapshot_download
from safetensors import safe_open


def described(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Names, shapes, dtypes and a digest of the bytes."""
    return {
        name: [list(tensor.shape), str(tensor.dtype), hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()]
        for name, tensor in sorted(tensors.items())
    }


def main(repo: str, revision: str | None = None) -> None:
    path = hf_hub_download(repo, "model.safetensors", revision=revision)
    with safe_open(path, "pt") as file:
        opened = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    loaded = load_state_dict_from_file(path)
    assert described(loaded) == described(opened)
    remote = get_safetensors_metadata(repo, revision=revision)
    assert not remote.sharded
    tensors = remote.files_metadata["model.safetensors"].tensors
    assert {name: list(info.shape) for name, info in tensors.items()} == {n: list(t.shape) for n, t in opened.items()}
    folder = Path(snapshot_download(repo, revision=revision))
    assert (folder / "model.safetensors").read_bytes() == Path(path).read_bytes()
    print(json.dumps({"tensors": described(opened), "ties": {k: v for k, v in metadata.items() if k != "format"}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
