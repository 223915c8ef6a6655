"""From what a person names to jobs: which files, and where each goes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sdconvert import ChoiceError, UnreadableError
from sdconvert.batch import Job, Options, common_directory, jobs, sharded, state_of


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "a.pt",
        "b.ckpt",
        "notes.txt",
        ".hidden.pt",
        "runs/1/model.pt",
        "runs/1/model.bin",
        "runs/2/last.pth.tar",
        "runs/2/v1.5.pt",
        "big/model.safetensors.index.json",
        "big/model-00001-of-00002.safetensors",
        "big/model-00002-of-00002.safetensors",
        "big/extra.pt",
        "dcp/.metadata",
        "dcp/__0_0.distcp",
        "zero/latest",
        "zero/global_step2/mp_rank_00_model_states.pt",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def places(*sources: str, below: str = "") -> dict[str, str]:
    return {job.source: job.output for job in jobs(sources, "out", ".safetensors", Options(), below=below)}


@pytest.mark.usefixtures("tree")
def test_a_directory_gives_every_checkpoint_in_it_once() -> None:
    assert places("in") == {
        "in/a.pt": "out/a.safetensors",
        "in/b.ckpt": "out/b.safetensors",
        "in/big/model.safetensors.index.json": "out/big/model.safetensors",
        "in/big/extra.pt": "out/big/extra.safetensors",
        "in/dcp": "out/dcp.safetensors",
        "in/runs/1/model.bin": "out/runs/1/model.bin.safetensors",  # Two of one stem keep their endings.
        "in/runs/1/model.pt": "out/runs/1/model.pt.safetensors",
        "in/runs/2/last.pth.tar": "out/runs/2/last.safetensors",
        "in/runs/2/v1.5.pt": "out/runs/2/v1.5.safetensors",
        "in/zero": "out/zero.safetensors",
    }


@pytest.mark.usefixtures("tree")
def test_a_file_goes_by_its_name_whatever_its_ending() -> None:
    assert places("in/notes.txt") == {"in/notes.txt": "out/notes.safetensors"}
    assert places("in/runs/2/v1.5.pt") == {"in/runs/2/v1.5.pt": "out/v1.5.safetensors"}


@pytest.mark.usefixtures("tree")
def test_files_of_the_same_name_go_to_different_places() -> None:
    given = ["in/runs/1/model.pt", "in/runs/2/v1.5.pt"]
    assert list(places(*given, below=common_directory(given)).values()) == [
        "out/1/model.safetensors",
        "out/2/v1.5.safetensors",
    ]


@pytest.mark.usefixtures("tree")
def test_a_pattern_keeps_places_below_its_fixed_part() -> None:
    assert places("in/runs/*/*.pt") == {
        "in/runs/1/model.pt": "out/1/model.safetensors",
        "in/runs/2/v1.5.pt": "out/2/v1.5.safetensors",
    }
    with pytest.raises(ChoiceError, match="fits no file"):
        places("in/*.nothing")


@pytest.mark.usefixtures("tree")
def test_nothing_goes_outside_of_the_output_directory() -> None:
    with pytest.raises(ChoiceError, match="is not below"):
        places("in/a.pt", below="in/runs")


def test_shares_are_disjoint_complete_and_the_same_everywhere() -> None:
    every = [Job(f"{number}.pt", "") for number in range(1000)]
    shares = [list(sharded(every, number, 7)) for number in range(7)]
    assert sorted((job for share in shares for job in share), key=every.index) == every
    assert all(90 < len(share) < 200 for share in shares)
    assert list(sharded(reversed(every), 3, 7)) == shares[3][::-1]
    with pytest.raises(UnreadableError, match="no share 7 of 7"):
        list(sharded(every, 7, 7))


def test_what_a_url_becomes() -> None:
    assert list(
        places(
            "hf://owner/model-3.1",
            "hf://owner/model-3.2@main",
            "hf://owner/model/deep/x.pt",
            "https://host/a%20b.pt?signed=1/2.x",
            "s3://bucket/runs/m.ckpt",
            "zip://a/b.pt::all.zip",
        ).values()
    ) == [
        "out/model-3.1.safetensors",
        "out/model-3.2@main.safetensors",
        "out/x.safetensors",
        "out/a b.safetensors",
        "out/m.safetensors",
        "out/b.safetensors",
    ]


def test_a_source_that_was_replaced_has_another_state(tmp_path: Path) -> None:
    names = ("model.safetensors.index.json", "model-00001-of-00001.safetensors", "a.pt", "all.zip", "deep/x.bin")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
        os.utime(path, (1, 1))
    index, shard, file, archive, inner = paths
    watched = {str(index): shard, str(file): file, f"zip://x.pt::{archive}": archive, str(inner.parent): inner}
    pytest.importorskip("fsspec")
    watched[f"file://{file}"] = file
    for source, changed in watched.items():
        before = state_of(source)
        assert state_of(source) == before
        os.utime(changed, (2, 2))
        assert state_of(source) != before
        os.utime(changed, (1, 1))
        assert state_of(source) == before


@pytest.mark.usefixtures("tree")
def test_outputs_are_no_sources() -> None:
    """Of a second run, or of the first while it still looks for sources."""
    first = places("in")
    for output in ("in/converted/a.safetensors", "in/converted/runs/1/model.safetensors"):
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).touch()
    below = {job.source for job in jobs(["in"], "in/converted", ".safetensors", Options())}
    assert below == first.keys()
    shutil.rmtree("in/converted")
    inside = {job.source: job.output for job in jobs(["in"], "in", ".safetensors", Options())}
    assert inside.keys() == first.keys()
    del inside["in/big/model.safetensors.index.json"]  # Safetensors in their own place is nothing to ask for.
    for output in inside.values():
        Path(output).touch()
    for sharded_output in ("b.safetensors.index.json", "b-00001-of-00001.safetensors"):
        Path("in", sharded_output).touch()
    again = {job.source: job.output for job in jobs(["in"], "in", ".safetensors", Options())}
    assert {source: again.get(source) for source in inside} == inside
    made = {"in/a.safetensors", "in/b.safetensors.index.json", "in/runs/2/last.safetensors", "in/big/extra.safetensors"}
    assert not made & again.keys()


@pytest.mark.usefixtures("tree")
def test_of_many_sources_those_that_are_not_there_are_jobs_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["in/a.pt", "in/*.nothing", "[gone].pt", "in/runs"]
    found = [job.source for job in jobs(given, "out", ".safetensors", Options(), strict=False)]
    assert found[:4] == ["in/a.pt", "in/*.nothing", "[gone].pt", "in/runs/1/model.bin"]
    listing = os.scandir

    def refusing(path: str) -> object:
        if path == "in/runs/1":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr("sdconvert.batch.sources.os.scandir", refusing)
    refused = places("in/runs")
    assert refused["in/runs/1"] == "out/1.safetensors"
    assert len(refused) == 3
