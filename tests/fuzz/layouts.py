"""Seeds of what is more than a container: directories, and archives with a layout of their own.

Each is a `framing` of files. The small ones are put together here by hand; those of DCP and DeepSpeed are torch's own
writing, which is imported only when they are asked for: a fuzzer's process should be small.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..hostile.legacy import old_storage, stream
from ..hostile.pickling import call, dict_of, integer, module, name, pickled, storage, tensor, tuple_of
from ..hostile.safetensors_files import file, info
from ..hostile.zips import FLOATS, torch_zip
from .framing import pack

Files = Mapping[str, bytes]

_ZIP = torch_zip(dict_of(("w", tensor())))
_OTHER = torch_zip(
    dict_of(
        (
            "state_dict",
            dict_of(
                (
                    "v",
                    tensor(),
                ),
                ("u", tensor((2,), (2,))),
            ),
        )
    )
)
_LEGACY = stream(dict_of(("w", tensor(of=old_storage()))))
_SAFE = file({"w": info()})
_V = file({"v": info(), "__metadata__": {"format": "pt", "u": "v"}})


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _sharded() -> Iterator[Files]:
    index, pt = "model.safetensors.index.json", "pytorch_model.bin.index.json"
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    both = {one: _SAFE, two: _V}
    yield {index: _json({"metadata": {"total_size": 32}, "weight_map": {"w": one, "v": two}}), **both}
    yield {index: _json({"metadata": {"t": "w"}, "weight_map": {"w": one, "v": two, "u": two}}), **both}
    yield {index: _json({"weight_map": {"w": one, "v": two, "gone": two}}), **both}
    yield both
    yield {
        pt: _json({"metadata": {}, "weight_map": {"w": "a.bin", "v": "b.bin"}}),
        "a.bin": _ZIP,
        "b.bin": torch_zip(dict_of(("v", tensor()))),
    }
    yield {pt: _json({"weight_map": {"w": "a.bin"}}), "a.bin": _LEGACY, "config.json": b"{}"}
    yield {"model.safetensors": _SAFE, "pytorch_model.bin": _ZIP, "optimizer.pt": _OTHER}
    yield {"model_index.json": b"{}", "unet/a.safetensors": _SAFE, "vae/diffusion_pytorch_model.bin": _ZIP}
    parts = {f"shard-0000{n}-model-00001-of-00001.safetensors": _part(n) for n in (1, 2)}
    yield parts
    yield {**parts, "model.safetensors.index.json": _json({"weight_map": {"w": next(iter(parts))}})}


def _part(rank: int) -> bytes:
    said = json.dumps({"w": {"saved_offsets": [4 * rank - 4]}})
    return file({"__metadata__": {"format": "pt", "DCP_SHARDING_INFO": said}, "w": info()})


def _dcp() -> Iterator[Files]:
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat

    a, b = torch.arange(6.0).reshape(2, 3), torch.arange(3)
    small = {"serialization_format": SerializationFormat.SAFETENSORS}
    for state, options in (
        ({"w": b}, {}),
        ({"model": {"a.w": a, "b": b}, "epoch": 3}, {}),
        ({"l": [a, {"x": b}], "t": (1, "x"), "s": torch.tensor(1.0, dtype=torch.bfloat16)}, {}),
        ({"model": {"a": a, "b": b}}, small),
        ({"a": a[:, :0], "b": a}, small),
        ({"a": a, "b": a.half()}, {"single_file_per_rank": False}),
    ):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(state, storage_writer=FileSystemWriter(folder, **options), no_dist=True)  # type: ignore[arg-type]
            found = _files(Path(folder))
        yield found
        if "model" in state:
            yield {**found, "meta.pt": _ZIP}
    yield {"__0_0.distcp": _ZIP, "__0.metadata": b"."}


def _deepspeed() -> Iterator[Files]:
    import torch

    from ..formats.deepspeed_files import Model, write

    def row(size: int) -> torch.Tensor:
        return torch.arange(float(size))

    groups = [{"a": row(6).reshape(2, 3), "b": row(3)}]
    for stage, ranks, model in (
        (1, 1, Model(groups)),
        (2, 2, Model(groups, buffers={"n": row(2)})),
        (3, 1, Model(groups, frozen={"f": row(3)})),
        (3, 2, Model(groups)),
        (2, 2, Model([*groups, {"c": row(1)}], tied={"t": "a"}, dtype=torch.float32)),
        (1, 2, Model(groups, dtype=torch.float16)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), model, stage=stage, ranks=ranks)
            yield _files(Path(folder))


def _files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _export() -> Iterator[Files]:
    def number(value: int) -> dict[str, int]:
        return {"as_int": value}

    def entry(sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, **more: object) -> dict[str, object]:
        about = {"dtype": 7, "layout": 7, "requires_grad": True, "device": {"type": "cpu", "index": None}}
        about |= {"sizes": [*map(number, sizes)], "strides": [*map(number, strides)], "storage_offset": number(offset)}
        return {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": about, **more}

    config = {"w": entry((4,), (1,)), "t": entry((2, 2), (1, 2)), "v": entry((2,), (1,), 2)}
    marks = {"p/archive_format": b"pt2", "p/models/model.json": b"{}", "p/byteorder": b"little"}
    constants = "p/data/constants/model_constants_config.json"
    marks[constants] = _json({"config": {}})
    weights, settings = "p/data/weights/", "p/data/weights/model_weights_config.json"
    yield {**marks, settings: _json({"config": config}), weights + "weight_0": FLOATS}
    picked = {**config, "x": entry((4,), (1,), path_name="weight_1", use_pickle=True)}
    yield {**marks, settings: _json({"config": picked}), weights + "weight_0": FLOATS, weights + "weight_1": _plain()}
    yield {
        **marks,
        settings: _json({"config": config}),
        weights + "weight_0": FLOATS,
        constants: _json({"config": {"c": entry((2, 2), (2, 1))}}),
        "p/data/constants/weight_0": FLOATS,
    }
    yield {**marks, weights + "model.pt": _ZIP, "p/data/constants/model.pt": _OTHER}
    program = {"serialized_exported_program.json": b"{}", "version": b"8.2"}
    yield {**program, "serialized_state_dict.pt": _ZIP, "serialized_constants.pt": _OTHER}
    yield {**program, "serialized_state_dict.json": _LEGACY}
    folder = "p/data/aotinductor/m/"
    compiled = {folder + "weights_config.json": _json({"w": ["weight_0", [2, 2], [2, 1], 0]}), folder + "m.so": b"ELF"}
    yield {"p/archive_format": b"pt2", **compiled, weights + "weight_0": _plain()}


def _plain() -> bytes:
    """A tensor by itself, as torch.save writes it."""
    return torch_zip(tensor())


def _package() -> Iterator[Files]:
    marks = {"p/.data/extern_modules": b"torch\n", "p/.data/python_version": b"3.11", "p/.data/version": b"6\n"}
    data = {"p/.data/0.storage": FLOATS}
    net = module("<torch_package_0>.net.Net", {"w": tensor(key="0")})
    source = {"p/net.py": b"import torch\n\nclass Net(torch.nn.Module):\n    pass\n\nclass Other:\n    x = 1\n"}
    yield {**marks, **data, "p/model/w.pkl": pickled(dict_of(("w", tensor(key="0"))), proto=3)}
    yield {**marks, **data, "p/model/w.pkl": pickled(dict_of(("w", tensor())), proto=3)}
    yield {**marks, **data, **source, "p/model/model.pkl": pickled(net, proto=3)}
    yield {**marks, **data, "p/a/a.pkl": pickled(net, proto=3), "p/b.pkl": pickled(dict_of(("x", 5)), proto=4)}
    yield {**marks, "p/a.pkl": pickled(dict_of(("x", 5)))}
    yield {**marks, **data, "p/a.pkl": pickled(net), "p/.data/ts_code/0/data.pkl": pickled(net)}


def _script() -> Iterator[Files]:
    """TorchScript of torch 1.0 to 1.2."""
    table = [
        {"dims": ["4"], "offset": "0", "strides": ["1"], "dataType": "FLOAT", "data": {"key": "tensors/0"}},
        {"dims": ["2", "1"], "offset": "2", "strides": ["1", "2"], "dataType": "FLOAT", "data": {"key": "tensors/0"}},
        {"dataType": 14, "data": {"key": "tensors/0"}},
        {"dataType": "UINT8", "dims": [16], "data": {"key": "tensors/0"}, "isQuantized": True},
    ]
    weights = [{"isBuffer": n == 1, "tensorId": str(n), "name": f"w{n}"} for n in range(2)]
    rest = {"m/tensors/0": FLOATS, "m/version": b"1\n", "m/code/m.py": b"op_version_set = 0\n"}

    def model(main: object, version: str = "1", tensors: object = table[:2]) -> bytes:
        return _json({"protoVersion": version, "mainModule": main, "producerVersion": "1.0", "tensors": tensors})

    inner = {"parameters": weights[1:], "name": "a"}
    yield {"m/model.json": model({"parameters": weights, "name": "m"}), **rest}
    yield {"m/model.json": model({"submodules": [inner], "parameters": weights[:1], "name": "m"}), **rest}
    yield {"m/model.json": model({"submodules": [{"submodules": [inner], "name": "b"}], "name": "m"}, "2"), **rest}
    yield {"m/model.json": model({"parameters": weights}, tensors=table), **rest}
    held = [{"type": "Tensor", "name": "b", "id": "0"}, {"type": "int", "name": "n", "id": "1"}]
    attributes = tuple_of(call("torch.jit._pickle.build_tensor_from_id", 1), integer(3))
    with_attributes = {"parameters": weights[:1], "attributes": held, "name": "m"}
    yield {"m/model.json": model(with_attributes, "3"), "m/attributes.pkl": pickled(attributes), **rest}
    yield {"m/model.json": model(with_attributes, "9"), "m/attributes.pkl": pickled(name("a.b")), **rest}


def _around() -> Iterator[Files]:
    """What lies in archives that are made by hand or by other libraries."""
    yield {"policy.pth": _ZIP, "policy.optimizer.pth": _OTHER, "data": b"{}"}
    yield {"weights.th": _LEGACY, "vocabulary/tokens.txt": b"a\nb\n"}
    yield {"model_weights.ckpt": _ZIP, "model_config.yaml": b"a: 1\n"}
    yield {"a/model.safetensors": _SAFE, "__MACOSX/a/._model.safetensors": b"\0\5\x16\7"}
    yield {"model.pkl": pickled(dict_of(("w", tensor(of=storage()))))}
    yield {"inner.zip": _ZIP, "b/model.bin": b"\x1f\x8b\x08\0"}
    yield {"no": b"\x80\2."}
    yield {"readme.txt": b"nothing"}


LAYOUTS: Mapping[str, Callable[[], Iterator[Files]]] = {
    "dcp": _dcp,
    "sharded": _sharded,
    "deepspeed": _deepspeed,
    "torch-export": _export,
    "torch-package": _package,
    "torchscript-legacy": _script,
    "zip-around": _around,
    "tar-around": _around,
}


def seeds(target: str) -> Iterator[bytes]:
    """The seeds of a target in `LAYOUTS`: its zips repaired after each mutation, and one as it is."""
    for number, files in enumerate(LAYOUTS[target]()):
        if not number or target == "dcp":  # Of its files, others say at which bytes what is.
            yield pack(files, raw=True)
        if target != "dcp":
            yield pack(files)
