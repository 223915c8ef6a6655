"""torch.package: the pickled models in it, as ``PackageImporter`` gives them, without running its code."""

from __future__ import annotations

import re
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.package import PackageExporter, PackageImporter

import sdconvert
from tests.outputs import contents, same

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of itself.

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("hidden", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.head(self.embed(x))
"""


@pytest.fixture
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], nn.Module]]:
    """A class of a module of its own, which goes into the package as source."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "packaged_net.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    import packaged_net  # type: ignore[import-not-found]

    yield packaged_net.Net
    sys.path.remove(str(folder))
    sys.modules.pop("packaged_net")


def package(path: Path, objects: dict[str, object], *, intern: str = "packaged_net") -> Path:
    with PackageExporter(path) as exporter:
        exporter.intern(intern)
        exporter.extern(["torch.**", "numpy.**", "_operator", "builtins"])
        for name, value in objects.items():
            folder, _, file = name.rpartition("/")
            exporter.save_pickle(folder, file, value)
        exporter.save_text("notes", "readme.txt", "hello")
    return path


def test_the_only_model_is_taken(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = package(tmp_path / "model.pt", {"model/model.pkl": net()})
    report = sdconvert.convert(path)
    assert (report.container, report.kind, report.key) == ("torch-package", "module", "model/model.pkl")
    assert dict(report.aliases) == {"head.weight": "embed.weight"}
    expected = PackageImporter(path).load_pickle("model", "model.pkl").state_dict()
    assert same(contents(tmp_path / "model.safetensors"), expected)
    assert "packaged_net.Net" in report.unknown_globals


def test_several_models_are_a_choice(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = package(tmp_path / "m.pt", {"model/a.pkl": net(), "model/b.pkl": net(), "meta/info.pkl": {"epoch": 3}})
    with pytest.raises(sdconvert.ChoiceError, match=re.escape("--key model/a.pkl")) as caught:
        sdconvert.convert(path)
    assert [one.key for one in caught.value.candidates] == ["model/a.pkl", "model/b.pkl"]
    sdconvert.convert(path, key="model/b.pkl")
    expected = PackageImporter(path).load_pickle("model", "b.pkl").state_dict()
    assert same(contents(tmp_path / "m.safetensors"), expected)


def test_a_part_of_a_pickle_is_reached_through_its_member(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = package(tmp_path / "m.pt", {"run/all.pkl": {"student": net(), "teacher": net()}})
    sdconvert.convert(path, key="run/all.pkl.teacher")
    expected = PackageImporter(path).load_pickle("run", "all.pkl")["teacher"].state_dict()
    assert same(contents(tmp_path / "m.safetensors"), expected)


def test_a_traced_graph_has_its_weights_in_a_form_of_its_own(tmp_path: Path) -> None:
    """torch.fx modules go into packages through ``__reduce_package__``."""
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    path = package(tmp_path / "m.pt", {"model/model.pkl": graph})
    sdconvert.convert(path)
    assert same(contents(tmp_path / "m.safetensors"), graph.state_dict())


def test_scripted_modules_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps this behind a switch."""
    monkeypatch.setattr("torch.package.package_exporter._gate_torchscript_serialization", False)
    path = package(tmp_path / "m.pt", {"model/model.pkl": torch.jit.script(nn.Linear(2, 2))})
    with pytest.raises(sdconvert.SdconvertError, match="TorchScript"):
        sdconvert.convert(path)


def test_a_class_that_changes_its_state_dict_is_named(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    text = SOURCE.replace("    def forward", "    def get_extra_state(self):\n        return 1\n\n    def forward")
    module = types.ModuleType("extra_net")
    folder = tmp_path_factory.mktemp("source")
    (folder / "extra_net.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        import extra_net  # type: ignore[import-not-found]

        package(tmp_path / "m.pt", {"model/model.pkl": extra_net.Net()}, intern="extra_net")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module.__name__, None)
    report = sdconvert.convert(tmp_path / "m.pt")
    assert any("get_extra_state" in text for text in report.warnings)


def without(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    with zipfile.ZipFile(path) as file:
        records = [change(name, file.read(name)) for name in file.namelist()]
    with zipfile.ZipFile(path, "w") as file:
        for record in records:
            if record is not None:
                file.writestr(*record)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, d: None if n.endswith("0.storage") else (n, d), "model.pkl: storage 0 is not in the archive"),
        (lambda n, d: (n, d[:-4]) if n.endswith("0.storage") else (n, d), "storage 0 is announced with"),
        (lambda n, d: None if n.endswith(".pkl") else (n, d), "without a pickled object"),
        (lambda n, d: (n, d[:40]) if n.endswith(".pkl") else (n, d), "the pickle is damaged"),
        (lambda n, d: (n, d + b"N.") if n.endswith(".pkl") else (n, d), "bytes follow its end"),
        (lambda n, d: (n, b"middle") if n.endswith("byteorder") else (n, d), "neither little nor big"),
    ],
)
def test_a_package_that_is_damaged_is_refused(
    change: Callable[[str, bytes], tuple[str, bytes] | None],
    words: str,
    net: Callable[[], nn.Module],
    tmp_path: Path,
) -> None:
    path = package(tmp_path / "m.pt", {"model/model.pkl": net()})
    without(path, change)
    with pytest.raises(sdconvert.SdconvertError, match=words) as caught:
        sdconvert.convert(path)
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["m.pt"]
