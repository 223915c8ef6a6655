"""What is in a file, before anything is written, from its headers alone."""

from __future__ import annotations

import json
import os
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sdconvert
from sdconvert.source import FileSource
from tests.corpus import Sample, samples


def saved(obj: object, path: Path, **how: Any) -> Path:
    torch.save(obj, path, **how)
    return path


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch marker",)


def language_model(layers: int = 32) -> OrderedDict[str, torch.Tensor]:
    state = OrderedDict({"model.embed.weight": torch.randn(50, 8)})
    for layer in range(layers):
        state[f"model.layers.{layer}.attn.q_proj.weight"] = torch.randn(8, 8).half()
        state[f"model.layers.{layer}.attn.k_proj.weight"] = torch.randn(8, 8).half()
        state[f"model.layers.{layer}.norm.weight"] = torch.ones(8)
    return state | {"lm_head.weight": state["model.embed.weight"]}


def test_all_that_the_issue_of_a_file_is(tmp_path: Path) -> None:
    module = {f"module.{name}": tensor for name, tensor in language_model().items()}
    source = saved({"epoch": 3, "state_dict": module, "optimizer": {"m": torch.ones(2)}}, tmp_path / "m.ckpt")
    found = sdconvert.inspect(source)
    assert (found.container, found.version, found.kind, found.key) == (
        "torch-zip",
        "torch 2.7 or later",
        "wrapped",
        "state_dict",
    )
    assert len(found.tensors) == 98
    assert found.elements == 400 + 32 * (64 + 64 + 8)
    assert found.nbytes == 4 * 400 + 32 * (2 * 128 + 32)
    assert found.aliases == {"module.lm_head.weight": "module.model.embed.weight"}
    assert [(one.dtype, one.tensors, one.elements, one.nbytes) for one in found.dtypes] == [
        ("float16", 64, 4096, 8192),
        ("float32", 33, 656, 2624),
    ]
    assert found.prefixes == ("module.",)
    assert [(one.key, one.tensors, one.elements) for one in found.candidates] == [("state_dict", 98, 4752 + 400)]
    assert {one.name: one.why for one in found.skipped} == {
        "epoch": "not a tensor (int)",
        "optimizer": "training state",
    }
    assert found.unknown_globals == found.dangerous_globals == found.problems == found.warnings == ()
    assert "torch._utils._rebuild_tensor_v2" in found.known_globals
    assert found.source_bytes == source.stat().st_size


@pytest.mark.parametrize("sample", [one for one in samples() if one.expect == "convert"] or [None], ids=str)
def test_a_real_file_is_what_its_conversion_says_it_is(sample: Sample | None, tmp_path: Path) -> None:
    if sample is None:
        pytest.skip("there is no corpus of real checkpoints here")
    found = sdconvert.inspect(sample.path)
    report = sdconvert.convert(sample.path, tmp_path / "o.safetensors")
    assert found.output_bytes == (tmp_path / "o.safetensors").stat().st_size
    assert {one.name: (one.dtype, one.shape) for one in found.tensors} == {
        name: (dtype, shape) for name, (dtype, shape, _) in sample.tensors.items()
    }
    ours, theirs = found.to_json(), report.to_json()
    shared = "container kind key bytes source_bytes aliases prefixes skipped warnings".split()
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    assert ours["globals"]["unknown"] == theirs["globals"]["unknown"]
    assert sum(one.elements for one in found.dtypes) == found.elements
    for width in (24, 40, 80, 200):
        assert max(map(len, found.to_text(width=width).splitlines())) <= width


def sparse_zip(path: Path) -> None:
    """10 GB of zeros that take no room, as torch saves them when it is told to leave the data out."""
    with torch.serialization.skip_data():
        torch.save({f"layers.{i}.w": torch.empty(2_500_000) for i in range(1000)}, path)


def sparse_safetensors(path: Path) -> None:
    size = 10_000_000
    entries = {
        f"layers.{i}.w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(1000)
    }
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 1000 * size)


