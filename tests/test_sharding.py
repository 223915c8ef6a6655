"""The output in shards: what huggingface_hub would write, all of it or none, and never beside what is old."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import load_torch_model, save_torch_state_dict, split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st

import sdconvert
from sdconvert.sharding import parse_size
from tests.outputs import contents, header

Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"


def state(*sizes: int) -> Tensors:
    """Tensors of so many bytes, w0, w1, ..."""
    return {f"w{number}": torch.randint(256, (size,)).to(torch.uint8) for number, size in enumerate(sizes)}


def saved(tensors: Tensors, directory: Path) -> Path:
    torch.save(tensors, directory / "source.pt")
    return directory / "source.pt"


def written(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "source.pt")


def together(directory: Path) -> Tensors:
    """All tensors of the safetensors files of a directory, aliases restored by what each file says."""
    found: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= contents(path)
    return found


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    ties=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=4),
    most=st.integers(1, 60),
)
def test_names_grouping_and_index_are_those_of_huggingface_hub(
    sizes: list[int], ties: list[tuple[int, int]], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("split")
    tensors = state(*sizes)
    for first, second in ties:
        if first < second < len(sizes):
            tensors[f"w{second}"] = tensors[f"w{first}"]
    report = sdconvert.convert(saved(tensors, directory), directory, max_shard_size=most)
    # Without the other names of a tie, as save_torch_state_dict hands a state dict on.
    kept = {name: tensor for name, tensor in tensors.items() if name not in report.aliases}
    expected = split_torch_state_dict_into_shards(kept, max_shard_size=most)
    assert written(directory) == sorted([*expected.filename_to_tensors, *([INDEX] if expected.is_sharded else [])])
    for name, names in expected.filename_to_tensors.items():
        assert {name for name in header(directory / name) if name != "__metadata__"} == set(names)
    if expected.is_sharded:
        index = json.loads((directory / INDEX).read_text())
        assert index["metadata"] == expected.metadata | dict(report.aliases)
        assert list(index["weight_map"].items()) == list(expected.tensor_to_filename.items())
        assert sdconvert.verify(directory / "source.pt", directory / INDEX).equal
    assert together(directory).keys() == tensors.keys()


def test_files_and_index_are_to_the_byte_what_huggingface_hub_writes(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.weight": torch.randn(30, i + 1) for i in range(8)} | {"ß.bias": torch.zeros(3).half()}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    sdconvert.convert(saved(tensors, tmp_path), ours, max_shard_size=1500)
    save_torch_state_dict(tensors, theirs, max_shard_size=1500)
    assert written(ours) == written(theirs)
    assert len(written(ours)) > 3
    for name in written(ours):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_a_tie_is_written_once_and_said_in_its_shard_and_in_the_index(tmp_path: Path) -> None:
    weight = torch.randn(10)
    tensors = {"embed": weight, "mid": torch.randn(10), "head": weight, "last": torch.randn(10)}
    report = sdconvert.convert(saved(tensors, tmp_path), tmp_path, max_shard_size=40)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 120, "head": "embed"}
    assert "head" not in index["weight_map"]
    shards = [header(Path(one.path))["__metadata__"] for one in report.shards]
    assert shards == [{"format": "pt", "head": "embed"}, {"format": "pt"}, {"format": "pt"}]
    assert sdconvert.verify(tmp_path / "source.pt", tmp_path / INDEX).equal


def test_what_loads_shards_elsewhere_loads_ours(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(20, 8)
            self.inner = torch.nn.Linear(8, 8)
            self.head = torch.nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

    model, fresh = Model(), Model()
    sdconvert.convert(saved(model.state_dict(), tmp_path), tmp_path, max_shard_size=400)
    (tmp_path / "source.pt").unlink()
    outcome = load_torch_model(fresh, tmp_path)
    assert outcome.missing_keys == ["head.weight"]  # It is tied to what was loaded.
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_name_of_the_index_itself_is_kept_out_of_its_metadata(tmp_path: Path) -> None:
    weight = torch.randn(10)
    tensors = {"a": weight, "b": torch.randn(10), "total_size": weight, "format": weight}
    sdconvert.convert(saved(tensors, tmp_path), tmp_path, max_shard_size=50)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 80}
    assert index["weight_map"]["format"] == index["weight_map"]["a"]
    assert together(tmp_path).keys() == tensors.keys()
    with pytest.raises(sdconvert.ChoiceError, match="set by the index"):
        sdconvert.convert(
            tmp_path / "source.pt", tmp_path / "o.safetensors", max_shard_size=50, metadata={"total_size": "1"}
        )


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_pt_shards_are_torch_files_that_keep_their_ties(name: str, tmp_path: Path) -> None:
    weight = torch.randn(10)
    tensors = {"a": weight, "b": torch.randn(10), "c": weight}
    sdconvert.convert(saved(tensors, tmp_path), tmp_path / name, format="pt", max_shard_size=40)
    index = json.loads((tmp_path / f"{name}.index.json").read_text())
    stem, _, ending = name.partition(".")
    assert index == {
        "metadata": {"total_size": 80},
        "weight_map": {key: f"{stem}-0000{1 + (key == 'b')}-of-00002.{ending}" for key in "acb"},
    }
    first = torch.load(tmp_path / f"{stem}-00001-of-00002.{ending}", weights_only=True)
    assert list(first) == ["a", "c"]
    assert first["a"].data_ptr() == first["c"].data_ptr()
    report = sdconvert.convert(tmp_path / f"{name}.index.json", tmp_path / "back.safetensors", max_shard_size=0)
    assert dict(report.aliases) == {"c": "a"}


def test_one_shard_is_one_file_without_an_index(tmp_path: Path) -> None:
    report = sdconvert.convert(saved(state(10, 10), tmp_path), tmp_path, max_shard_size="5GB")
    assert (written(tmp_path), report.shards) == (["model.safetensors"], ())


def test_a_dry_run_shows_the_shards_and_writes_none(tmp_path: Path) -> None:
    report = sdconvert.convert(saved(state(10, 10, 25), tmp_path), tmp_path, max_shard_size=20, dry_run=True)
    assert written(tmp_path) == []
    assert report.to_json()["shards"] == [
        {"path": str(tmp_path / "model-00001-of-00002.safetensors"), "bytes": 25, "names": ["w2"]},
        {"path": str(tmp_path / "model-00002-of-00002.safetensors"), "bytes": 20, "names": ["w0", "w1"]},
    ]


def test_a_sharded_source_keeps_its_layout_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    """Whatever the sizes are: shard for shard, renumbered where nothing is left of one."""
    source, tensors = tmp_path / "source", state(10, 30, 10, 5)
    source.mkdir()
    groups = {"pytorch_model-00001-of-00003.bin": ["w0", "w1"], "pytorch_model-00002-of-00003.bin": ["w2"]}
    groups["pytorch_model-00003-of-00003.bin"] = ["w3"]
    for file, names in groups.items():
        torch.save({name: tensors[name].clone() for name in names}, source / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in groups.items() for name in names}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for number, (options, expected) in enumerate(
        [
            ({}, [["w0", "w1"], ["w2"], ["w3"]]),
            ({"names": sdconvert.Names(exclude=("w2",))}, [["w0", "w1"], ["w3"]]),
            ({"names": sdconvert.Names(rename=(("w2", "x"),))}, [["w0", "w1"], ["x"], ["w3"]]),
            ({"max_shard_size": "0.03KB"}, [["w0"], ["w1"], ["w2", "w3"]]),
            ({"max_shard_size": 0}, []),
        ]
    ):
        output = tmp_path / str(number)
        output.mkdir()
        report = sdconvert.convert(source, output, **options)  # type: ignore[arg-type]
        assert [list(one.names) for one in report.shards] == expected
        assert report.verified


def test_what_is_not_given_is_beside_the_source_and_a_directory_takes_model(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    torch.save(state(10, 10), tmp_path / "run" / "pytorch_model.bin")
    assert sdconvert.convert(tmp_path / "run").outputs[0].path == str(tmp_path / "run.safetensors")
    sdconvert.convert(tmp_path / "run", str(tmp_path / "run") + "/")
    sdconvert.convert(tmp_path / "run" / "pytorch_model.bin", tmp_path / "run", format="pt")
    assert written(tmp_path / "run") == ["model.pt", "model.safetensors", "pytorch_model.bin"]
    with pytest.raises(sdconvert.OutputError, match="there is no directory"):
        sdconvert.convert(tmp_path / "run" / "model.pt", str(tmp_path / "new") + "/")


def test_shards_beside_the_source_carry_its_name(tmp_path: Path) -> None:
    source = saved(state(10, 10), tmp_path)
    sdconvert.convert(source, max_shard_size=10)
    names = [f"source-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert written(tmp_path) == [*names, "source.safetensors.index.json"]
    (tmp_path / "source.pt").unlink()
    report = sdconvert.convert(tmp_path / "source.safetensors.index.json", tmp_path / "o.safetensors", max_shard_size=0)
    assert report.tensors == 2


def test_shards_need_an_ending(tmp_path: Path) -> None:
    with pytest.raises(sdconvert.ChoiceError, match=r"name it .*/out\.safetensors"):
        sdconvert.convert(saved(state(9, 9), tmp_path), tmp_path / "out", format="safetensors", max_shard_size=9)


@pytest.mark.parametrize("before", [10, 20, 1000], ids=["more shards", "fewer shards", "one file"])
@pytest.mark.parametrize("after", [15, 1000], ids=["shards", "one file"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_old_output_is_never_mixed_with_a_new_one(before: int, after: int, overwrite: bool, tmp_path: Path) -> None:
    source = saved(state(10, 10, 10, 10), tmp_path)
    sdconvert.convert(source, tmp_path, max_shard_size=before)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    same = (before, after) in ((10, 15), (1000, 1000))
    if same and overwrite:
        sdconvert.convert(source, tmp_path, max_shard_size=after, overwrite=True)
    else:
        match = "exists already" if same else "exists already|would be taken for a part"
        with pytest.raises(sdconvert.OutputError, match=match):
            sdconvert.convert(source, tmp_path, max_shard_size=after, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_overwriting_where_a_file_may_not_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no links, and Linux forbids them to files of others: then the old is moved aside."""
    source, real = saved(state(10, 10), tmp_path), os.link

    def link(src: str, dst: str, **options: Any) -> None:
        if not options.get("follow_symlinks", True):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(src, dst, **options)

    monkeypatch.setattr(os, "link", link)
    sdconvert.convert(source, tmp_path, max_shard_size=10)
    before = written(tmp_path)
    saved(state(10, 10), tmp_path)
    sdconvert.convert(source, tmp_path, max_shard_size=10, overwrite=True)
    assert written(tmp_path) == before
    assert sdconvert.verify(source, tmp_path / INDEX).equal


