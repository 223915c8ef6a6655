"""Archives around checkpoints: the one file that holds weights is taken, and several are a choice."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch import nn

import sdconvert
from sdconvert.inflated import InflatedSource
from sdconvert.limits import Limits
from tests.outputs import contents, same


def saved(value: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def model(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()


def optimizer() -> dict[str, object]:
    net = nn.Linear(3, 4)
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3)).sum().backward()
    adam.step()
    return adam.state_dict()


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def stable_baselines(path: Path, extra: torch.Tensor | None = None) -> Path:
    """As ``save_to_zip_file`` of stable_baselines3/common/save_util.py lays it out; its policies' names have dots."""
    variables = {} if extra is None else {"log_ent_coef": extra}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", b'{"policy_class": {":type:": "..."}}')
        for name, value in {
            "pytorch_variables.pth": variables,
            "policy.pth": dict(model()),
            "policy.optimizer.pth": optimizer(),
        }.items():
            with file.open(name, "w", force_zip64=True) as member:
                torch.save(value, member)
        file.writestr("_stable_baselines3_version", b"2.9.2")
        file.writestr("system_info.txt", b"- OS: Linux")
    return path


@pytest.mark.parametrize("extra", [None, torch.ones(1)])
def test_stable_baselines(extra: torch.Tensor | None, tmp_path: Path) -> None:
    report = sdconvert.convert(stable_baselines(tmp_path / "ppo.zip", extra))
    assert same(contents(tmp_path / "ppo.safetensors"), model())
    assert (report.container, report.kind, report.key) == ("zip", "state_dict", "policy.pth")
    skipped = {one.name: one.why for one in report.skipped}
    assert skipped.keys() == {"pytorch_variables.pth", "policy.optimizer.pth"}
    assert skipped["policy.optimizer.pth"] == "training state"


def test_another_member_is_taken_when_its_name_is_the_key(tmp_path: Path) -> None:
    path = stable_baselines(tmp_path / "ppo.zip", torch.ones(1))
    report = sdconvert.convert(path, key="pytorch_variables.pth")
    assert report.key == "pytorch_variables.pth"
    assert same(contents(tmp_path / "ppo.safetensors"), {"log_ent_coef": torch.ones(1)})


def test_allennlp(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "vocabulary/tokens.txt": b"a\nb\n", "weights.th": saved(model(), zipped=False)}
    report = sdconvert.convert(tarred(tmp_path / "model.tar.gz", files, "w:gz"), tmp_path / "o.safetensors")
    assert (report.container, report.key) == ("gzip+tar+torch-legacy", "weights.th")
    assert same(contents(tmp_path / "o.safetensors"), model())


