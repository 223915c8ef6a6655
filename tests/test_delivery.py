"""Outputs that go to a store: whole or not at all, compared with what arrived."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from sdconvert.batch import Job, Options, convert_many

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({"w": torch.randn(100, 30), "b": torch.arange(5)}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> bytes:
    sdconvert.convert(source, tmp_path / "expected.safetensors")
    return (tmp_path / "expected.safetensors").read_bytes()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that speaks S3, and a bucket on it."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto's server is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("weights")
    yield "s3://weights"
    server.stop()
    for key, value in before.items():
        os.environ.pop(key)
        if value is not None:
            os.environ[key] = value


@pytest.fixture(params=["memory", "s3", "file", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store, or of a directory."""
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return "memory://place"
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return f"{request.param}://{tmp_path}/store"


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def names(store: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(store)
    fs.invalidate_cache()
    return sorted(Path(name).name for name in fs.find(path))


def test_what_arrives_is_what_a_local_conversion_gives(store: str, source: Path, expected: bytes) -> None:
    url = f"{store}/deep/model.safetensors"
    report = sdconvert.convert(source, url)
    assert [(output.path, output.nbytes) for output in report.outputs] == [(url, len(expected))]
    with fsspec.open(url, "rb") as file:
        assert file.read() == expected
    assert names(store) == ["model.safetensors"]


def test_what_is_there_is_replaced_only_when_asked(store: str, source: Path, expected: bytes) -> None:
    url = f"{store}/model.safetensors"
    with fsspec.open(f"{store}/model.safetensors", "wb", auto_mkdir=True) as file:
        file.write(b"something else")
    with pytest.raises(sdconvert.OutputError, match="exists already"):
        sdconvert.convert(source, url)
    sdconvert.convert(source, url, overwrite=True)
    with fsspec.open(url, "rb") as file:
        assert file.read() == expected


def test_a_refused_source_sends_nothing(store: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"\x80\x02nothing")
    with pytest.raises(sdconvert.UnreadableError):
        sdconvert.convert(bad, f"{store}/model.safetensors")
    assert names(store) == []


def test_a_dry_run_sends_nothing(store: str, source: Path) -> None:
    sdconvert.convert(source, f"{store}/model.safetensors", dry_run=True)
    assert names(store) == []


def test_a_store_that_loses_bytes_is_found_out(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    put = type(fs).put_file

    def losing(self: Any, local: str, target: str, **options: Any) -> None:
        put(self, local, target, **options)
        data = bytearray(self.cat_file(target))
        data[-1] ^= 1
        self.pipe_file(target, bytes(data))

    monkeypatch.setattr(type(fs), "put_file", losing)
    with pytest.raises(sdconvert.OutputError, match="reads back differently"):
        sdconvert.convert(source, "memory://place/model.safetensors")
    assert fs.find("/place") == []


def test_an_upload_that_fails_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("file")

    def failing(self: Any, local: str, target: str, **options: Any) -> None:
        Path(target).write_bytes(Path(local).read_bytes()[:100])
        raise ConnectionResetError("the line went dead")

    monkeypatch.setattr(type(fs), "put_file", failing)
    with pytest.raises(sdconvert.OutputError, match="the line went dead"):
        sdconvert.convert(source, f"file://{tmp_path}/store/model.safetensors")
    assert list((tmp_path / "store").iterdir()) == []


def put(url: str, data: bytes = b"old") -> None:
    with fsspec.open(url, "wb", auto_mkdir=True) as file:
        file.write(data)


@pytest.mark.parametrize(
    "old", ["model-00001-of-00009.safetensors", "model.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"dry_run": True}], ids=["new", "overwrite", "dry"])
def test_shards_of_an_earlier_run_are_no_neighbours(
    store: str, source: Path, old: str, options: dict[str, Any]
) -> None:
    put(f"{store}/out/{old}")
    if "fp16" in old:  # Another variant's: whoever reads the output does not look at it.
        sdconvert.convert(source, f"{store}/out/model.safetensors", **options)
        return
    with pytest.raises(sdconvert.OutputError, match="would be taken for a part") as caught:
        sdconvert.convert(source, f"{store}/out/model.safetensors", **options)
    assert str(caught.value).startswith(f"{store}/out/{old}: ")
    assert names(store) == [old]


def test_a_file_of_an_earlier_run_is_no_neighbour_of_shards(store: str, source: Path) -> None:
    put(f"{store}/out/model.safetensors")
    put(f"{store}/out/model-00003-of-00003.safetensors")
    with pytest.raises(sdconvert.OutputError, match="would be taken for a part"):
        sdconvert.convert(source, f"{store}/out/model.safetensors", max_shard_size=100, overwrite=True)
    assert len(names(store)) == 2


def test_other_files_are_no_trouble(store: str, source: Path) -> None:
    others = ["model-old.safetensors", "models-00001-of-00002.safetensors", "x.bin", "model-00001-of-00002.bin"]
    for name in [*others, "deep/model-00001-of-00009.safetensors", "model/model-00001-of-00009.safetensors"]:
        put(f"{store}/out/{name}")
    sdconvert.convert(source, f"{store}/out/model.safetensors", max_shard_size=100)
    assert len(names(f"{store}/out")) == 6 + 3


def test_shards_replace_those_of_the_same_names(store: str, source: Path) -> None:
    first = sdconvert.convert(source, f"{store}/model.safetensors", max_shard_size=100)
    sdconvert.convert(source, f"{store}/model.safetensors", max_shard_size=100, overwrite=True)
    assert len(names(store)) == len(first.outputs) == 3


def test_a_store_that_shows_nothing_of_what_it_has(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any, *args: Any, **options: Any) -> None:
        raise PermissionError("may not list")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", failing)
    with pytest.raises(sdconvert.OutputError, match="cannot be looked at: may not list"):
        sdconvert.convert(source, "memory://place/model.safetensors")


def test_the_source_is_not_overwritten_where_it_lies(store: str, source: Path) -> None:
    url = f"{store}/model.safetensors"
    put(url, source.read_bytes())
    with pytest.raises(sdconvert.OutputError, match="is the source itself"):
        sdconvert.convert(url, url, overwrite=True)
    with fsspec.open(url, "rb") as file:
        assert file.read() == source.read_bytes()


def test_nor_is_a_source_that_would_become_one_of_the_shards(store: str, source: Path) -> None:
    url = f"{store}/model-00002-of-00002.pt"
    put(url, source.read_bytes())
    with pytest.raises(sdconvert.OutputError, match="is the source itself"):
        sdconvert.convert(url, f"{store}/model.pt", max_shard_size=100, overwrite=True)
    assert names(store) == ["model-00002-of-00002.pt"]


def test_nor_the_archive_that_it_is_in(store: str, source: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(source, "model.pt")
    put(f"{store}/all.zip", (tmp_path / "all.zip").read_bytes())
    with pytest.raises(sdconvert.OutputError, match="is the source itself"):
        sdconvert.convert(f"zip://model.pt::{store}/all.zip", f"{store}/all.zip", format="pt", overwrite=True)


def test_a_path_is_not_overwritten_by_its_url(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(sdconvert.OutputError, match="is the source itself"):
        sdconvert.convert(source, f"file://{source}", overwrite=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "word"), [("nowhere://x/model.safetensors", "Protocol not known"), ("memory://", "names no file")]
)
def test_urls_that_lead_nowhere(url: str, word: str, source: Path) -> None:
    with pytest.raises(sdconvert.SdconvertError, match=word):
        sdconvert.convert(source, url, format="safetensors")


def test_a_batch_delivers_too(store: str, source: Path, expected: bytes) -> None:
    job = Job(str(source), f"{store}/model.safetensors", Options())
    summary = convert_many([job], workers=1) if not store.startswith("memory") else _here(job)
    assert summary.ok, summary.failures
    with fsspec.open(job.output, "rb") as file:
        assert file.read() == expected


def _here(job: Job) -> Any:
    """In this process: another one has another memory."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        return convert_many([job], executor=executor)