def test_other_files_in_the_directory_are_no_ones_business(tmp_path: Path) -> None:
    for name in ("model.safetensors.bak", "model-1-of-2.safetensors", "other-00001-of-00003.safetensors", "model.pt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "model-00001-of-00009.fp16.safetensors").write_bytes(b"")
    assert len(sdconvert.convert(saved(state(10, 10), tmp_path), tmp_path, max_shard_size=10).outputs) == 3


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2kb", 2000), ("1TB", 10**12), ("0", 0), ("700", 700), (7, 7)],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes
    assert parse_size(None) is None


@pytest.mark.parametrize(
    "text", ["", "GB", "5 G B", "-1", "-1GB", -1, "5GiB", "nanGB", "infMB", "1e999GB", "x", True, 1.5]
)
def test_what_is_no_size_is_a_choice_to_be_made(text: object) -> None:
    with pytest.raises(sdconvert.ChoiceError, match="--max-shard-size"):
        parse_size(text)  # type: ignore[arg-type]


def test_more_shards_than_files_may_be_open_at_first(tmp_path: Path) -> None:
    """The usual limit of open files is 1024, of which a process may allow itself more."""
    source = saved(state(*[1] * 150), tmp_path)
    (tmp_path / "out").mkdir()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for argv in ((str(source), "out/", "--max-shard-size", "1"), ("out", "again.safetensors", "--max-shard-size", "0")):
        done = subprocess.run(
            [sys.executable, "-m", "sdconvert", "to-safetensors", "-q", *argv],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard)),
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert sdconvert.verify(source, tmp_path / "again.safetensors").equal


