"""What came from the Hub is the file that the Hub knows, or it is an error, or it is said that nobody can tell."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import sdconvert
from sdconvert.errors import SdconvertError, UnreadableError
from sdconvert.remote.proof import Proof
from tests.hub_server import FileServer, HubServer, WrongBytes
from tests.hub_server.store import git_sha1

DATA = random.Random(5).randbytes(300_000)


def never(offset: int, buffer: memoryview) -> None:
    raise AssertionError(f"bytes {offset} to {offset + len(buffer)} were fetched again")


def right(offset: int, buffer: memoryview) -> None:
    buffer[:] = DATA[offset : offset + len(buffer)]


def proof() -> Proof:
    return Proof(hashlib.sha256(DATA).hexdigest(), len(DATA))


def parts(cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, len(DATA), *cuts})
    return list(pairwise(edges))


class TestTheDigest:
    @given(st.lists(st.integers(0, len(DATA)), max_size=30), st.randoms(use_true_random=False))
    def test_in_any_order(self, cuts: list[int], order: random.Random) -> None:
        ranges = parts(cuts)
        order.shuffle(ranges)
        one = proof()
        for begin, end in ranges:
            one.saw(begin, memoryview(DATA)[begin:end])
        one.finish(never)
        assert one.doubt == ""

    @given(st.lists(st.integers(0, len(DATA)), max_size=10), st.integers(0, len(DATA) - 1), st.randoms())
    def test_one_wrong_byte_anywhere(self, cuts: list[int], wrong: int, order: random.Random) -> None:
        data = bytearray(DATA)
        data[wrong] ^= 1
        ranges = parts(cuts)
        order.shuffle(ranges)
        one = proof()
        for begin, end in ranges:
            one.saw(begin, memoryview(data)[begin:end])
        with pytest.raises(UnreadableError, match="the bytes that came are not those of the file"):
            one.finish(never)

    def test_from_many_threads(self) -> None:
        one = proof()
        ranges = parts(list(range(0, len(DATA), 1000)))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda span: one.saw(span[0], memoryview(DATA)[span[0] : span[1]]), ranges))
        one.finish(never)
        assert one.doubt == ""

    def test_the_id_of_git_too(self) -> None:
        one = Proof(git_sha1(DATA), len(DATA))
        one.saw(0, memoryview(DATA))
        one.finish(never)
        wrong = Proof(git_sha1(DATA[::-1]), len(DATA))
        wrong.saw(0, memoryview(DATA))
        with pytest.raises(UnreadableError):
            wrong.finish(never)

    def test_an_empty_file(self) -> None:
        Proof(hashlib.sha256(b"").hexdigest(), 0).finish(never)

    def test_a_little_that_nobody_read_is_fetched(self) -> None:
        one = proof()
        one.saw(100, memoryview(DATA)[100:150_000])
        one.saw(151_000, memoryview(DATA)[151_000:])
        one.finish(right)
        assert one.doubt == ""

    def test_much_that_nobody_read_is_not(self) -> None:
        one = proof()
        one.saw(100_000, memoryview(DATA)[100_000:])
        one.finish(never)
        assert one.doubt == "only a part of it was read"

    @pytest.mark.parametrize("again", [(0, 10), (150_000, 150_100), (0, 300_000), (299_999, 300_000)])
    def test_what_was_read_twice_may_have_been_wrong_once(self, again: tuple[int, int]) -> None:
        one = proof()
        one.saw(150_050, memoryview(DATA)[150_050:])
        one.saw(*(again[0], memoryview(DATA)[again[0] : again[1]]))
        one.saw(0, memoryview(DATA)[0:150_050])
        one.finish(never)
        assert one.doubt == "parts of it were read more than once"

    def test_what_waits_is_on_the_disk(self) -> None:
        """64 MiB that come backwards stay out of memory."""
        import tracemalloc

        piece = bytes(1 << 20)
        one = Proof(hashlib.sha256(piece * 64).hexdigest(), 64 << 20)
        tracemalloc.start()
        for at in reversed(range(0, 64 << 20, 1 << 20)):
            one.saw(at, memoryview(piece))
        one.finish(never)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 << 20

    def test_a_full_disk_is_a_doubt_and_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: object, data: bytes, at: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("sdconvert.inflated.Scratch.write", full)
        one = proof()
        one.saw(100, memoryview(DATA)[100:])
        one.saw(0, memoryview(DATA)[:100])
        one.finish(never)
        assert one.doubt == "there is no room to keep what came early: No space left on device"


TENSORS = {f"layer{n}.weight": torch.randn(400, 500, generator=torch.Generator().manual_seed(n)) for n in range(4)}


def as_safetensors(path: Path) -> None:
    save_file(TENSORS, path, {"format": "pt"})


def as_legacy(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def as_zip(path: Path) -> None:
    torch.save(TENSORS, path)


def as_zip_without_checksums(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, path)
    finally:
        torch.serialization.set_crc32_options(True)


def as_arrays(path: Path) -> None:
    path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in TENSORS.items()}))


def as_gzip(path: Path) -> None:
    as_legacy(path)
    path.write_bytes(gzip.compress(path.read_bytes(), 1))


KINDS = [as_safetensors, as_legacy, as_zip, as_zip_without_checksums, as_arrays, as_gzip]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
class TestEveryContainer:
    def test_all_is_checked_and_nothing_is_fetched_twice(
        self, here: HubServer, tmp_path: Path, kind: Callable[[Path], None]
    ) -> None:
        kind(tmp_path / "model.bin")
        data = (tmp_path / "model.bin").read_bytes()
        here.add_repo("me/model", {"model.bin": data})
        report = sdconvert.convert("hf://me/model/model.bin", tmp_path / "out.safetensors")
        assert not any("server" in warning for warning in report.warnings)
        assert here.log.sent() <= len(data) + 2000, str(here.log)

    def test_wrong_bytes_are_never_a_file(self, here: HubServer, tmp_path: Path, kind: Callable[[Path], None]) -> None:
        kind(tmp_path / "model.bin")
        here.add_repo("me/model", {"model.bin": (tmp_path / "model.bin").read_bytes()})
        output = tmp_path / "out.safetensors"
        sdconvert.convert("hf://me/model/model.bin", output)
        reads, whole = here.log.count("cdn.get"), output.read_bytes()
        assert reads
        for nth in range(1, reads + 1):
            output.unlink(missing_ok=True)
            here.rules.clear()
            here.fail("cdn.get", WrongBytes(), nth=nth)
            with pytest.raises(SdconvertError):
                sdconvert.convert("hf://me/model/model.bin", output)
            assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
            here.rules.clear()
            here.fail("cdn.get", WrongBytes(), nth=nth)
            with pytest.raises(SdconvertError):
                sdconvert.digest("hf://me/model/model.bin")
        assert whole


def test_shards_are_checked_one_by_one_and_their_index_too(here: HubServer, tmp_path: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": 2, "model-00002-of-00002.safetensors": 4}
    files, weight_map = {}, {}
    for name, end in shards.items():
        part = {f"layer{n}.weight": TENSORS[f"layer{n}.weight"] for n in range(end - 2, end)}
        save_file(part, tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
        weight_map |= dict.fromkeys(part, name)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    here.add_repo("me/model", files)
    output = tmp_path / "out" / "model.safetensors"
    output.parent.mkdir()
    assert sdconvert.convert("hf://me/model", output, max_shard_size=0).warnings == ()
    reads = here.log.count()
    for nth in range(2, reads + 1):
        output.unlink(missing_ok=True)
        here.rules.clear()
        here.fail("*", WrongBytes(), nth=nth)
        try:
            sdconvert.convert("hf://me/model", output, max_shard_size=0)
            assert here.log.entries()[-1].method in ("GET", "HEAD")  # The n-th call was a HEAD: nothing to spoil.
            assert sdconvert.verify(output, "hf://me/model").equal
        except SdconvertError:
            assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("kind", [as_safetensors, as_legacy], ids=lambda kind: kind.__name__)
def test_a_part_of_a_file_cannot_be_checked_and_that_is_said(
    here: HubServer, tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    kind(tmp_path / "model.bin")
    here.add_repo("me/model", {"model.bin": (tmp_path / "model.bin").read_bytes()})
    names = sdconvert.Names(include=("layer1.*",))
    report = sdconvert.convert("hf://me/model/model.bin", tmp_path / "out.safetensors", names=names)
    says = "the bytes that the server sent could not be checked: only a part of it was read"
    assert report.warnings == (says,)
    assert says in str(report)
    compared = sdconvert.verify("hf://me/model/model.bin", tmp_path / "out.safetensors", names=names)
    assert compared.equal
    assert compared.warnings == (f"hf://me/model/model.bin: {says}",)
    assert says in str(compared)


def test_a_part_of_a_zip_has_its_own_checksums(here: HubServer, tmp_path: Path) -> None:
    as_zip(tmp_path / "model.bin")
    here.add_repo("me/model", {"model.bin": (tmp_path / "model.bin").read_bytes()})
    names = sdconvert.Names(include=("layer1.*",))
    assert sdconvert.convert("hf://me/model/model.bin", tmp_path / "out.safetensors", names=names).warnings == ()


def test_a_server_that_tells_no_digest(file_server: FileServer, tmp_path: Path) -> None:
    as_safetensors(tmp_path / "model.safetensors")
    file_server.files["model.safetensors"] = (tmp_path / "model.safetensors").read_bytes()
    report = sdconvert.convert(file_server.url("model.safetensors"), tmp_path / "out.safetensors")
    assert report.warnings == ("the bytes that the server sent could not be checked: its server tells no checksum",)
    as_zip(tmp_path / "model.pt")
    file_server.files["model.pt"] = (tmp_path / "model.pt").read_bytes()
    assert sdconvert.convert(file_server.url("model.pt"), tmp_path / "zip.safetensors").warnings == ()


def test_a_small_file_that_is_not_in_lfs(here: HubServer, tmp_path: Path) -> None:
    save_file({"a": torch.randn(10)}, tmp_path / "small")
    here.settings.lfs_suffixes = ()
    here.add_repo("me/model", {"small.weights": (tmp_path / "small").read_bytes()})
    assert sdconvert.convert("hf://me/model/small.weights", tmp_path / "out.safetensors").warnings == ()
    (tmp_path / "out.safetensors").unlink()
    here.fail("hub.resolve", WrongBytes(), nth=2)
    with pytest.raises(SdconvertError):
        sdconvert.convert("hf://me/model/small.weights", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


class TestRevisions:
    @pytest.fixture(autouse=True)
    def _two(self, here: HubServer, tmp_path: Path) -> None:
        for value in (1.0, 2.0):
            save_file({"a": torch.full((3,), value)}, tmp_path / "m.safetensors")
            if "me/model" not in here.store.repos:
                here.add_repo("me/model", {}, private=True)
            here.add_files("me/model", {"model.safetensors": (tmp_path / "m.safetensors").read_bytes()})
        (tmp_path / "m.safetensors").unlink()

    def test_of_every_function(self, here: HubServer, tmp_path: Path) -> None:
        first = here.api(here.token).list_repo_commits("me/model")[1].commit_id
        options: dict[str, Any] = {"token": here.token, "revision": first}
        with sdconvert.open("hf://me/model", **options) as opened:
            assert len(opened.state_dict) == 1
        sdconvert.convert("hf://me/model", tmp_path / "out.safetensors", **options)
        assert not sdconvert.verify("hf://me/model", tmp_path / "out.safetensors", token=here.token).equal
        assert sdconvert.verify("hf://me/model", tmp_path / "out.safetensors", **options).equal
        assert len(sdconvert.inspect("hf://me/model", **options).tensors) == 1
        assert sdconvert.digest("hf://me/model", **options) == sdconvert.digest(tmp_path / "out.safetensors")

    def test_of_every_command(self, here: HubServer, tmp_path: Path) -> None:
        first = here.api(here.token).list_repo_commits("me/model")[1].commit_id
        flags = ["--revision", first, "--token", here.token]
        for argv in (
            ["to-safetensors", "hf://me/model", "a.safetensors", *flags],
            ["to-pt", "hf://me/model", "b.pt", *flags],
            ["verify", "hf://me/model", "a.safetensors", *flags],
            ["verify", "--digest", "hf://me/model", *flags],
            ["inspect", "hf://me/model", *flags],
        ):
            done = here.run(["-m", "sdconvert", *argv], cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert sdconvert.verify(tmp_path / "a.safetensors", tmp_path / "b.pt").equal

    def test_a_file_on_this_machine_has_none(self, tmp_path: Path) -> None:
        save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors")
        with pytest.raises(sdconvert.ChoiceError, match="has no revisions"):
            sdconvert.open(tmp_path / "m.safetensors", revision="main")


def test_a_digest_of_a_part_of_a_zip_is_held_to_its_checksums(here: HubServer, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    state = {"model": {"w": torch.randn(900, 900, generator=generator)}, "optimizer": {"m": torch.randn(2000, 2000)}}
    torch.save(state, tmp_path / "last.ckpt")
    here.add_repo("me/model", {"last.ckpt": (tmp_path / "last.ckpt").read_bytes()})
    assert sdconvert.digest("hf://me/model/last.ckpt") == sdconvert.digest(tmp_path / "last.ckpt")
    for nth in range(1, here.log.count("cdn.get") + 1):
        here.rules.clear()
        here.fail("cdn.get", WrongBytes(), nth=nth)
        with pytest.raises(SdconvertError):
            sdconvert.digest("hf://me/model/last.ckpt")
