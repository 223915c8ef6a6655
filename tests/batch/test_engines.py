"""The same on processes, on Ray and on Dask: what comes out, and that nothing is lost when something breaks."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import pytest
import torch

import sdconvert
from sdconvert.batch import Job, Options, convert_many, read
from tests.batch import faults
from tests.batch.conftest import Checkpoints, one_at_a_time, outputs

pytestmark = [
    pytest.mark.xdist_group("engines"),
    # Clusters talk on sockets that they close when they like.
    pytest.mark.filterwarnings("ignore"),
]


def test_40_real_checkpoints_come_out_as_one_at_a_time(
    engine: str | Executor, real_checkpoints: list[Job], tmp_path: Path
) -> None:
    expected = one_at_a_time(real_checkpoints, tmp_path / "single")
    summary = convert_many(iter(real_checkpoints), executor=engine, workers=2, manifest=str(tmp_path / "manifest"))
    assert (summary.done, summary.failed, summary.ok) == (40, 0, True), summary.failures
    assert outputs(real_checkpoints) == expected
    assert len(list(read(tmp_path / "manifest"))) == 40


@pytest.mark.usefixtures("faulty")
def test_a_worker_that_dies_in_the_middle_of_a_write_costs_nothing(
    engine: str | Executor, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    jobs = checkpoints(8)
    expected = one_at_a_time(jobs, tmp_path / "single")
    faults.plan(Path(jobs[3].source), "kill", 1)
    summary = convert_many(jobs, executor=engine, workers=2, manifest=str(tmp_path / "manifest"))
    # A job that was done when its worker died is found done when the engine runs it again.
    assert (summary.done + summary.there, summary.ok) == (8, True), summary.failures
    assert outputs(jobs) == expected
    assert sorted(record["source"] for record in read(tmp_path / "manifest")) == sorted(job.source for job in jobs)


@pytest.mark.usefixtures("faulty")
def test_a_job_that_always_kills_is_set_aside_by_name(engine: str | Executor, checkpoints: Checkpoints) -> None:
    jobs = checkpoints(6)
    faults.plan(Path(jobs[2].source), "kill")
    summary = convert_many(jobs, executor=engine, workers=2, retries=1)
    assert (summary.done + summary.there, summary.set_aside, summary.ok) == (5, 1, False), summary.failures
    assert summary.failures[0].source == jobs[2].source
    assert sorted(outputs(jobs)) == [f"{number}.safetensors" for number in (0, 1, 3, 4, 5)]


@pytest.mark.usefixtures("faulty")
def test_an_error_that_passes_is_tried_again_and_a_bad_file_is_not(
    engine: str | Executor, checkpoints: Checkpoints
) -> None:
    jobs = checkpoints(5)
    faults.plan(Path(jobs[1].source), "EIO", 2)
    Path(jobs[4].source).write_bytes(b"\x80\x02not a checkpoint")
    summary = convert_many(jobs, executor=engine, workers=2)
    assert (summary.done, summary.failed, summary.retried) == (4, 1, 2), summary.failures
    assert faults.tries(Path(jobs[1].source)) == 3
    assert faults.tries(Path(jobs[4].source)) == 1
    assert jobs[4].source in summary.failures[0].error


def sharded_job(tmp_path: Path) -> Job:
    """A checkpoint of 12 tensors, two of them tied across shards, to be written as at least four files."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    state = {f"layers.{number}.weight": torch.randn(50, 50) for number in range(11)}
    state["head.weight"] = state["layers.0.weight"]
    torch.save(state, tmp_path / "in" / "big.pt")
    return Job(
        str(tmp_path / "in" / "big.pt"), str(tmp_path / "out" / "big.safetensors"), Options(max_shard_size=30_000)
    )


def test_a_sharded_output_is_a_task_for_each_file(engine: str | Executor, tmp_path: Path) -> None:
    job = sharded_job(tmp_path)
    (tmp_path / "single").mkdir()
    sdconvert.convert(job.source, tmp_path / "single" / "big.safetensors", max_shard_size=30_000)
    summary = convert_many([job], executor=engine, workers=2, manifest=str(tmp_path / "manifest"))
    assert (summary.done, summary.ok) == (1, True), summary.failures
    assert outputs([job]) == {path.name: path.read_bytes() for path in (tmp_path / "single").iterdir()}
    [record] = read(tmp_path / "manifest")
    assert {Path(output["path"]).name for output in record["outputs"]} == outputs([job]).keys()
    assert record["outputs"][0]["path"].endswith(".index.json")
    again = convert_many([job], executor=engine, workers=2, manifest=str(tmp_path / "manifest"), resume=True)
    assert again.skipped == 1


@pytest.mark.usefixtures("faulty")
def test_a_worker_that_dies_at_a_shard_costs_that_shard_only(engine: str | Executor, tmp_path: Path) -> None:
    job = sharded_job(tmp_path)
    faults.plan(Path(job.source), "kill", 2)  # The first try finds out how many shards there are.
    summary = convert_many([job], executor=engine, workers=2)
    assert (summary.done + summary.there, summary.ok) == (1, True), summary.failures
    assert sdconvert.verify(job.source, tmp_path / "out" / "big.safetensors.index.json").equal


@pytest.mark.usefixtures("faulty")
def test_a_shard_that_cannot_be_written_leaves_none(engine: str | Executor, tmp_path: Path) -> None:
    job = sharded_job(tmp_path)
    faults.plan(Path(job.source), "EIO")
    summary = convert_many([job], executor=engine, workers=2, retries=1)
    assert (summary.done, summary.failed, summary.ok) == (0, 1, False)
    assert outputs([job]) == {}
