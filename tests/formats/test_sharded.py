"""Shards in: what counts is what they hold, and the index is only a hint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import sdconvert
from sdconvert import formats
from sdconvert.source import MemorySource
from tests.outputs import contents, same

Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def tensors(*names: str) -> Tensors:
    return {name: torch.randn(3, 2) for name in names}


def put(directory: Path, files: dict[str, Tensors], index: Any = None, *, name: str = INDEX, **metadata: str) -> Path:
    """Shards and an index that is right, unless another is given. `metadata` is that of each file."""
    directory.mkdir(exist_ok=True)
    for file, state in files.items():
        if file.endswith(".safetensors"):
            save_file(state, directory / file, metadata={"format": "pt", **metadata})
        else:
            torch.save(state, directory / file)
    if index is None:
        index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, state in files.items() for n in state}}
    (directory / name).write_text(index if type(index) is str else json.dumps(index))
    return directory


def read(source: Path, output: Path, **options: Any) -> tuple[sdconvert.Report, Tensors]:
    report = sdconvert.convert(source, output, max_shard_size=0, **options)
    return report, contents(output)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("entry", ["directory", "index", "pattern"])
def test_what_huggingface_hub_writes(safe: bool, entry: str, tmp_path: Path, out: Path) -> None:
    state = {f"layers.{i}.weight": torch.randn(5, 4) for i in range(6)}
    state["a.tied"] = state["layers.3.weight"]
    source = tmp_path / "m"
    source.mkdir()
    if safe:
        save_torch_state_dict(dict(state), source, max_shard_size=170)
    else:
        files = {f"pytorch_model-0000{i}-of-00002.bin": dict(list(state.items())[3 * i - 3 : 3 * i]) for i in (1, 2)}
        files["pytorch_model-00002-of-00002.bin"]["a.tied"] = state["a.tied"]
        put(source, files, name="pytorch_model.bin.index.json")
    index = next(source.glob("*.index.json"))
    named = {"directory": source, "index": index, "pattern": source / "*model-0000*"}[entry]
    report, found = read(named, out)
    assert same(found, state)
    assert len(report.aliases) == 1
    assert report.container == ("sharded+safetensors" if safe else "sharded+torch-zip")
    assert report.files[0] == index.name
    assert report.warnings == ()


def test_shards_may_be_of_any_container(tmp_path: Path, out: Path) -> None:
    one, two = tensors("a"), tensors("b")
    source = put(tmp_path / "m", {"x.bin": one, "y.bin": two}, name="pytorch_model.bin.index.json")
    torch.save(one, source / "x.bin", _use_new_zipfile_serialization=False)
    report, found = read(source, out)
    assert same(found, one | two)
    assert report.container == "sharded+torch-legacy+torch-zip"


def test_an_alias_may_be_said_by_any_shard_or_the_index(tmp_path: Path, out: Path) -> None:
    """huggingface_hub says it in the index, others in every shard, others list it in the weight_map too."""
    one, two = tensors("a"), tensors("b")
    right = {"a": ONE, "b": TWO}
    for number, (index, metadata) in enumerate(
        [
            ({"metadata": {"head": "b"}, "weight_map": right}, {}),
            ({"metadata": {}, "weight_map": right}, {"head": "b"}),
            ({"weight_map": {**right, "head": TWO}}, {"head": "b"}),
            ({"metadata": {"head": "b"}, "weight_map": {**right, "head": ONE}}, {}),
        ]
    ):
        source = put(tmp_path / str(number), {ONE: one, TWO: two}, index, **metadata)
        report, found = read(source, out, overwrite=True)
        assert (dict(report.aliases), report.warnings) == ({"head": "b"}, ())
        assert torch.equal(found["head"], two["b"])


def test_metadata_that_is_no_alias_is_kept(tmp_path: Path, out: Path) -> None:
    index = {"metadata": {"total_size": 48, "licence": "mit", "a": "b"}, "weight_map": {"a": ONE, "b": TWO}}
    read(put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")}, index, made_by="me"), out)
    with sdconvert.open(out) as opened:
        assert dict(opened.checkpoint.metadata) == {"licence": "mit", "made_by": "me"}


def test_a_tensor_the_index_does_not_know_is_taken_and_said(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a", "more"), TWO: tensors("b")}, {"weight_map": {"a": ONE, "b": TWO}})
    report, found = read(source, out)
    assert found.keys() == {"a", "b", "more"}
    assert report.warnings == ("the shards have tensors that are not in the index: more",)


def test_a_tensor_in_another_shard_than_the_index_says_is_taken_and_said(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b", "c")}, {"weight_map": {"a": TWO, "b": ONE}})
    report, found = read(source, out)
    assert found.keys() == {"a", "b", "c"}
    assert "the index has tensors in other shards than they are in: a, b" in report.warnings


def test_shards_that_are_of_another_set_are_left_out_and_said(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")})
    for name in ("model-00003-of-00003.safetensors", "model-00001-of-00003.safetensors"):
        save_file(tensors("a"), source / name)
    report, found = read(source, out)
    assert found.keys() == {"a", "b"}
    assert [(one.name, one.why) for one in report.skipped] == [
        ("model-00001-of-00003.safetensors", "a shard of another set"),
        ("model-00003-of-00003.safetensors", "a shard of another set"),
    ]


def test_a_set_without_an_index_is_taken_when_it_is_whole(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")})
    (source / INDEX).unlink()
    report, found = read(source, out)
    assert found.keys() == {"a", "b"}
    assert report.warnings == ("there is no index; the 2 shards that belong together by name were taken",)
    (source / ONE).unlink()
    with pytest.raises(sdconvert.UnreadableError, match=r"1 of 2 shards are missing, only number 2 of model\.safetens"):
        read(source, out)


def test_a_claim_of_a_billion_shards_costs_nothing(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / "model-00001-of-999999999.safetensors")
    with pytest.raises(sdconvert.UnreadableError, match="999999998 of 999999999 shards are missing"):
        sdconvert.open(tmp_path)


def test_variants_are_read_like_others(tmp_path: Path, out: Path) -> None:
    """As transformers names them, and as diffusers does."""
    for number, (shards, index) in enumerate(
        [
            ("model.fp16-0000{}-of-00002.safetensors", "model.safetensors.index.fp16.json"),
            (
                "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
            ),
        ]
    ):
        source = tmp_path / str(number)
        put(source, {shards.format(1): tensors("a"), shards.format(2): tensors("b")}, name=index)
        for named in (source, source / index):
            assert read(named, out, overwrite=True)[1].keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": [ONE]}, "no weight_map"),
        ({"weight_map": None}, "no weight_map"),
        ({"weight_map": {"a": 1}}, "not the name of a file"),
        ({"weight_map": {"a": None}}, "not the name of a file"),
        ({"weight_map": {"a": f"../m/{ONE}"}}, "not the name of a file"),
        ({"weight_map": {"a": f"sub/{ONE}"}}, "not the name of a file"),
        ({"weight_map": {"a": f"./{ONE}"}}, "not the name of a file"),
        ({"weight_map": {"a": f"sub\\{ONE}"}}, "not the name of a file"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not the name of a file"),
        ({"weight_map": {"a": "https://example.org/x.safetensors"}}, "not the name of a file"),
        ({"weight_map": {"a": ".."}}, "not the name of a file"),
        ({"weight_map": {"a": ""}}, "not the name of a file"),
        ({"weight_map": {"a": "x\0y"}}, "not the name of a file"),
        ({"weight_map": {"a": INDEX}}, "is an index too"),
        ({"weight_map": {"a": ONE, "b": "model-00003-of-00003.safetensors"}}, "1 of 2 shards are missing: model-00003"),
        ({"weight_map": {"a": ONE, "b": TWO, "c": TWO}}, "the index has tensors that are in none of its shards: c"),
        (f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}', "a name is there twice"),
        ('{"weight_map": {"a": NaN}}', "NaN is not JSON"),
        (b"\xff\xfe".decode("latin-1"), "not JSON"),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be_right_is_refused_by_name(index: Any, words: str, tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")}, index)
    (source / "sub").mkdir()
    save_file(tensors("a"), source / "sub" / ONE)
    for named in (source, source / INDEX):
        with pytest.raises(sdconvert.UnreadableError, match=words) as caught:
            read(named, out)
        assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_name_in_two_shards_is_refused(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a", "b"), TWO: tensors("b")})
    with pytest.raises(sdconvert.UnreadableError, match=rf"{TWO}: b is also in {ONE}\. Remove"):
        read(source, out)


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ({"state_dict": {"b": torch.zeros(1)}}, "tensors that are in none of its shards: b, c"),
        ([torch.zeros(1)], "holds no state dict"),
        (torch.nn.Linear(1, 1), "holds no state dict"),
        (torch.zeros(1), "holds no state dict"),
        ({1: torch.zeros(1)}, "not text"),
    ],
)
def test_a_shard_is_a_plain_state_dict(shard: object, words: str, tmp_path: Path, out: Path) -> None:
    index = {"weight_map": {"a": "x.bin", "b": "y.bin", "c": "y.bin"}}
    source = put(tmp_path / "m", {"x.bin": tensors("a"), "y.bin": {}}, index)
    torch.save(shard, source / "y.bin")
    with pytest.raises(sdconvert.UnreadableError, match=words):
        read(source, out)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "cut short"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (lambda path: path.unlink(), "1 of 2 shards are missing"),
        (lambda path: [path.unlink(), path.symlink_to("nowhere")], "1 of 2 shards are missing"),
        (lambda path: [path.unlink(), path.mkdir()], "1 of 2 shards are missing"),
    ],
    ids=["short", "empty", "lfs", "gone", "dangling", "directory"],
)
def test_a_damaged_shard_is_named(damage: Any, words: str, tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")})
    damage(source / TWO)
    with pytest.raises(sdconvert.SdconvertError, match=words) as caught:
        read(source, out)
    assert TWO in str(caught.value)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path, out: Path) -> None:
    blobs = put(tmp_path / "blobs", {ONE: tensors("a"), TWO: tensors("b")})
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{number:040x}")
    assert read(tmp_path / "snapshot", out)[1].keys() == {"a", "b"}


def test_a_shard_is_never_the_output(tmp_path: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")})
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for output in (source, source / ONE, source / INDEX):
        with pytest.raises(sdconvert.SdconvertError):
            sdconvert.convert(source, output, format="safetensors", overwrite=True)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_one_shard_by_itself_is_converted_with_a_word(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "m", {ONE: tensors("a"), TWO: tensors("b")})
    report, found = read(source / TWO, out)
    assert found.keys() == {"b"}
    assert report.warnings == ("it is shard 2 of 2; name the directory or the index to have all of them",)


class Elsewhere:
    """A folder that is no directory: all that a format may use of one."""

    def __init__(self, files: dict[str, bytes], entry: str = "") -> None:
        self.name, self.stem, self.entry = "elsewhere", Path("elsewhere"), entry
        self._sources = {name: MemorySource(data, name) for name, data in sorted(files.items())}
        self.files = {name: len(files[name]) for name in self._sources}
        self.nbytes = sum(self.files.values())
        self.opened: list[str] = []

    def open(self, name: str) -> MemorySource:
        self.opened.append(name)
        return self._sources[name]

    def check_unchanged(self) -> None: ...

    def is_same_file(self, other: os.stat_result) -> bool:
        return False

    def close(self) -> None: ...


def test_a_folder_may_be_anywhere_and_only_what_is_needed_of_it_is_opened() -> None:
    index = json.dumps({"weight_map": {"a": ONE, "b": TWO}}).encode()
    shards = {ONE: save(tensors("a")), TWO: save(tensors("b")), INDEX: index}
    others = {"pytorch_model.bin": b"never", "optimizer.pt": b"never", "model.fp16.safetensors": b"never"}
    for files, entry, expected in [
        (shards, INDEX, [INDEX, ONE, TWO]),
        (shards | others, "", [INDEX, ONE, TWO]),
        ({"model.safetensors": save(tensors("a"))} | others, "", ["model.safetensors"]),
        ({f"run/1/{name}": data for name, data in shards.items()}, "", [f"run/1/{n}" for n in (INDEX, ONE, TWO)]),
        (
            {"model_index.json": b"{}", **{f"unet/{name}": data for name, data in shards.items()}},
            "",
            [f"unet/{name}" for name in (INDEX, ONE, TWO)],
        ),
    ]:
        folder = Elsewhere(files, entry)
        checkpoint = formats.read_folder(folder)
        assert folder.opened == expected
        assert list(checkpoint.files) == expected


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([ONE, TWO, INDEX, "a", "b", "c", "", "/"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c", "weight_map", "metadata", "format"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(index=st.fixed_dictionaries({"weight_map": _JSON, "metadata": _JSON}) | _JSON)
def test_any_index_is_read_or_refused(index: object) -> None:
    files = {ONE: save(tensors("a")), TWO: save(tensors("b")), INDEX: json.dumps(index).encode()}
    try:
        checkpoint = formats.read_folder(Elsewhere(files, INDEX))
    except sdconvert.UnreadableError as error:
        assert "\n" not in str(error)
    else:
        assert {"a", "b"} & set(checkpoint.root.by_name())
