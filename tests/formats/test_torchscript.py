"""TorchScript archives give the names, the order and the bytes of ``torch.jit.load(f).state_dict()``."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sdconvert
from tests.outputs import raw

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Everything(nn.Module):
    """Parameters, buffers of both kinds, a shared child, a list of children, plain tensors, None."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(11)])
        self.shared = self.blocks[0]
        self.scale = nn.Parameter(torch.randn(3).double())
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("hidden", torch.arange(3.0), persistent=False)
        self.register_buffer("nothing", None)
        self.plain = torch.randn(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        for block in self.blocks:
            x = block(x)
        return x * self.plain.sum()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.rnn = nn.LSTM(4, 4, 2, batch_first=True)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(Everything()), path)


def traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(Everything().eval(), torch.randn(1, 1, 6, 6)), path)


def tied(path: Path) -> None:
    torch.jit.save(torch.jit.script(Tied()), path)


def with_extra_files(path: Path) -> None:
    torch.jit.save(torch.jit.script(Tied()), path, _extra_files={"config.json": "{}"})


def mobile(path: Path) -> None:
    torch.jit.script(Everything())._save_for_lite_interpreter(str(path))


@pytest.mark.parametrize("save", [scripted, traced, tied, with_extra_files, mobile])
def test_names_order_and_bytes_are_what_torch_gives(save: Callable[[Path], None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(path)
        expected = torch.jit.load(path).state_dict()

    report = sdconvert.convert(path, tmp_path / "out.safetensors")

    assert report.container == "torchscript"
    assert report.kind == "torchscript"
    with sdconvert.open(path) as opened:
        assert list(opened.state_dict) == list(expected)
    written = load_file(tmp_path / "out.safetensors")
    written |= {alias: written[kept] for alias, kept in report.aliases.items()}
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)


def test_a_tie_is_written_once(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tied(tmp_path / "model.pt")
    report = sdconvert.convert(tmp_path / "model.pt")
    assert dict(report.aliases) == {"head.weight": "embedding.weight"}


def frozen(path: Path, *, lite: bool) -> dict[str, Tensor]:
    """A frozen archive at `path`; the weights that the model had before."""
    model = Everything().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.freeze(torch.jit.script(model).eval())
        script._save_for_lite_interpreter(str(path)) if lite else torch.jit.save(script, path)
        assert torch.jit.load(path).state_dict() == {}
    return model.state_dict()


@pytest.mark.parametrize("lite", [True, False])
def test_a_frozen_archive_is_refused_with_the_reason(lite: bool, tmp_path: Path) -> None:
    frozen(tmp_path / "model.pt", lite=lite)
    with pytest.raises(sdconvert.UnsupportedError, match=re.escape("frozen TorchScript") + ".*--key constants"):
        sdconvert.convert(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("lite", [True, False])
def test_the_constants_of_a_frozen_archive_are_there_for_who_asks(lite: bool, tmp_path: Path) -> None:
    weights = frozen(tmp_path / "model.pt", lite=lite)
    report = sdconvert.convert(tmp_path / "model.pt", key="constants")
    assert report.key == "constants"
    found = {raw(tensor) for tensor in load_file(tmp_path / "model.safetensors").values()}
    assert {raw(weights[name]) for name in ("blocks.3.bias", "blocks.10.weight")} <= found


def test_constants_beside_a_state_dict_are_said(tmp_path: Path) -> None:
    constant = torch.full((3,), 0.5)

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + constant

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Adds(), torch.randn(1, 3)), tmp_path / "model.pt")
    report = sdconvert.convert(tmp_path / "model.pt")
    assert load_file(tmp_path / "model.safetensors").keys() == {"fc.weight", "fc.bias"}
    assert [one.name for one in report.skipped] == ["constants"]
    sdconvert.convert(tmp_path / "model.pt", tmp_path / "c.safetensors", key="constants")
    assert torch.equal(load_file(tmp_path / "c.safetensors")["c0"], constant)


def test_a_mobile_archive_without_its_code_gives_every_tensor_and_says_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mobile(tmp_path / "full.ptl")
        expected = torch.jit.load(tmp_path / "full.ptl").state_dict()
    with zipfile.ZipFile(tmp_path / "full.ptl") as file, zipfile.ZipFile(tmp_path / "m.ptl", "w") as stripped:
        assert any(name.endswith("/bytecode.pkl") for name in file.namelist())
        for name in file.namelist():
            if "/code/" not in name:
                stripped.writestr(name, file.read(name))
    report = sdconvert.convert(tmp_path / "m.ptl")
    assert any("every tensor was taken for a weight" in text for text in report.warnings)
    written = load_file(tmp_path / "m.safetensors")
    written |= {alias: written[kept] for alias, kept in report.aliases.items()}
    assert written.keys() == expected.keys() | {"plain"}
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_a_mobile_flatbuffer_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(nn.Linear(2, 2))
        script._save_for_lite_interpreter(str(tmp_path / "m.ff"), _use_flatbuffer=True)
    with pytest.raises(sdconvert.UnsupportedError, match="PyTorch Mobile in flatbuffers"):
        sdconvert.convert(tmp_path / "m.ff")


def test_weights_packed_for_quantized_operators_are_named(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torch.ao.quantization")

    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
            self.conv, self.fc, self.norm = nn.Conv1d(2, 2, 1), nn.Linear(4, 4), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.dequant(self.fc(self.conv(self.quant(x)))))

    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Quantized().eval()
        model.qconfig = quantization.get_default_qconfig("fbgemm")
        model.norm.qconfig = None
        quantization.prepare(model, inplace=True)
        model(torch.randn(3, 2, 4))
        quantization.convert(model, inplace=True)
        torch.jit.save(torch.jit.script(model), path)
        expected = torch.jit.load(path).state_dict()
    report = sdconvert.convert(path)
    written = load_file(tmp_path / "model.safetensors")
    assert {name: raw(tensor) for name, tensor in written.items()} == {n: raw(t) for n, t in expected.items()}
    (packed,) = (one.why for one in report.skipped if one.name == "packed")
    assert "conv, fc._packed_params._packed_params" in packed


def test_what_optimize_for_mobile_packed_is_among_the_constants(tmp_path: Path) -> None:
    """As torch 2.5 saved a Linear that it rewrote for XNNPACK, of which builds of today know nothing: the
    constant is an object of a C++ class, its state a tuple with the weight and the bias."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mobile(tmp_path / "m.ptl")
    with zipfile.ZipFile(tmp_path / "m.ptl") as file:
        records = {name: file.read(name) for name in file.namelist() if "/code/" not in name and "/data/" not in name}

    def tensor(key: bytes, shape: tuple[int, int]) -> bytes:
        head = b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
        head += b"X\t\0\0\0%bX\3\0\0\0cpuK%ctQK\0"
        dims = b"(K%cK%ct(K%cK\1t" % (*shape, shape[1])
        return head % (key, shape[0] * shape[1]) + dims + b"\x89ccollections\nOrderedDict\n)RtR"

    state = b"(" + tensor(b"0.storage", (2, 3)) + tensor(b"1.storage", (1, 2)) + b"NNt"
    linear = b"c__torch__.torch.classes.xnnpack\nLinearOpContext\n)\x81" + state + b"b"
    records["m/constants.pkl"] = b"\x80\2(" + linear + b"t."
    weight, bias = torch.arange(6.0).view(2, 3), torch.ones(1, 2)
    records["m/constants/0.storage"] = raw(weight)
    records["m/constants/1.storage"] = raw(bias)
    records["m/data.pkl"] = b"\x80\2c__torch__\nNet\n)\x81}b."
    records["m/code/__torch__.py"] = b"class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n"
    with zipfile.ZipFile(tmp_path / "m.ptl", "w") as file:
        for name, data in records.items():
            file.writestr(name, data)
    with pytest.raises(sdconvert.UnsupportedError, match=r"only weights packed .*--key packed"):
        sdconvert.convert(tmp_path / "m.ptl")
    sdconvert.convert(tmp_path / "m.ptl", key="packed")
    found = load_file(tmp_path / "m.safetensors")
    assert torch.equal(found["CONSTANTS.c0.0"], weight)
    assert torch.equal(found["CONSTANTS.c0.1"], bias)


def test_torch_1_3_did_not_say_which_tensors_are_buffers(tmp_path: Path) -> None:
    """Its classes, as libtorch 1.3.1 printed them, have no ``__buffers__``; that torch took every tensor for one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted(tmp_path / "new.pt")
        expected = torch.jit.load(tmp_path / "new.pt").state_dict()
    with zipfile.ZipFile(tmp_path / "new.pt") as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(tmp_path / "old.pt", "w") as file:
        for name, data in records.items():
            file.writestr(name, re.sub(rb"\n  __buffers__ = .*", b"", data) if name.endswith(".py") else data)
    report = sdconvert.convert(tmp_path / "old.pt")
    assert any("did not say which tensors are buffers" in text for text in report.warnings)
    written = load_file(tmp_path / "old.safetensors")
    written |= {alias: written[kept] for alias, kept in report.aliases.items()}
    assert written.keys() == expected.keys() | {"plain"}
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
