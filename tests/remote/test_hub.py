"""From the Hub: few requests, one commit, no token where none belongs, and the right bytes whatever fails."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sdconvert
from sdconvert.errors import ChoiceError, SdconvertError, UnreadableError
from sdconvert.remote import HubFolder, open_url
from sdconvert.remote.hub import HubPath
from sdconvert.source import read
from tests.hub_server import Drop, Fault, HubServer, IgnoreRange, LoseReply, Status, WrongBytes, WrongRange
from tests.remote.opened import opened_file

DATA = random.Random(3).randbytes(2_000_000)


class TestNames:
    @pytest.mark.parametrize(
        ("url", "place"),
        [
            ("hf://me/model/a/b.bin", ("me/model", "", "a/b.bin")),
            ("hf://models/me/model/a.bin", ("me/model", "", "a.bin")),
            ("hf://me/model@v1/a.bin", ("me/model", "v1", "a.bin")),
            ("hf://me/model@refs/pr/1/a.bin", ("me/model", "refs/pr/1", "a.bin")),
            ("hf://me/model@refs%2Fpr%2F1/a.bin", ("me/model", "refs/pr/1", "a.bin")),
            ("hf://me/model", ("me/model", "", "")),
            ("hf://me/model@main", ("me/model", "main", "")),
        ],
    )
    def test_what_a_url_means(self, url: str, place: tuple[str, str, str]) -> None:
        assert HubPath.parse(url) == place

    @pytest.mark.parametrize("url", ["hf://gpt2", "hf://", "hf://datasets/me/data/a.bin", "hf://spaces/me/space"])
    def test_what_is_none(self, url: str) -> None:
        with pytest.raises(UnreadableError, match="is not hf://owner/name"):
            HubPath.parse(url)

    def test_a_revision_from_elsewhere(self) -> None:
        assert HubPath.parse("hf://me/model/a.bin", "v1").revision == "v1"
        with pytest.raises(UnreadableError, match="another one"):
            HubPath.parse("hf://me/model@v2/a.bin", "v1")


class TestReading:
    @pytest.mark.parametrize("name", ["model.bin", "small.txt"])
    def test_large_and_small_files(self, here: HubServer, name: str) -> None:
        here.add_repo("me/model", {name: DATA})
        with opened_file(f"hf://me/model/{name}") as source:
            assert source.nbytes == len(DATA)
            assert read(source, 1_000_000, 10) == DATA[1_000_000:1_000_010]
            assert read(source, 100, 1_500_000) == DATA[100:1_500_100]
            source.check_unchanged()
        assert here.log.count(method="HEAD") == 1

    def test_a_private_repository_takes_the_token_to_the_hub_only(
        self, here: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here.add_repo("me/model", {"model.bin": DATA, "a.txt": b"0123456789"}, private=True)
        monkeypatch.setenv("HF_TOKEN", f" {here.token}\n")
        with opened_file("hf://me/model/model.bin") as large, opened_file("hf://me/model/a.txt") as small:
            assert read(large, 0, 10) == DATA[:10]
            assert read(small, 0, 10) == b"0123456789"
        assert here.log.with_authorization("hub.*") == here.log.entries("hub.*")
        assert here.log.count("cdn.get") == 1

    def test_one_commit_whatever_is_pushed_meanwhile(self, here: HubServer) -> None:
        here.add_repo("me/model", {"model.bin": DATA})
        with opened_file("hf://me/model/model.bin") as source:
            here.add_files("me/model", {"model.bin": DATA[::-1]})
            here.expire_urls()
            assert read(source, 1_000_000, 10) == DATA[1_000_000:1_000_010]
        assert here.log.count(method="HEAD") == 2

    def test_an_expired_address_is_signed_anew(self, here: HubServer) -> None:
        here.add_repo("me/model", {"model.bin": DATA})
        with opened_file("hf://me/model/model.bin") as source:
            for at in (500_000, 1_000_000, 1_500_000):
                here.expire_urls()
                assert read(source, at, 10) == DATA[at : at + 10]

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("hf://me/nothing/a.bin", "no repository me/nothing on the Hub, or it is private"),
            ("hf://me/secret/a.bin", "or it is private"),
            ("hf://me/gated/a.bin", "me/gated is gated. Ask for access"),
            ("hf://me/model@nothing/a.bin", "me/model has no revision nothing"),
            ("hf://me/model/nothing", "me/model has no file nothing"),
        ],
    )
    def test_what_is_not_there_or_not_for_us(self, here: HubServer, url: str, says: str) -> None:
        here.add_repo("me/model", {"a.bin": b"a"})
        here.add_repo("me/secret", {"a.bin": b"a"}, private=True)
        here.add_repo("me/gated", {"a.bin": b"a"}, gated="auto")
        with pytest.raises(UnreadableError, match=says) as caught:
            opened_file(url)
        assert str(caught.value).startswith(url)

    def test_a_token_that_cannot_be_one_is_not_shown(self, here: HubServer) -> None:
        with pytest.raises(ChoiceError, match="characters that no token has") as caught:
            opened_file("hf://me/model/a.bin", token="hf_secret\nvalue")
        assert "secret" not in str(caught.value)


FAULTS = [
    Status(500),
    Status(503),
    Drop(0),
    Drop(20_000),
    LoseReply(),
    Status(403),
    IgnoreRange(),
    WrongRange(),
    WrongBytes(),
]


class TestFolders:
    @pytest.fixture(autouse=True)
    def _model(self, here: HubServer) -> None:
        here.add_repo(
            "me/model", {"config.json": b"{}", "unet/a.bin": DATA, "unet/deep/b.bin": b"b", "vae/c.bin": b"c"}
        )

    def test_a_repository(self, here: HubServer) -> None:
        folder = open_url("hf://me/model")
        assert isinstance(folder, HubFolder)
        assert folder.files == {"config.json": 2, "unet/a.bin": len(DATA), "unet/deep/b.bin": 1, "vae/c.bin": 1}
        assert (folder.name, folder.entry, str(folder.stem), folder.nbytes) == ("hf://me/model", "", "model", 0)
        assert here.log.count() == 1
        source = folder.open("unet/a.bin")
        assert read(source, 1_000_000, 10) == DATA[1_000_000:1_000_010]
        assert folder.open("unet/a.bin") is source
        assert folder.nbytes == len(DATA)
        with pytest.raises(UnreadableError, match="other: is not there at commit"):
            folder.open("other")
        folder.close()

    def test_a_directory_of_one(self, here: HubServer) -> None:
        folder = open_url("hf://me/model/unet")
        assert isinstance(folder, HubFolder)
        assert list(folder.files) == ["a.bin", "deep/b.bin"]
        assert read(folder.open("deep/b.bin"), 0, 1) == b"b"

    def test_an_index(self, here: HubServer) -> None:
        here.add_files("me/model", {"unet/model.safetensors.index.json": b"{}"})
        folder = open_url("hf://me/model/unet/model.safetensors.index.json")
        assert isinstance(folder, HubFolder)
        assert folder.entry == "model.safetensors.index.json"
        assert read(folder.open(folder.entry), 0, 2) == b"{}"

    def test_all_files_are_of_one_commit(self, here: HubServer) -> None:
        folder = open_url("hf://me/model", revision="main")
        assert isinstance(folder, HubFolder)
        here.add_files("me/model", {"vae/c.bin": b"new"})
        assert read(folder.open("vae/c.bin"), 0, 1) == b"c"
        folder.check_unchanged()

    def test_it_knows_for_whom_it_is(self, here: HubServer) -> None:
        here.add_repo("me/secret", {"a.bin": b"a"}, private=True, gated="auto")
        folder = open_url("hf://me/secret", token=here.token)
        assert isinstance(folder, HubFolder)
        assert (folder.private, folder.gated) == (True, True)
        with pytest.raises(UnreadableError, match="no repository me/secret on the Hub, or it is private"):
            open_url("hf://me/secret")

    @pytest.mark.parametrize("route", ["hub.info", "hub.resolve"])
    def test_trouble_that_passes(self, here: HubServer, route: str) -> None:
        here.fail(route, Status(503), times=2)
        folder = open_url("hf://me/model")
        assert isinstance(folder, HubFolder)
        assert read(folder.open("vae/c.bin"), 0, 1) == b"c"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch zip of 4 MB with checksums."""
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    generator = torch.Generator().manual_seed(0)
    torch.save({f"layer{n}.weight": torch.randn(500, 500, generator=generator) for n in range(4)}, path)
    return path


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS, ids=repr)
    def test_the_right_file_or_none_whichever_call_fails(
        self, here: HubServer, saved: Path, tmp_path: Path, fault: Fault
    ) -> None:
        here.add_repo("me/model", {"model.pt": saved.read_bytes()})
        output = tmp_path / "out.safetensors"
        sdconvert.convert("hf://me/model/model.pt", output)
        calls, whole = here.log.count(), output.read_bytes()
        outcomes = []
        for nth in range(1, calls + 1):
            output.unlink(missing_ok=True)
            here.rules.clear()
            here.fail("*", fault, nth=nth)
            try:
                sdconvert.convert("hf://me/model/model.pt", output)
                outcomes.append("done")
                assert output.read_bytes() == whole
            except SdconvertError as error:
                outcomes.append(str(error))
                assert list(tmp_path.iterdir()) == []
                assert len(str(error).splitlines()) == 1
        passes = isinstance(fault, Drop | LoseReply) or (isinstance(fault, Status) and fault.status != 403)
        if passes:
            assert set(outcomes) == {"done"}
        elif isinstance(fault, IgnoreRange | WrongRange | WrongBytes):
            assert "done" not in outcomes[1:]  # The first call is the HEAD, which has no range.


