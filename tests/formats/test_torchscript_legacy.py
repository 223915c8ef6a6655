"""TorchScript of torch 1.0 to 1.2, rebuilt as those versions wrote it: no torch of today writes or reads it.

Names of records, the JSON and the pickle are those of files that libtorch 1.0.0, 1.1.0 and 1.2.0 made.
"""

from __future__ import annotations

import copy
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdconvert
from tests.outputs import contents, same

Model = dict[str, Any]

BASE = torch.arange(20.0)
TABLE: list[tuple[str, str, Tensor]] = [
    # The key of the record, caffe2's name of the dtype, and the view of it.
    ("tensors/0", "DOUBLE", torch.tensor([0.5, 0.25], dtype=torch.float64)),
    ("tensors/1", "FLOAT", torch.arange(12.0).view(3, 4)),
    ("tensors/2", "FLOAT", BASE[2:6]),
    ("tensors/2", "FLOAT", BASE[10:16].view(2, 3).t()),
    ("tensors/4", "FLOAT16", torch.ones(5, dtype=torch.float16)),
    ("tensors/5", "UINT8", torch.arange(5, dtype=torch.uint8)),
    ("tensors/6", "INT8", torch.arange(5, dtype=torch.int8)),
    ("tensors/7", "INT16", torch.arange(5, dtype=torch.int16)),
    ("tensors/8", "INT32", torch.arange(5, dtype=torch.int32)),
    ("tensors/9", "FLOAT", torch.zeros(0, 3)),
    ("tensors/10", "INT64", torch.tensor(7)),
]
EXPECTED = {
    "scale": TABLE[0][2],
    "half": TABLE[4][2],
    "u8": TABLE[5][2],
    "i8": TABLE[6][2],
    "i16": TABLE[7][2],
    "i32": TABLE[8][2],
    "empty": TABLE[9][2],
    "a.weight": TABLE[1][2],
    "seq.view": TABLE[2][2],
    "seq.view2": TABLE[3][2],
    "seq.0.weight": TABLE[1][2],
    "seq.0.steps": TABLE[10][2],
}


def tensors() -> list[Model]:
    table = []
    for key, kind, tensor in TABLE:
        entry: Model = {"dims": [str(n) for n in tensor.shape], "offset": str(tensor.storage_offset())}
        entry |= {"strides": [str(n) for n in tensor.stride()], "requiresGrad": False, "dataType": kind}
        entry |= {"data": {"key": key}, "device": "cpu"}
        if not tensor.shape:  # protobuf leaves empty lists out.
            del entry["dims"], entry["strides"]
        table.append(entry)
    return table


def parameter(name: str, number: int, is_buffer: bool = False) -> Model:
    return {"isBuffer": is_buffer, "tensorId": str(number), "name": name}


def of_1_0() -> tuple[Model, dict[str, bytes]]:
    """Buffers are parameters that are marked."""
    buffers = [parameter(name, 4 + n, True) for n, name in enumerate(["half", "u8", "i8", "i16", "i32", "empty"])]
    inner = {"parameters": [parameter("weight", 1), parameter("steps", 10, True)], "name": "0", "optimize": True}
    seq: Model = {"submodules": [inner], "parameters": [parameter("view", 2), parameter("view2", 3, True)]}
    main: Model = {
        "submodules": [{"parameters": [parameter("weight", 1)], "name": "a"}, seq | {"name": "seq", "optimize": True}],
        "parameters": [parameter("scale", 0), *buffers],
        "name": "old",
        "optimize": True,
    }
    model = {"protoVersion": "1", "mainModule": main, "producerName": "pytorch", "producerVersion": "1.0"}
    return model | {"tensors": tensors()}, {}


class build_tensor_from_id:  # noqa: N801 - as torch called it
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[object, ...]:
        return build_tensor_from_id, (self.number,)


build_tensor_from_id.__module__ = "torch.jit._pickle"


def attributes(values: list[object]) -> bytes:
    """The values as libtorch 1.1 pickled them: a tuple, with numbers for tensors."""
    out = [b"\x80\x02("]
    for value in values:
        if isinstance(value, build_tensor_from_id):
            out.append(b"ctorch.jit._pickle\nbuild_tensor_from_id\n(K%ctR" % value.number)
        else:
            out.append(pickle.dumps(value, 2)[2:-1])
    return b"".join([*out, b"t."])


def of_1_1() -> tuple[Model, dict[str, bytes]]:
    """Buffers are attributes that are tensors; 1.2 wrote the same with a higher version."""
    model, _ = of_1_0()
    names = ["half", "u8", "i8", "i16", "i32", "empty"]
    main = model["mainModule"]
    main["parameters"] = main["parameters"][:1]
    main["attributes"] = [{"type": "Tensor", "name": name, "id": str(n)} for n, name in enumerate(names)]
    main["attributes"].append({"type": "int", "name": "number", "id": "6"})
    seq = main["submodules"][1]
    seq["parameters"] = seq["parameters"][:1]
    seq["attributes"] = [{"type": "Tensor", "name": "view2", "id": "7"}]
    inner = seq["submodules"][0]
    inner["parameters"] = inner["parameters"][:1]
    inner["attributes"] = [{"type": "Tensor", "name": "steps", "id": "8"}]
    values = [*(build_tensor_from_id(4 + n) for n in range(6)), 3, build_tensor_from_id(3), build_tensor_from_id(10)]
    return model | {"protoVersion": "3"}, {"attributes.pkl": attributes(values)}


