"""torch.distributed checkpoints: what torch's ranks wrote is what torch's reader gives, and lies are refused."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import sdconvert
from sdconvert.formats.dcp_metadata import read_metadata
from sdconvert.limits import DEFAULT_LIMITS
from sdconvert.source import FileSource
from tests.outputs import contents, same

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `dcp_writers`, made once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "dcp-of-four-ranks"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            command = [sys.executable, "-m", "tests.formats.dcp_writers", str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            (folder / "log").write_text(done.stderr)
            (folder / "code").write_text(str(done.returncode))
    assert (folder / "code").read_text() == "0", (folder / "log").read_text()[-3000:]
    return folder


CASES = [
    ("fsdp2", "model", "model"),
    ("hybrid", "model", "model"),
    ("fsdp1", "state_dict", "state_dict"),
    ("many_files", "model", "model"),
    ("in_safetensors", "model", "model"),
    ("mesh", "", None),
    ("huggingface", "", None),
]


# Of a member of an enumeration, Python 3.11.0 to 3.11.3 keeps the name of getattr.
ENUMS = {"builtins.getattr"} if (3, 11) <= sys.version_info < (3, 11, 4) else set()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key", "below"), CASES)
def test_what_four_ranks_wrote(name: str, key: str, below: str | None, written: Path, tmp_path: Path) -> None:
    truth = torch.load(written / f"{name}.truth.pt", weights_only=True)
    output = tmp_path / "o.safetensors"
    report = sdconvert.convert(written / name, output)
    assert report.container == ("dcp-safetensors" if name == "huggingface" else "dcp")
    assert report.key == key
    assert same(contents(output), truth if below is None else truth[below])
    assert set(report.unknown_globals) <= ENUMS


@pytest.mark.slow
def test_parts_are_really_in_parts(written: Path) -> None:
    """The tests above would pass on whole tensors too, so: four ranks, uneven rows, columns, and empty parts."""
    with sdconvert.open(written / "fsdp2") as opened:
        state = opened.state_dict
        assert [piece.shape for piece in state["body.1.weight"].pieces] == [(2, 16)] * 3 + [(1, 16)]
        assert len(state["body.2.weight"].pieces) == 3  # Three rows: the fourth rank has none.
    with sdconvert.open(written / "mesh") as opened:
        pieces = opened.state_dict["large.columns"].pieces
        assert len(pieces) == 4
        assert pieces[0].at_strides == (1030, 1)
        assert len({piece.storage.source for piece in pieces}) == 4


@pytest.mark.slow
def test_what_is_not_weights_is_left_out_and_written_as_extras(written: Path, tmp_path: Path) -> None:
    report = sdconvert.convert(written / "fsdp2", tmp_path / "o.safetensors", extras=tmp_path / "extras.json")
    assert {skipped.name: skipped.why for skipped in report.skipped}["optim"] == "training state"
    extras = json.loads((tmp_path / "extras.json").read_text())
    assert extras["epoch"] == 7
    assert extras["history"] == [{"loss": 0.5}]


@pytest.mark.slow
def test_the_optimizer_can_be_had_by_its_key(written: Path) -> None:
    truth = torch.load(written / "fsdp2.truth.pt", weights_only=True)["optim"]["state"]["norm.weight"]
    with sdconvert.open(written / "fsdp2") as opened:
        assert set(opened.extract("optim.state.norm.weight")) == set(truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "mesh", "many_files"])
def test_any_flipped_bit_of_a_chunk_is_found(name: str, written: Path, tmp_path: Path) -> None:
    """The checksums are those of the zip archives inside; all of each is checked, in rows or in columns."""
    for file in sorted((written / name).glob("*.distcp"))[:6]:
        shutil.copytree(written / name, tmp_path / "c")
        data = bytearray(file.read_bytes())
        with sdconvert.open(written / name) as opened:
            pieces = [piece for tensor in opened.state_dict.tensors.values() for piece in tensor.pieces]
        storages = {p.storage for p in pieces if p.storage.source.base.name.endswith(file.name)}  # type: ignore[attr-defined]
        if storages:
            storage = max(storages, key=lambda storage: storage.nbytes)
            data[storage.source.offset + storage.offset + storage.nbytes - 1] ^= 1  # type: ignore[attr-defined]
            (tmp_path / "c" / file.name).write_bytes(data)
            with pytest.raises(sdconvert.UnreadableError, match="checksum"):
                sdconvert.convert(tmp_path / "c", tmp_path / "o.safetensors")
        shutil.rmtree(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "huggingface"])
def test_a_missing_file_of_a_rank_is_named(name: str, written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / name, tmp_path / "c")
    victim = sorted(path for path in (tmp_path / "c").iterdir() if path.suffix in (".distcp", ".safetensors"))[1]
    victim.unlink()
    with pytest.raises(sdconvert.UnreadableError, match=victim.name if name == "fsdp2" else "some are missing"):
        sdconvert.convert(tmp_path / "c")


# One rank, no process group: what follows is about the files.

WEIGHTS = {"a.weight": torch.arange(12.0).reshape(4, 3), "b.weight": torch.arange(5), "c.scalar": torch.tensor(3.0)}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """`saved(obj)` is the folder of a checkpoint of it, as one rank writes it."""

    def save(obj: dict[str, Any]) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That there is only one rank, and more.
            dcp.save(obj, checkpoint_id=tmp_path / "ckpt", no_dist=True)
        return tmp_path / "ckpt"

    return save


@pytest.fixture
def lying(saved: Callable[..., Path]) -> Callable[..., Path]:
    """`lying(change)`: a checkpoint of `WEIGHTS` whose metadata was changed by a function."""

    def lie(change: Callable[[Metadata], None]) -> Path:
        folder = saved({"model": WEIGHTS, "epoch": 3})
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        change(metadata)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        return folder

    return lie


def test_strided_tensors_and_views_are_read_as_they_were(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    weights = {"t.w": base.t(), "part.w": base[1:3, 2:5], "conj.w": torch.randn(3, dtype=torch.complex64).conj()}
    sdconvert.convert(saved(weights), tmp_path / "o.safetensors")
    assert same(contents(tmp_path / "o.safetensors"), weights)


def test_a_lightning_checkpoint_has_the_rest_in_meta_pt(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved({"state_dict": WEIGHTS, "optimizer_0": {"state": {"a.weight": {"exp_avg": torch.ones(3)}}}})
    score = torch.tensor(0.5)
    torch.save({"epoch": 3, "hyper_parameters": {"lr": 0.1}, "callbacks": {"best": score}}, folder / "meta.pt")
    report = sdconvert.convert(folder, tmp_path / "o.safetensors", extras=tmp_path / "extras.json")
    assert (report.key, report.kind) == ("state_dict", "wrapped")
    assert same(contents(tmp_path / "o.safetensors"), WEIGHTS)
    assert json.loads((tmp_path / "extras.json").read_text())["meta.pt"]["hyper_parameters"] == {"lr": 0.1}


def test_training_state_beside_names_without_a_wrapper(saved: Callable[..., Path], tmp_path: Path) -> None:
    """As torchtitan saves: the model's names at the root, the optimizer below its own key."""
    folder = saved({**WEIGHTS, "optimizer": {"state.a.weight.exp_avg": torch.ones(3)}, "train_state": {"step": 3}})
    report = sdconvert.convert(folder, tmp_path / "o.safetensors")
    assert same(contents(tmp_path / "o.safetensors"), WEIGHTS)
    assert "optimizer" in {skipped.name for skipped in report.skipped}