class TestCost:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_a_look_at_200_mb_takes_few_requests(self, here: HubServer, tmp_path: Path, zipped: bool) -> None:
        path = tmp_path / "model.bin"
        tensors = {f"layers.{n}.weight": torch.zeros(256, 768) for n in range(271)}
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        assert path.stat().st_size > 200e6
        here.add_repo("me/model", {"pytorch_model.bin": path.read_bytes()})
        with sdconvert.open("hf://me/model/pytorch_model.bin") as opened:
            assert len(opened.state_dict) == 271
        assert here.log.count() <= 6, str(here.log)
        assert here.log.sent() <= 512 << 10, str(here.log)

    def test_the_command_that_looks_takes_no_more(self, here: HubServer, tmp_path: Path) -> None:
        path = tmp_path / "model.bin"
        torch.save({f"layers.{n}.weight": torch.zeros(256, 768) for n in range(271)}, path)
        here.add_repo("me/model", {"pytorch_model.bin": path.read_bytes()})
        done = here.run(["-m", "sdconvert", "inspect", "hf://me/model", "--json"])
        assert len(json.loads(done.stdout)["tensors"]) == 271, done.stderr
        assert here.log.count() <= 6, str(here.log)
        assert here.log.sent() <= 512 << 10, str(here.log)

    def test_a_training_checkpoint_costs_its_weights(self, here: HubServer, tmp_path: Path) -> None:
        model = torch.nn.Sequential(*(torch.nn.Linear(700, 700) for _ in range(16)))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(2, 700)).sum().backward()
        optimizer.step()
        path = tmp_path / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)
        here.add_repo("me/model", {"checkpoint.pt": path.read_bytes()})
        report = sdconvert.convert("hf://me/model/checkpoint.pt", tmp_path / "out.safetensors")
        assert path.stat().st_size > 2.9 * report.nbytes
        assert here.log.sent() <= 1.02 * report.nbytes, (here.log.sent() / report.nbytes, str(here.log))
        assert sdconvert.digest(tmp_path / "out.safetensors") == sdconvert.digest(path)