def test_nemo(tmp_path: Path) -> None:
    """NeMo adds a directory as ``./``."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "model_weights.ckpt").write_bytes(saved(model()))
    (source / "model_config.yaml").write_text("target: nemo.Model\n")
    with tarfile.open(tmp_path / "m.nemo", "w:") as file:
        file.add(source, arcname=".")
    report = sdconvert.convert(tmp_path / "m.nemo")
    assert (report.container, report.key) == ("tar+torch-zip", "model_weights.ckpt")
    assert same(contents(tmp_path / "m.safetensors"), model())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_torchserve(method: int, tmp_path: Path) -> None:
    files = {"MAR-INF/": b"", "MAR-INF/MANIFEST.json": b"{}", "handler.py": b"import os", "model.pt": saved(model())}
    report = sdconvert.convert(zipped(tmp_path / "m.mar", files, method))
    assert (report.container, report.key) == ("zip+torch-zip", "model.pt")
    assert same(contents(tmp_path / "m.safetensors"), model())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a/model.safetensors", to_safetensors(model())),
        ("a/model.pth.tar", saved(model(), zipped=False)),
        ("a/model.pt.gz", gzip.compress(saved(model()))),
        ("a/weights without an ending", saved(model())),
    ],
)
def test_any_container_inside_any_archive(name: str, data: bytes, tmp_path: Path) -> None:
    files = {"README.md": b"hello", "__MACOSX/a/._model.pt": b"\0\5\x16\7", "a/empty.bin.txt": b"", name: data}
    for path in (zipped(tmp_path / "m.zip", files), tarred(tmp_path / "m.tar", files)):
        report = sdconvert.convert(path, tmp_path / "o.safetensors", overwrite=True)
        assert report.key == name
        assert same(contents(tmp_path / "o.safetensors"), model())


def test_a_wrapped_checkpoint_in_an_archive_has_a_key_of_both(tmp_path: Path) -> None:
    checkpoint = saved({"epoch": 3, "state_dict": model(), "optimizer_states": [optimizer()]})
    report = sdconvert.convert(zipped(tmp_path / "m.zip", {"last.ckpt": checkpoint}))
    assert (report.kind, report.key) == ("wrapped", "last.ckpt.state_dict")
    assert same(contents(tmp_path / "m.safetensors"), model())


def test_several_files_with_weights_are_a_choice(tmp_path: Path) -> None:
    wrapped = saved({"state_dict": model(2)})
    path = zipped(tmp_path / "m.zip", {"generator.pth": saved(model(1)), "critic.ckpt": wrapped, "notes.txt": b"-"})
    with pytest.raises(sdconvert.ChoiceError, match=re.escape("--key generator.pth (7 tensors, ")) as caught:
        sdconvert.convert(path)
    assert [one.key for one in caught.value.candidates] == ["generator.pth", "critic.ckpt.state_dict"]
    sdconvert.convert(path, key="generator.pth")
    assert same(contents(tmp_path / "m.safetensors"), model(1))


def test_loose_tensors_of_two_files_are_never_one_state_dict(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {"a.pt": saved({"w": torch.ones(2)}), "b.pt": saved({"v": torch.ones(2)})})
    with pytest.raises(sdconvert.ChoiceError, match="several state dicts"):
        sdconvert.convert(path)


def test_averaged_weights_beside_the_raw_ones_are_said(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {"model.pth": saved(model(1)), "model_ema.pth": saved(model(2))})
    report = sdconvert.convert(path)
    assert report.key == "model.pth"
    assert [one.key for one in report.others] == ["model_ema.pth"]


def test_an_archive_inside_an_archive(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"a.pt": saved(model(1)), "b.pt": saved(model(2))}).read_bytes()
    path = tarred(tmp_path / "m.tar", {"runs/inner.zip": inner})
    with pytest.raises(sdconvert.ChoiceError) as caught:
        sdconvert.convert(path)
    assert [one.key for one in caught.value.candidates] == ["runs/inner.zip/a.pt", "runs/inner.zip/b.pt"]
    sdconvert.convert(path, key="runs/inner.zip/b.pt")
    assert same(contents(tmp_path / "m.safetensors"), model(2))


def test_a_file_that_cannot_be_expressed_is_passed_over_and_said(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {"keras.zip": keras(), "model.pt": saved(model())})
    report = sdconvert.convert(path)
    assert report.key == "model.pt"
    assert any(text.startswith("keras.zip: it is a Keras model") for text in report.warnings)
    with pytest.raises(sdconvert.UnsupportedError, match=r"keras\.zip: it is a Keras model"):
        sdconvert.convert(zipped(tmp_path / "n.zip", {"keras.zip": keras()}))


def keras() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("config.json", b"{}")
        file.writestr("model.weights.h5", b"\x89HDF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": b"hello", "b/c.csv": b"1,2"}, r"zip archive around other files \(a.txt, b/c.csv\)"),
        ({}, "around other files"),
        ({"model.bin": b"just some text"}, "none of them a checkpoint"),
        ({"m/.metadata": b"\x80\x02}.", "m/__0_0.distcp": b"PK"}, "checkpoint of several files"),
        ({"pytorch_model.bin.index.json": b"{}", "pytorch_model-00001-of-00001.bin": b""}, "several files"),
        ({"only.optimizer.pth": saved(optimizer())}, "only training state"),
    ],
)
def test_an_archive_without_weights_is_named(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", files)
    with pytest.raises(sdconvert.SdconvertError, match=words):
        sdconvert.convert(path)


def test_what_is_no_checkpoint_is_not_unpacked_to_find_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unpacked = []
    unpack = InflatedSource._unpack
    monkeypatch.setattr(InflatedSource, "_unpack", lambda self, *a: unpacked.append(self.name) or unpack(self, *a))
    files = {"model.pt": saved(model()), "images.bin": b"\x93images" * 300_000, "text.txt": b"-" * 10_000}
    report = sdconvert.convert(zipped(tmp_path / "m.zip", files, zipfile.ZIP_DEFLATED))
    assert report.key == "model.pt"
    assert unpacked == ["model.pt"]


def test_a_damaged_file_is_not_passed_over_for_another(tmp_path: Path) -> None:
    bad = saved(model())[:-100]
    path = zipped(tmp_path / "m.zip", {"model.pt": bad, "model_ema.pt": saved(model())})
    with pytest.raises(sdconvert.UnreadableError, match=r"model\.pt: its zip directory is missing"):
        sdconvert.convert(path)


@pytest.mark.parametrize("zip_inside", [True, False])
def test_a_byte_that_changed_is_found_wherever_the_checksum_is(zip_inside: bool, tmp_path: Path) -> None:
    """Of a zip inside, its own; of everything else, the outer archive's."""
    data = bytearray(zipped(tmp_path / "m.zip", {"m.pt": saved(model(), zipped=zip_inside)}).read_bytes())
    weight = bytes(model()["0.weight"].numpy())
    assert data.count(weight) == 1
    data[data.find(weight)] ^= 1
    (tmp_path / "m.zip").write_bytes(data)
    with pytest.raises(sdconvert.UnreadableError, match="checksum"):
        sdconvert.convert(tmp_path / "m.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["m.zip"]


@pytest.mark.parametrize("name", ["x/../m.pt", "C:\\m.pt", "a\x1b[31m/m.pt", "a\nb.pt"])
def test_names_are_keys_and_never_paths(name: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {name: saved(model()), "n.pt": saved(model(1))})
    with pytest.raises(sdconvert.ChoiceError) as caught:
        sdconvert.convert(path)
    assert str(caught.value).isprintable()
    sdconvert.convert(path, key=name)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.safetensors", "m.zip"]


@pytest.mark.parametrize("name", ["../../m.pt", "/etc/m.pt"])
def test_a_name_that_leads_out_of_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {name: saved(model()), "n.pt": saved(model(1))})
    with pytest.raises(sdconvert.UnreadableError, match="leads out of the archive"):
        sdconvert.convert(path)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        file.writestr("m.pt", saved(model(1)))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("m.pt", saved(model(2)))
    with pytest.raises(sdconvert.UnreadableError, match="there twice"):
        sdconvert.convert(tmp_path / "m.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_containers_without_end_are_refused(method: int, tmp_path: Path) -> None:
    data = saved(model())
    for level in range(Limits().nesting + 1):
        data = zipped(tmp_path / "level.zip", {f"{level}.zip": data}, method).read_bytes()
    (tmp_path / "level.zip").rename(tmp_path / "m.zip")
    with pytest.raises(sdconvert.UnreadableError, match="containers inside each other"):
        sdconvert.convert(tmp_path / "m.zip")


def test_compression_inside_compression_does_not_multiply(tmp_path: Path) -> None:
    """A deflated zip of zeros, deflated: 42 kB would unpack to 10 GB."""
    data = zipped(tmp_path / "a.zip", {"m.pt": b"PK\3\4" + bytes(10 << 20)}, zipfile.ZIP_DEFLATED).read_bytes()
    many = zipped(tmp_path / "b.zip", {f"{n}.zip": data for n in range(200)}, zipfile.ZIP_STORED).read_bytes()
    path = zipped(tmp_path / "m.zip", {"b.zip": many}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(sdconvert.UnreadableError, match="It is a bomb"):
        sdconvert.convert(path, limits=Limits(inflate_ratio=1032))


def test_what_a_stored_zip_holds_is_read_in_place(tmp_path: Path) -> None:
    """The end of the inner directory, within the last 64 KiB, is not taken for the outer one's, nor as a forgery."""
    path = zipped(tmp_path / "m.zip", {"a.txt": b"", "model.pt": saved(model())})
    with sdconvert.open(path) as opened:
        storages = {tensor.pieces[0].storage for tensor in opened.state_dict.tensors.values()}
        assert {type(storage.source).__name__ for storage in storages} == {"SliceSource"}
        data = path.read_bytes()
        weight = opened.state_dict["0.weight"].pieces[0].storage
        at = weight.source.offset + weight.offset  # type: ignore[attr-defined]
        assert data[at : at + weight.nbytes] == bytes(model()["0.weight"].numpy())


def test_an_inner_directory_that_claims_the_rest_of_the_file_is_refused(tmp_path: Path) -> None:
    """Its comment would reach to the end: a reader that looks forward would take it for the archive's own."""
    data = bytearray(zipped(tmp_path / "m.zip", {"model.pt": saved(model())}).read_bytes())
    inner = data.find(b"PK\5\6")
    assert inner < data.rfind(b"PK\5\6")
    data[inner + 20 : inner + 22] = (len(data) - inner - 22).to_bytes(2, "little")
    (tmp_path / "m.zip").write_bytes(data)
    with pytest.raises(sdconvert.UnreadableError, match="more than one end"):
        sdconvert.convert(tmp_path / "m.zip")


def test_members_of_more_than_8_gib_have_their_size_in_base_256(tmp_path: Path) -> None:
    """As GNU tar writes it. Only the header is made here: the size is a lie, and found to be one."""
    info = tarfile.TarInfo("model.pt")
    info.size = 9 << 30
    (tmp_path / "m.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(sdconvert.UnreadableError, match=str(9 << 30 | 512)):
        sdconvert.convert(tmp_path / "m.tar")


def test_what_torch_save_began_and_did_not_end_says_so(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="pickle"):
        torch.save({"a": torch.ones(2), "hook": lambda: 1}, tmp_path / "m.pt")
    with pytest.raises(sdconvert.UnsupportedError, match=r"torch\.save did not finish it"):
        sdconvert.convert(tmp_path / "m.pt")