def test_files_of_another_save_are_pointed_out(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved({"model": WEIGHTS})
    (folder / "__7_0.distcp").write_bytes(b"left over")
    report = sdconvert.convert(folder, tmp_path / "o.safetensors")
    assert any("__7_0.distcp: not a part of this checkpoint" in warning for warning in report.warnings)


def test_empty_files_of_a_writer_with_many_threads_are_nothing_to_speak_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": WEIGHTS}, storage_writer=dcp.FileSystemWriter(tmp_path / "c", thread_count=8), no_dist=True)
    assert 0 in {path.stat().st_size for path in (tmp_path / "c").glob("*.distcp")}
    report = sdconvert.convert(tmp_path / "c")
    assert report.warnings == ()
    assert same(contents(tmp_path / "c.safetensors"), WEIGHTS)


def test_the_metadata_is_never_unpickled(saved: Callable[..., Path], tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "harm"),))

    folder = saved({"model": WEIGHTS})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.storage_meta = Harm()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    report = sdconvert.convert(folder, tmp_path / "o.safetensors")
    assert not (tmp_path / "harm").exists()
    assert "posix.mkdir" in report.unknown_globals
    assert same(contents(tmp_path / "o.safetensors"), WEIGHTS)


def _info(metadata: Metadata, name: str) -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == f"model.{name}")


def _chunk(metadata: Metadata, name: str) -> Any:
    return metadata.state_dict_metadata[f"model.{name}"].chunks[0]


def _set(name: str, **fields: Any) -> Callable[[Metadata], None]:
    """A lie about the place of a tensor."""

    def change(metadata: Metadata) -> None:
        for field, value in fields.items():
            object.__setattr__(_info(metadata, name), field, value)

    return change