class TestOtherContainers:
    """The same weights from every container, read from afar as from the disk."""

    @pytest.fixture
    def tensors(self) -> dict[str, torch.Tensor]:
        shared = torch.randn(300, 400)
        return {"a.w": shared, "a.t": shared.t(), "b.w": torch.randn(1000), "tie.w": shared, "none.w": torch.zeros(0)}

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_torch_files(self, here: HubServer, tmp_path: Path, tensors: dict[str, torch.Tensor], zipped: bool) -> None:
        torch.save(tensors, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
        self.compare(here, tmp_path / "model.pt", tmp_path)

    def test_safetensors(self, here: HubServer, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
        contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, tmp_path / "model.safetensors", {"format": "pt"})
        self.compare(here, tmp_path / "model.safetensors", tmp_path)

    def test_a_deflated_zip(self, here: HubServer, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
        torch.save(tensors, tmp_path / "stored.pt")
        with (
            zipfile.ZipFile(tmp_path / "stored.pt") as stored,
            zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as deflated,
        ):
            for name in stored.namelist():
                deflated.writestr(name, stored.read(name))
        self.compare(here, tmp_path / "model.pt", tmp_path)

    def compare(self, here: HubServer, path: Path, folder: Path) -> None:
        here.add_repo("me/model", {path.name: path.read_bytes()})
        url = f"hf://me/model/{path.name}"
        sdconvert.convert(url, folder / "far.safetensors")
        sdconvert.convert(path, folder / "near.safetensors")
        assert (folder / "far.safetensors").read_bytes() == (folder / "near.safetensors").read_bytes()
        assert sdconvert.verify(url, folder / "far.safetensors").equal
        assert sdconvert.digest(url) == sdconvert.digest(path)


def test_the_command_line(here: HubServer, tmp_path: Path) -> None:
    torch.save({"a.w": torch.randn(400, 400)}, tmp_path / "model.pt")
    here.add_repo("me/model", {"model.pt": (tmp_path / "model.pt").read_bytes()}, private=True)
    argv = ["-m", "sdconvert", "to-safetensors", "hf://me/model/model.pt"]
    refused = here.run(argv, cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("sdconvert: error: hf://me/model/model.pt: there is no repository me/model")
    done = here.run(argv, token=here.token, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sdconvert.digest(tmp_path / "model.safetensors") == sdconvert.digest(tmp_path / "model.pt")


def test_a_record_whose_own_header_is_another_is_found_when_it_is_read(here: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(100_000), "b": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("model/data/1").header_offset
    data = bytearray(path.read_bytes())
    data[at + 30 + 8] ^= 1  # A letter of the name in the local header.
    here.add_repo("me/model", {"model.pt": bytes(data)})
    with sdconvert.open("hf://me/model/model.pt") as opened:
        assert len(opened.state_dict) == 2
    with pytest.raises(UnreadableError, match="its own header and the zip directory differ in name"):
        sdconvert.convert("hf://me/model/model.pt", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_legacy_storage_of_another_length_is_found_when_it_is_read(here: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(100_000), "b": torch.zeros(100_000)}, path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    data[-400_008] ^= 1
    here.add_repo("me/model", {"model.pt": bytes(data)})
    with sdconvert.open("hf://me/model/model.pt") as opened:
        assert len(opened.state_dict) == 2
    with pytest.raises(UnreadableError, match="100001 elements, 100000 were announced"):
        sdconvert.convert("hf://me/model/model.pt", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
