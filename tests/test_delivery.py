"""Outputs that go to a store: whole or not at all, compared with what arrived."""

from __future__ import annotations

import os
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