# One conversion to shards with a fault in call number N, for each N, in a directory that is there again each time.
_RUNNER = """
import errno, json, os, shutil, signal, sys
root, work, how, calls, overwrite = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4].split(), sys.argv[5] == "True"
sys.path.insert(0, root)
from sdconvert import cli
before = {n: open(f"{work}/out/{n}", "rb").read().hex() for n in os.listdir(f"{work}/out")}
for when in range(1, 400):
    pid = os.fork()
    if pid == 0:
        hits = 0
        def faulty(real):
            def call(*args, **kwargs):
                global hits
                hits += 1
                if hits == when and how == "kill before":
                    os.kill(os.getpid(), signal.SIGKILL)
                done = real(*args, **kwargs) if hits != when or how != "EIO" or real.__name__ == "close" else None
                if hits == when and how == "kill after":
                    os.kill(os.getpid(), signal.SIGKILL)
                if hits == when:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return done
            return call
        for name in calls:
            setattr(os, name, faulty(getattr(os, name)))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        argv = ["to-safetensors", f"{work}/source.pt", f"{work}/out/", "-q", "--max-shard-size", "10", "--threads", "1"]
        code = cli.main(argv + (["--overwrite"] if overwrite else []))
        os._exit(100 if hits < when and code == 0 else code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = {n: open(f"{work}/out/{n}", "rb").read().hex() for n in os.listdir(f"{work}/out")}
    print(json.dumps([when, code, left]))
    shutil.rmtree(f"{work}/out")
    os.mkdir(f"{work}/out")
    for name, data in before.items():
        open(f"{work}/out/{name}", "wb").write(bytes.fromhex(data))
    if code == 100:
        break
"""


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("how", ["EIO", "kill before", "kill after"])
def test_all_shards_and_the_index_appear_or_none_does(how: str, overwrite: bool, tmp_path: Path) -> None:
    """After an error all is as it was. After a kill there is no index, or it is true of all that it names."""
    out, before, after = tmp_path / "out", {}, {}
    out.mkdir()
    sdconvert.convert(saved(state(10, 10, 10), tmp_path), out, max_shard_size=10)
    after = {path.name: path.read_bytes().hex() for path in out.iterdir()}
    for path in out.iterdir():
        path.unlink()
    if overwrite:
        sdconvert.convert(saved(state(10, 10, 10), tmp_path), out, max_shard_size=10, names=sdconvert.Names())
        before = {path.name: path.read_bytes().hex() for path in out.iterdir()}
        torch.manual_seed(1)
        sdconvert.convert(saved(state(10, 10, 10), tmp_path), tmp_path, max_shard_size=10)
        after = {path.name: path.read_bytes().hex() for path in tmp_path.glob("model*")}
        assert before.keys() == after.keys()
        assert all(before[name] != after[name] for name in before if name != INDEX)
    calls = "open pwrite fsync rename link unlink posix_fallocate preadv"
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, str(Path(__file__).parents[1]), str(tmp_path), how, calls, str(overwrite)],
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert runs[-1][1] == 100
    assert len(runs) > 15
    for when, code, left in runs:
        shown = {name: data for name, data in left.items() if not re.fullmatch(r"\..*\.sdconvert-tmp", name)}
        if code in (0, 100):
            assert shown == after, when
            assert shown.keys() == left.keys() or code == 0
        elif code == 1:
            assert left == before, when
        else:
            assert code == -9
            assert INDEX not in shown or shown in (before, after), when
            assert len(left) - len(shown) <= (2 * len(after) if overwrite else 0), when


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:TypedStorage")
def test_what_an_encoded_tensor_is_made_of_stays_in_one_file(tmp_path: Path) -> None:
    """Two tensors with the same integers, each with scales of its own, cannot be told apart file by file."""
    integers = torch.randint(-9, 9, (64, 64), dtype=torch.int8)
    parts = [torch.rand(64, dtype=torch.float64) + 1e-3 for _ in range(2)]
    zeros = torch.zeros(64, dtype=torch.int64)
    first = torch._make_per_channel_quantized_tensor(integers, parts[0], zeros, 0)
    storage = first.untyped_storage()
    second = torch._utils._rebuild_qtensor(
        torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.qint8, _internal=True),
        0, (64, 64), (64, 1), (torch.per_channel_affine, parts[1], zeros, 0), False, {},
    )  # fmt: skip
    assert second.untyped_storage().data_ptr() == storage.data_ptr()
    state = {"a.w": first, "middle": torch.randn(64, 64), "b.w": second, "last": torch.randn(64, 64)}
    state["sparse"] = torch.eye(64).to_sparse()
    state["complex"] = torch.randn(64, 32, dtype=torch.complex128)
    torch.save(state, tmp_path / "model.pt")
    for format in ("pt", "safetensors"):  # noqa: A001 - convert's own word
        (tmp_path / format).mkdir()
        report = sdconvert.convert(tmp_path / "model.pt", tmp_path / format, format=format, max_shard_size=20_000)
        assert len(report.shards) >= 2
        outcome = sdconvert.verify(tmp_path / "model.pt", tmp_path / format)
        assert outcome.equal, outcome
        assert sdconvert.inspect(tmp_path / format).warnings == ()
    homes = {name: shard.path for shard in report.shards for name in shard.names}
    assert homes["a.w.int_repr"] == homes["a.w.scales"] == homes["b.w.scales"]
