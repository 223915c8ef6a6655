"""Programs of torch.export give the state dict that ``torch.export.load(f)`` has, in every layout that there was."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export.pt2_archive._package import package_pt2
from torch.export.pt2_archive._package_weights import TensorProperties, Weights

import sdconvert
from tests.outputs import contents, same

Config = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of itself.


class Model(nn.Module):
    """Ties, views of one storage, buffers of both kinds, a plain tensor, an empty one, several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        base = torch.arange(20.0)
        self.low = nn.Parameter(base[2:6])
        self.high = nn.Parameter(base[10:14])
        self.turned = nn.Parameter(torch.randn(4, 4).t())
        self.brief = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("kept", torch.arange(4.0))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("hidden", torch.full((4,), 2.0), persistent=False)
        self.plain = torch.tensor([3.0, 1, 2, 4])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x))) * self.low * self.high + self.brief + self.empty.sum()
        return x + (self.turned @ x.t()).sum() + self.kept + self.steps + self.hidden + self.plain


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Model().eval(), (torch.randn(2, 4),))


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def zipped(path: Path, records: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in records.items():
            file.writestr(name, data)
    return path


def current(program: torch.export.ExportedProgram, path: Path) -> None:
    torch.export.save(program, path, extra_files={"notes.txt": "extra"})


def of_2_8(program: torch.export.ExportedProgram, path: Path) -> None:
    """As 2.8 laid it out: dicts saved by torch.save, in the archive that came then."""
    writer = torch._C.PyTorchFileWriter(str(path))  # type: ignore[attr-defined]
    for name, data in {
        "models/model.json": b"{}",
        "data/weights/model.pt": saved(dict(program.state_dict)),
        "data/constants/model.pt": saved(dict(program.constants)),
        "data/sample_inputs/model.pt": saved(((torch.randn(2, 4),), {})),
        "archive_format": b"pt2",
        "archive_version": b"0",
    }.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def of_2_5(program: torch.export.ExportedProgram, path: Path) -> None:
    """As 2.3 to 2.7 laid it out, by Python's zipfile and without a folder."""
    records = {
        "serialized_exported_program.json": b"{}",
        "serialized_state_dict.pt": saved(dict(program.state_dict)),
        "serialized_constants.pt": saved(dict(program.constants)),
        "serialized_example_inputs.pt": saved(((torch.randn(2, 4),), {})),
        "version": b"8.2",
    }
    zipped(path, records)


def of_2_1(program: torch.export.ExportedProgram, path: Path) -> None:
    """As 2.1 laid it out: the state dict is no JSON, in spite of its name."""
    records = {
        "serialized_exported_program.json": b"{}",
        "serialized_state_dict.json": saved(dict(program.state_dict)),
        "version": b"1",
    }
    zipped(path, records)


@pytest.mark.parametrize("save", [current, of_2_8, of_2_5, of_2_1])
def test_the_state_dict_is_the_programs(
    save: Callable[[torch.export.ExportedProgram, Path], None], program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    save(program, path)
    expected = torch.export.load(path).state_dict if save is current else program.state_dict

    report = sdconvert.convert(path)

    assert (report.container, report.kind) == ("torch-export", "exported")
    assert dict(report.aliases) == {"second.weight": "first.weight"}
    assert same(contents(tmp_path / "model.safetensors"), expected)
    with sdconvert.open(path) as opened:
        assert list(opened.state_dict) == list(expected)


@pytest.mark.parametrize("save", [current, of_2_8, of_2_5])
def test_constants_are_left_out_unless_they_are_asked_for(
    save: Callable[[torch.export.ExportedProgram, Path], None], program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    save(program, path)
    skipped = {one.name: one.why for one in sdconvert.convert(path).skipped}
    assert "--key constants takes them" in skipped["constants"]
    sdconvert.convert(path, tmp_path / "constants.safetensors", key="constants")
    assert same(contents(tmp_path / "constants.safetensors"), {"hidden": Model().hidden, "plain": Model().plain})


def test_every_dtype_has_its_own_number(tmp_path: Path) -> None:
    names = """uint8 int8 int16 int32 int64 float16 float32 float64 complex64 bool bfloat16 uint16 float8_e4m3fn
        float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu uint32 uint64"""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in names.split():
                self.register_buffer(f"of_{name}", torch.ones(3).to(getattr(torch, name)))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.of_float32

    torch.export.save(torch.export.export(Many(), (torch.randn(3),)), tmp_path / "model.pt2")
    sdconvert.convert(tmp_path / "model.pt2")
    assert same(contents(tmp_path / "model.safetensors"), torch.export.load(tmp_path / "model.pt2").state_dict)


def test_several_programs_in_one_archive_are_a_choice(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    other = torch.export.export(nn.Linear(4, 2), (torch.randn(1, 4),))
    package_pt2(str(tmp_path / "m.pt2"), exported_programs={"encoder": program, "decoder": other})
    with pytest.raises(sdconvert.ChoiceError, match=r"--key encoder .*--key decoder"):
        sdconvert.convert(tmp_path / "m.pt2")
    sdconvert.convert(tmp_path / "m.pt2", key="decoder")
    assert same(contents(tmp_path / "m.safetensors"), other.state_dict)


def test_weights_that_aotinductor_packaged_beside_its_code_are_read(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tensors = {"w": base.view(3, 4), "part": base[4:8], "bias": torch.randn(5)}
    weights = Weights({name: (tensor, TensorProperties(tensor)) for name, tensor in tensors.items()})
    (tmp_path / "model.so").write_bytes(b"\x7fELF")
    package_pt2(str(tmp_path / "m.pt2"), aoti_files={"model": [str(tmp_path / "model.so"), weights]})
    sdconvert.convert(tmp_path / "m.pt2")
    assert same(contents(tmp_path / "m.safetensors"), tensors)


def test_compiled_code_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"\x7fELF")
    package_pt2(str(tmp_path / "m.pt2"), aoti_files={"model": [str(tmp_path / "model.so")]})
    with pytest.raises(sdconvert.UnsupportedError, match="AOTInductor"):
        sdconvert.convert(tmp_path / "m.pt2")


def forged(program: torch.export.ExportedProgram, path: Path, change: Callable[[Config], Any]) -> None:
    """A program whose weights' config was changed; `change` may give other text for it."""
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    (name,) = (name for name in records if name.endswith("model_weights_config.json"))
    config = json.loads(records[name])
    text = change(config["config"])
    records[name] = text if isinstance(text, bytes) else json.dumps(config).encode()
    zipped(path, records)


def meta(config: Config) -> Config:
    found: Config = config["kept"]["tensor_meta"]
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["kept"].update(path_name="weight_99"), "its record is not in the archive"),
        (lambda c: c["kept"].update(path_name="../../archive_format"), "its record is not in the archive"),
        (lambda c: c["kept"].update(path_name=7), "its record is not in the archive"),
        (lambda c: c["kept"].update(tensor_meta=None), "tensor_meta is missing"),
        (lambda c: c.update(kept=[]), "its record is not in the archive"),
        (lambda c: meta(c).update(dtype=99), "dtype 99 is not one"),
        (lambda c: meta(c).update(dtype="7"), "dtype 7 is not one"),
        (lambda c: meta(c).update(sizes=[{"as_int": 4000}]), r"holds 16 bytes, the tensor needs 16000"),
        (lambda c: meta(c).update(sizes=[{"as_int": 1 << 62}], strides=[{"as_int": 0}]), "by views that repeat them"),
        (lambda c: meta(c).update(sizes=[{"as_int": -4}]), "not a whole number"),
        (lambda c: meta(c).update(sizes=[{"as_expr": "s0"}]), "not a number"),
        (lambda c: meta(c).update(strides=[]), "strides"),
        (lambda c: meta(c).update(storage_offset={"as_int": 1}), "holds 16 bytes"),
        (lambda c: meta(c).update(storage_offset={"as_int": True}), "not a number"),
        (lambda c: meta(c).update(layout=1), "sparse"),
        (lambda c: b"{}", "it has no config"),
        (lambda c: b"[", "not JSON"),
        (lambda c: b"[]", "not a JSON object"),
        (lambda c: b'{"config": ' + b"[" * 100_000, "not JSON"),
        (lambda c: b'{"config": {"a": 1, "a": 2}}', "there twice"),
        (lambda c: b'{"config": {"a": NaN}}', "NaN is not JSON"),
    ],
)
def test_a_config_that_lies_is_refused(
    change: Callable[[Config], Any], words: str, program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    forged(program, tmp_path / "m.pt2", change)
    with pytest.raises(sdconvert.SdconvertError, match=words) as caught:
        sdconvert.convert(tmp_path / "m.pt2")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


def test_a_record_is_unpickled_once_however_many_names_it_has(tmp_path: Path) -> None:
    """5000 names of one pickled weight are one reading of it."""
    entry = {"path_name": "weight_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = {"config": {f"w{number}": entry for number in range(5000)}}
    records = {
        "m/archive_format": b"pt2",
        "m/models/model.json": b"{}",
        "m/data/weights/weight_0": saved(torch.arange(3.0)),
        "m/data/weights/model_weights_config.json": json.dumps(config).encode(),
        "m/data/constants/model_constants_config.json": b'{"config": {}}',
    }
    with sdconvert.open(zipped(tmp_path / "m.pt2", records)) as opened:
        assert len(opened.state_dict) == 5000


@pytest.mark.parametrize(
    ("save", "missing"),
    [
        (of_2_5, "serialized_state_dict.pt"),
        (of_2_1, "serialized_state_dict.json"),
        (of_2_8, "m/data/weights/model.pt"),
        (current, "m/data/weights/model_weights_config.json"),
        (current, "m/data/constants/model_constants_config.json"),
        (current, "m/models/model.json"),
    ],
)
def test_a_record_that_is_missing_is_named(
    save: Callable[[torch.export.ExportedProgram, Path], None],
    missing: str,
    program: torch.export.ExportedProgram,
    tmp_path: Path,
) -> None:
    save(program, tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as file:
        records = {name: file.read(name) for name in file.namelist()}
    del records[missing]
    zipped(tmp_path / "m.pt2", records)
    with pytest.raises(sdconvert.SdconvertError, match=r"is not in the archive|without a program in it"):
        sdconvert.convert(tmp_path / "m.pt2")


def test_a_state_dict_that_is_none_is_refused(tmp_path: Path) -> None:
    records = {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": saved([torch.ones(2)])}
    with pytest.raises(sdconvert.UnreadableError, match=re.escape("it holds no dict")):
        sdconvert.convert(zipped(tmp_path / "m.pt2", records))


def test_bytes_that_changed_are_found_by_their_checksum(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(program, path)
    data = bytearray(path.read_bytes())
    at = data.find(bytes(program.state_dict["norm.running_var"].numpy()))
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(sdconvert.UnreadableError, match="checksum"):
        sdconvert.convert(path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