def _tensor(name: str, **fields: Any) -> Callable[[Metadata], None]:
    """A lie about a tensor."""

    def change(metadata: Metadata) -> None:
        about = metadata.state_dict_metadata[f"model.{name}"]
        for field, value in fields.items():
            setattr(about.properties if field == "dtype" else about, field, value)

    return change


def _same_place(metadata: Metadata) -> None:
    for field in ("offset", "length"):
        object.__setattr__(_info(metadata, "b.weight"), field, getattr(_info(metadata, "a.weight"), field))


def _chunk_twice(metadata: Metadata) -> None:
    about = metadata.state_dict_metadata["model.a.weight"]
    about.chunks.append(ChunkStorageMetadata(torch.Size([2, 0]), torch.Size([4, 3])))
    about.size = torch.Size([6, 3])
    metadata.storage_data[MetadataIndex("model.a.weight", [2, 0])] = _info(metadata, "b.weight")


def _no_place(metadata: Metadata) -> None:
    metadata.storage_data = {i: s for i, s in metadata.storage_data.items() if i.fqn != "model.a.weight"}


def _other_place(metadata: Metadata) -> None:
    metadata.storage_data[MetadataIndex("model.ghost", [0])] = _info(metadata, "a.weight")


def _no_chunks(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.a.weight"].chunks = []
    _no_place(metadata)


def _path_conflict(metadata: Metadata) -> None:
    metadata.planner_data["model.b.weight"] = ("model", "a.weight", "deeper")


def _same_path(metadata: Metadata) -> None:
    metadata.planner_data["model.b.weight"] = ("model", "a.weight")


LIES: dict[str, tuple[Callable[[Metadata], None], str]] = {
    "a path outside": (_set("a.weight", relative_path="../../etc/passwd"), "1 of 2 files are not there"),
    "an absolute path": (_set("a.weight", relative_path="/etc/passwd"), "not there: /etc/passwd"),
    "a path that is none": (_set("a.weight", relative_path=7), "not a file, an offset and a length"),
    "a file that is there by another name": (_set("a.weight", relative_path="./__0_0.distcp"), "not there"),
    "the metadata as data": (_set("a.weight", relative_path=".metadata", offset=0, length=64), "a.weight"),
    "an offset past the end": (_set("a.weight", offset=1 << 40), "has only"),
    "a negative offset": (_set("a.weight", offset=-1), "not a file, an offset and a length"),
    "a length past the end": (_set("c.scalar", length=1 << 62), "has only"),
    "a length too short": (_set("a.weight", length=100), "a.weight: __0_0.distcp"),
    "a length of nothing": (_set("a.weight", length=0), "is empty"),
    "an offset between items": (_set("a.weight", offset=17), "a.weight"),
    "an extension": (_set("a.weight", transform_descriptors=["stream.zstd"]), "through an extension"),
    "two tensors in one place": (_same_place, "overlap in|lies where it does"),
    "a chunk of another dtype": (_tensor("a.weight", dtype=torch.float64), "do not belong together"),
    "a dtype that is none": (_tensor("a.weight", dtype="float32"), "str is not a dtype"),
    "a larger shape": (_tensor("a.weight", size=torch.Size([5, 3])), "fill 12 of 15 elements"),
    "a smaller shape": (_tensor("a.weight", size=torch.Size([4, 2])), "reaches outside"),
    "a huge shape": (_tensor("a.weight", size=torch.Size([1 << 40, 1 << 40])), "more than 64 bits"),
    "other dimensions": (_tensor("a.weight", size=torch.Size([12])), "has 2 dimensions, it has 1"),
    "a shape that is none": (_tensor("a.weight", size="large"), "not a tuple"),
    "a negative size": (_tensor("a.weight", size=(-4, 3)), "not a whole number"),
    "chunks that are none": (_tensor("a.weight", chunks=7), "not a list"),
    "overlapping chunks": (_chunk_twice, "overlap|do not belong together"),
    "no chunks": (_no_chunks, "no chunks"),
    "a chunk without a place": (_no_place, "nothing says where its chunk"),
    "a place without a tensor": (_other_place, "nothing is said of it"),
    "a chunk somewhere else": (
        lambda metadata: setattr(_chunk(metadata, "a.weight"), "offsets", torch.Size([1, 0])),
        "nothing says where",
    ),
    "a chunk of another shape": (
        lambda metadata: setattr(_chunk(metadata, "a.weight"), "sizes", torch.Size([3, 4])),
        "do not belong together",
    ),
    "a path through a tensor": (_path_conflict, "lies on its path"),
    "a path twice": (_same_path, "two of this name"),
    "no storage data": (lambda metadata: setattr(metadata, "storage_data", None), "storage_data is not a dict"),
    "no tensors": (lambda metadata: setattr(metadata, "state_dict_metadata", [1]), "state_dict_metadata is not"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_in_one_line(name: str, lying: Callable[..., Path]) -> None:
    change, message = LIES[name]
    folder = lying(change)
    with pytest.raises(sdconvert.SdconvertError, match=message) as caught:
        sdconvert.convert(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert not list(folder.parent.glob("*.safetensors*"))


def test_a_huge_list_index_costs_nothing(lying: Callable[..., Path], tmp_path: Path) -> None:
    def change(metadata: Metadata) -> None:
        metadata.planner_data["epoch"] = ("history", (1 << 31) - 1)

    report = sdconvert.convert(lying(change), tmp_path / "o.safetensors")
    assert report.tensors == 3


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(fraction: float, saved: Callable[..., Path]) -> None:
    folder = saved({"model": WEIGHTS})
    for file in (".metadata", "__0_0.distcp"):
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * fraction)])
        with pytest.raises(sdconvert.UnreadableError):
            sdconvert.convert(folder)
        (folder / file).write_bytes(data)


def test_without_its_metadata_it_is_named(saved: Callable[..., Path]) -> None:
    folder = saved({"model": WEIGHTS})
    (folder / ".metadata").rename(folder / "__0.metadata")
    with pytest.raises(sdconvert.UnsupportedError, match="each rank saved by itself"):
        sdconvert.convert(folder)
    (folder / "__0.metadata").unlink()
    with pytest.raises(sdconvert.UnreadableError, match=r"\.metadata is missing"):
        sdconvert.convert(folder)


def test_a_metadata_of_something_else_is_refused(saved: Callable[..., Path]) -> None:
    folder = saved({"model": WEIGHTS})
    for other in (pickle.dumps({"state_dict_metadata": {}}), pickle.dumps(Metadata({})) + b"more", b"not a pickle"):
        (folder / ".metadata").write_bytes(other)
        with pytest.raises(sdconvert.UnreadableError, match=r"\.metadata: "):
            sdconvert.convert(folder)


def test_safetensors_shards_say_where_their_parts_belong(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def shard(rank: int, offsets: object) -> None:
        info = {"DCP_SHARDING_INFO": offsets if isinstance(offsets, str) else json.dumps(offsets)}
        save_file(
            {"a.weight": torch.ones(2, 3) * rank}, tmp_path / f"shard-0000{rank}-model-00001-of-00001.safetensors", info
        )

    shard(1, {"a.weight": {"saved_offsets": [0, 0]}})
    for wrong, message in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "not a JSON object"),
        ({}, "does not say which part"),
        ({"a.weight": {}}, "not a list"),
        ({"a.weight": {"saved_offsets": [-2, 0]}}, "not a whole number"),
        ({"a.weight": {"saved_offsets": [2]}}, "differ in dimensions"),
        ({"a.weight": {"saved_offsets": [1, 0]}}, "overlap"),
        ({"a.weight": {"saved_offsets": [3, 0]}}, "some are missing"),
        ({"a.weight": {"saved_offsets": [1 << 62, 1 << 62]}}, "more than 64 bits"),
    ):
        shard(2, wrong)
        with pytest.raises(sdconvert.UnreadableError, match=message):
            sdconvert.convert(tmp_path, tmp_path / "o.safetensors")
    shard(2, {"a.weight": {"saved_offsets": [2, 0]}})
    report = sdconvert.convert(tmp_path, tmp_path / "o.safetensors")
    assert any("do not say how many ranks" in warning for warning in report.warnings)
    assert contents(tmp_path / "o.safetensors")["a.weight"][:, 0].tolist() == [1, 1, 2, 2]


def test_metadata_of_many_chunks_takes_little_memory(tmp_path: Path) -> None:
    chunks = 8_000
    zeros = [torch.Size([16 * number, 0]) for number in range(chunks)]
    metadata = Metadata(
        {
            "w": TensorStorageMetadata(
                TensorProperties(torch.bfloat16),
                torch.Size([16 * chunks, 4]),
                [ChunkStorageMetadata(at, torch.Size([16, 4])) for at in zeros],
            )
        },
        storage_data={
            MetadataIndex("w", at, number): _StorageInfo(f"__{number % 64}_0.distcp", 1500 * number, 1500)
            for number, at in enumerate(zeros)
        },
    )
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    tracemalloc.start()
    try:
        saved = read_metadata(FileSource(tmp_path / ".metadata"), DEFAULT_LIMITS).saved
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(saved["w"].chunks) == chunks  # type: ignore[union-attr]
    assert peak < 1900 * chunks, f"{peak / chunks:.0f} bytes a chunk"