def written(path: Path, model: Model, records: dict[str, bytes], drop: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("old/version", b"1\n")
        file.writestr("old/code/old.py", b"op_version_set = 0\n")
        for name, data in records.items():
            file.writestr(f"old/{name}", data)
        for key, tensor in {key: tensor for key, _, tensor in TABLE}.items():
            if key != drop:
                file.writestr(f"old/{key}", bytes(tensor.untyped_storage()))
        file.writestr("old/model.json", json.dumps(model, separators=(",", ":")))
    return path


@pytest.mark.parametrize("layout", [of_1_0, of_1_1])
def test_names_order_and_bytes_are_those_of_its_time(
    layout: Callable[[], tuple[Model, dict[str, bytes]]], tmp_path: Path
) -> None:
    path = written(tmp_path / "model.pt", *layout())
    report = sdconvert.convert(path)
    assert (report.container, report.kind) == ("torchscript", "torchscript")
    assert dict(report.aliases) == {"seq.0.weight": "a.weight"}
    assert same(contents(tmp_path / "model.safetensors"), EXPECTED)
    with sdconvert.open(path) as opened:
        assert list(opened.state_dict) == list(EXPECTED)


def test_fields_may_be_spelled_as_protobufs_own_files_do(tmp_path: Path) -> None:
    text = json.dumps(of_1_0()[0])
    for ours, theirs in [
        ("protoVersion", "proto_version"),
        ("mainModule", "main_module"),
        ("isBuffer", "is_buffer"),
        ("tensorId", "tensor_id"),
        ("dataType", "data_type"),
    ]:
        text = text.replace(ours, theirs)
    path = written(tmp_path / "model.pt", json.loads(text), {})
    sdconvert.convert(path)
    assert same(contents(tmp_path / "model.safetensors"), EXPECTED)


def first(model: Model) -> Model:
    entry: Model = model["mainModule"]["parameters"][0]
    return entry


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(protoVersion="6"), "newer than any"),
        (lambda m: m.update(mainModule=[]), "mainModule is not an object"),
        (lambda m: m.update(tensors={}), "tensors is not a list"),
        (lambda m: m["tensors"].insert(0, 1), "tensor 0: it is not an object"),
        (lambda m: m["tensors"][1].update(dims=["3", "4000"]), "tensor 1: storage .* needs"),
        (lambda m: m["tensors"][1].update(dims=["-3", "4"]), "dims is not a whole number"),
        (lambda m: m["tensors"][1].update(dims=["9" * 5000, "4"]), "dims is not a whole number"),
        (lambda m: m["tensors"][1].update(dims=["0" * 20 + "3", "4"]), "dims is not a whole number"),
        (lambda m: m["tensors"][1].update(dims=[3.0, 4]), "dims is not a whole number"),
        (lambda m: m["tensors"][1].update(strides=["4"]), "dimensions but 1 strides"),
        (lambda m: m["tensors"][1].update(offset="1"), "needs"),
        (lambda m: m["tensors"][1].update(dataType="STRING"), "dataType STRING is not one"),
        (lambda m: m["tensors"][1].update(dataType=[1]), "dataType"),
        (lambda m: m["tensors"][1].update(data={"key": "../version"}), "is not in the archive"),
        (lambda m: m["tensors"][1].update(data={"key": 5}), "is not in the archive"),
        (lambda m: first(m).update(tensorId="99"), "tensor 99 is not in the table"),
        (lambda m: first(m).update(name=None), "has no name"),
        (lambda m: m["mainModule"]["parameters"].append(first(m)), "there twice"),
        (lambda m: m["mainModule"]["submodules"].append({"name": "a"}), "there twice"),
        (lambda m: m["mainModule"].update(attributes=[{"name": "x", "type": "Tensor", "id": "0"}]), "attribute 0 is"),
        (lambda m: m["mainModule"].update(submodules="abc"), "submodules is not a list"),
    ],
)
def test_a_model_that_lies_is_refused(change: Callable[[Model], Any], words: str, tmp_path: Path) -> None:
    model = copy.deepcopy(of_1_0()[0])
    change(model)
    written(tmp_path / "model.pt", model, {})
    with pytest.raises(sdconvert.SdconvertError, match=words) as caught:
        sdconvert.convert(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_record_that_is_missing_is_named(tmp_path: Path) -> None:
    written(tmp_path / "model.pt", *of_1_0(), drop="tensors/1")
    with pytest.raises(sdconvert.UnreadableError, match="tensors/1 is not in the archive"):
        sdconvert.convert(tmp_path / "model.pt")


def test_a_quantized_tensor_is_named_and_refused(tmp_path: Path) -> None:
    model, _ = of_1_0()
    model["tensors"][6].update(isQuantized=True, scale=0.5, zeroPoint="3")
    written(tmp_path / "model.pt", model, {})
    with pytest.raises(sdconvert.UnsupportedError, match="i8 is quantized"):
        sdconvert.convert(tmp_path / "model.pt")


def test_modules_nested_without_end_are_refused(tmp_path: Path) -> None:
    model, _ = of_1_0()
    for _ in range(400):
        model["mainModule"] = {"name": "m", "submodules": [model["mainModule"] | {"name": "x"}]}
    written(tmp_path / "model.pt", model, {})
    with pytest.raises(sdconvert.UnreadableError, match="nested beyond reason"):
        sdconvert.convert(tmp_path / "model.pt")


def test_attributes_that_name_no_tensor_are_refused(tmp_path: Path) -> None:
    model, _ = of_1_1()
    written(tmp_path / "model.pt", model, {"attributes.pkl": attributes([build_tensor_from_id(200)])})
    with pytest.raises(sdconvert.UnreadableError, match="tensor 200 is not in the table"):
        sdconvert.convert(tmp_path / "model.pt")