@pytest.mark.parametrize("make", [sparse_zip, sparse_safetensors])
def test_ten_gigabytes_are_looked_at_by_their_headers(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "m.pt"
    make(source)
    assert source.stat().st_size > 10_000_000_000
    read: list[int] = []
    readinto = FileSource.readinto

    def counting(self: FileSource, offset: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        readinto(self, offset, buffer)

    monkeypatch.setattr(FileSource, "readinto", counting)
    found = sdconvert.inspect(source)
    assert (len(found.tensors), found.elements, found.nbytes) == (1000, 2_500_000_000, 10_000_000_000)
    assert 0 < sum(read) < 1_000_000
    # It is 0.06 s. The processor's time and the best of five, as others use the machine; nothing here waits for a disk.
    assert min(seconds_of(lambda: sdconvert.inspect(source)) for _ in range(5)) < 0.5


def seconds_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def test_what_looks_dangerous_is_named_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    classes = {f"c{i}": type(f"Config{i}", (), {"__module__": __name__}) for i in range(12)}
    for one in classes.values():
        monkeypatch.setitem(globals(), one.__name__, one)
    source = saved({**{key: one() for key, one in classes.items()}, "x": Evil(), "w": torch.ones(2)}, Path("m.pt"))
    found = sdconvert.inspect(source)
    assert found.dangerous_globals == ("posix.system",)
    assert len(found.unknown_globals) == 13
    assert found.to_json()["globals"]["dangerous"] == ["posix.system"]
    assert "posix.system" in found.to_text(width=200)  # However many others there are, and in a report too.
    assert "posix.system (!)" in str(sdconvert.convert(source, "o.safetensors"))
    assert not Path("marker").exists()


@pytest.mark.parametrize(
    ("full", "dangerous"),
    [
        ("os.system", True),
        ("builtins.eval", True),
        ("torch.hub.load", True),
        ("numpy.testing._private.utils.runstring", True),
        ("builtins.set", False),
        ("__builtin__.long", False),
        ("pathlib.PosixPath", False),
        ("torch.loader", False),
        ("osmnx.graph", False),
    ],
)
def test_which_names_look_dangerous(full: str, dangerous: bool) -> None:
    from sdconvert.pickles.known import is_dangerous

    assert is_dangerous(full) is dangerous


def test_several_state_dicts_are_a_finding_with_all_candidates(tmp_path: Path) -> None:
    gan = {"generator": {"a.w": torch.ones(2, 3)}, "discriminator": {"b.w": torch.ones(4).double()}}
    found = sdconvert.inspect(saved(gan, tmp_path / "m.pt"))
    assert found.kind == "several"
    assert [(one.key, one.tensors, one.elements, one.nbytes) for one in found.candidates] == [
        ("generator", 1, 6, 24),
        ("discriminator", 1, 4, 32),
    ]
    assert [one.name for one in found.tensors] == ["generator.a.w", "discriminator.b.w"]
    assert found.output_bytes is None
    assert "--key" in found.problems[0]
    assert "--key generator" in found.to_text(width=120)
    chosen = sdconvert.inspect(tmp_path / "m.pt", key="discriminator")
    assert ([one.name for one in chosen.tensors], chosen.problems) == (["b.w"], ())
    with pytest.raises(sdconvert.ChoiceError, match="there is nothing at key"):
        sdconvert.inspect(tmp_path / "m.pt", key="nowhere")


def test_of_many_candidates_the_first_are_opened(tmp_path: Path) -> None:
    many = {f"net{i}": {f"a{i}.w": torch.ones(2), "steps": 3} for i in range(30)}
    found = sdconvert.inspect(saved(many, tmp_path / "m.pt"))
    assert [one.elements for one in found.candidates] == [2] * 20 + [None] * 10
    assert len(found.tensors) == 20
    assert found.warnings == ("the tensors of 10 more candidates are not listed; --key shows them",)


def test_what_a_conversion_would_refuse_is_a_problem_and_no_error(tmp_path: Path) -> None:
    weights = {"a.w": torch.ones(2), "b.w": torch.ones(2), "a.w.int_repr": torch.ones(2)}
    weights["a.w"] = torch.ones(3).to_sparse()
    found = sdconvert.inspect(saved({**weights, "a.w.indices": torch.ones(1)}, tmp_path / "a.pt"))
    assert "'a.w.indices'" in found.problems[0]
    assert found.output_bytes is None
    wide = {"a.w": torch.ones(1).expand(100_000_000), "b.w": torch.ones(3)}
    found = sdconvert.inspect(saved(wide, tmp_path / "b.pt"))
    assert "--max-expansion" in found.problems[0]
    assert (found.elements, found.output_bytes) == (100_000_003, None)
    assert "there are no tensors" in sdconvert.inspect(saved({"epoch": 1}, tmp_path / "c.pt")).problems[0]


def test_what_is_not_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint at all" * 9)
    with pytest.raises(sdconvert.UnreadableError, match=r"x\.pt"):
        sdconvert.inspect(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("without", "version"),
    [
        ((), "torch 2.7 or later"),
        ((".format_version", ".storage_alignment"), "torch 2.1 to 2.6"),
        ((".format_version", ".storage_alignment", "byteorder", ".data/serialization_id"), "torch 1.6 to 2.0"),
    ],
)
def test_the_version_of_torch_is_told_by_the_records(without: tuple[str, ...], version: str, tmp_path: Path) -> None:
    source = saved({"a.w": torch.ones(1)}, tmp_path / "a.pt")
    with zipfile.ZipFile(source) as now, zipfile.ZipFile(tmp_path / "b.pt", "w") as then:
        for name in now.namelist():
            if not name.endswith(without or "-"):
                then.writestr(name, now.read(name))
    assert sdconvert.inspect(tmp_path / "b.pt").version == version


def test_the_version_of_torch_is_told_by_the_container(tmp_path: Path) -> None:
    source = saved({"a.w": torch.ones(1)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert sdconvert.inspect(source).version == "torch 0.1.10 to 1.5"


def test_a_directory_of_safetensors_with_a_pickle_beside_them_is_a_pickle(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat

    writer = FileSystemWriter(tmp_path / "d", serialization_format=SerializationFormat.SAFETENSORS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"w": torch.zeros(2)}, storage_writer=writer, no_dist=True)
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert sdconvert.inspect(tmp_path / "d").is_pickle
    assert not sdconvert.inspect(tmp_path / "w.safetensors").is_pickle


def test_tensors_that_are_not_contiguous_say_so(tmp_path: Path) -> None:
    weights = {"a.w": torch.ones(3, 4).t(), "b.w": torch.ones(3, 4), "c.w": torch.ones(8)[::2]}
    found = sdconvert.inspect(saved(weights, tmp_path / "m.pt"))
    assert [one.contiguous for one in found.tensors] == [False, True, False]
    assert "(not contiguous)" in found.to_text(tensors=True)


TREE = """\
model                97 tensors      mixed    4,752  10.82 kB
  embed.weight       [50, 8]         float32    400   1.60 kB
  layers.0-31        3 tensors each  mixed    4,352   9.22 kB
    attn             2 tensors       float16    128     256 B
      q_proj.weight  [8, 8]          float16     64     128 B
      k_proj.weight  [8, 8]          float16     64     128 B
    norm.weight      [8]             float32      8      32 B
lm_head.weight       [50, 8]         float32   tied"""


def test_alike_modules_are_one_line(tmp_path: Path) -> None:
    text = sdconvert.inspect(saved(language_model(), tmp_path / "m.pt")).to_text(width=100)
    tree = text.partition("\n\n")[2]
    assert tree == TREE


def test_a_module_that_differs_is_a_line_of_its_own(tmp_path: Path) -> None:
    state = language_model(6)
    state["model.layers.3.norm.weight"] = torch.ones(9)
    text = sdconvert.inspect(saved(state, tmp_path / "m.pt")).to_text(width=100)
    assert [words[0] for words in map(str.split, text.splitlines()) if words and words[0] in ("0-2", "3", "4-5")] == [
        "0-2",
        "3",
        "4-5",
    ]


@pytest.mark.parametrize("width", [1, 24, 37, 60, 80, 300])
def test_no_line_is_wider_than_the_terminal(width: int, tmp_path: Path) -> None:
    state = language_model() | {f"{'very_' * 30}long.{i}.name_{'x' * 90}": torch.ones(i + 1) for i in range(99)}
    found = sdconvert.inspect(saved({"model": state, "é" * 300: 1}, tmp_path / ("m" * 100)))
    assert max(map(len, found.to_text(width=width).splitlines())) <= max(width, 24)


def test_a_narrow_terminal_loses_columns_before_names(tmp_path: Path) -> None:
    text = sdconvert.inspect(saved(language_model(), tmp_path / "m.pt")).to_text(width=40)
    assert "      q_proj.weight" in text
    assert "float16  " not in text.partition("\n\n")[2]


def test_with_tensors_every_name_is_there_whole(tmp_path: Path) -> None:
    state = {f"{'n' * 200}.{i}": torch.ones(i, 2) for i in range(1, 300)}
    text = sdconvert.inspect(saved(state, tmp_path / "m.pt")).to_text(width=60, tensors=True)
    assert all(f"{name}\n" in text + "\n" for name in state)


@pytest.mark.slow
def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    weights = {f"layers.{i // 10}.w{i}": torch.empty(0) for i in range(100_000)}
    save_file(weights, tmp_path / "m.safetensors")
    found = sdconvert.inspect(tmp_path / "m.safetensors")
    text = found.to_text(width=80)
    assert len(found.tensors) == 100_000
    assert len(text.splitlines()) < 70
    assert len(found.to_text(tensors=True).splitlines()) > 100_000


def test_json_holds_all_of_it(tmp_path: Path) -> None:
    found = sdconvert.inspect(saved({"state_dict": language_model(2)}, tmp_path / "m.pt"))
    document = json.loads(json.dumps(found.to_json()))
    assert document["tensors"][1] == {
        "name": "model.layers.0.attn.q_proj.weight",
        "dtype": "float16",
        "shape": [8, 8],
        "parameters": 64,
        "bytes": 128,
        "tied_to": None,
        "contiguous": True,
    }
    assert document["tensors"][-1]["tied_to"] == "model.embed.weight"
    assert document["candidates"] == [
        {"key": "state_dict", "tensors": 8, "parameters": 1072, "bytes": 3776, "kind": "wrapped"}
    ]
    fields = {*sdconvert.Inspection.__dataclass_fields__}
    renamed = {"nbytes", "elements", "known_globals", "unknown_globals", "dangerous_globals"}
    assert fields - renamed <= document.keys()


def test_names_cannot_act_on_a_terminal(tmp_path: Path) -> None:
    name = "a\x1b[31m.\u202ew\n"
    found = sdconvert.inspect(saved({name: torch.ones(1), "b.w": torch.ones(1)}, tmp_path / "m.pt"))
    for text in (found.to_text(width=80), found.to_text(tensors=True)):
        assert all(character.isprintable() or character == "\n" for character in text)


# ---- In a notebook ----

NASTY = "</pre><script>alert(1)</script><b onclick='x'>&amp;"


def test_a_notebook_shows_a_table_in_which_names_are_text(tmp_path: Path) -> None:
    source = saved({NASTY: torch.ones(2), "b.w": torch.ones(1), NASTY + "2": 3}, tmp_path / "m.pt")
    found = sdconvert.inspect(source)
    report = sdconvert.convert(source, tmp_path / "o.safetensors")
    for html in (found._repr_html_(), report._repr_html_()):
        assert "<script" not in html
        assert "<b " not in html
        assert "&lt;script&gt;" in html
        assert "<table" in html
        assert html.count("<pre") == html.count("</pre>")
        assert html.count("<div") == html.count("</div>") == 1
    assert str(tmp_path / "o.safetensors") in report._repr_html_()
    assert "safetensors" in found._repr_html_()
