"""Checkpoints to convert, what they must become, and engines to do it on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from sdconvert.batch import Job, Options, RayExecutor
from tests.corpus import samples

Checkpoints = Callable[[int], list[Job]]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """`checkpoints(n)`: jobs for n small checkpoints of their own, to be converted into ``out``."""

    def make(count: int) -> list[Job]:
        for name in ("in", "out"):
            (tmp_path / name).mkdir(exist_ok=True)
        jobs = []
        for number in range(count):
            source = tmp_path / "in" / f"{number}.pt"
            torch.save({"w": torch.full((1000,), float(number)), "b": torch.arange(number)}, source)
            jobs.append(Job(str(source), str(tmp_path / "out" / f"{number}.safetensors"), Options()))
        return jobs

    return make


@pytest.fixture
def real_checkpoints(corpus: Path, tmp_path: Path) -> list[Job]:
    """Jobs for 40 files of the corpus, the small ones first."""
    (tmp_path / "out").mkdir()
    chosen = sorted((s for s in samples() if s.expect == "convert"), key=lambda s: s.path.stat().st_size)[:40]
    assert len(chosen) == 40
    jobs = []
    for number, sample in enumerate(chosen):  # Copies: a fault's marks lie beside its source.
        source = tmp_path / "in" / f"{number}{sample.path.suffix}"
        source.parent.mkdir(exist_ok=True)
        shutil.copyfile(sample.path, source)
        jobs.append(Job(str(source), str(tmp_path / "out" / f"{number}.safetensors")))
    return jobs


def one_at_a_time(jobs: list[Job], directory: Path) -> dict[str, bytes]:
    """What `sdconvert.convert` makes of every source, by the name of its output."""
    directory.mkdir()
    made = {}
    for job in jobs:
        path = directory / Path(job.output).name
        sdconvert.convert(job.source, path)
        made[path.name] = path.read_bytes()
    return made


def outputs(jobs: list[Job]) -> dict[str, bytes]:
    """What is in the jobs' output directory, whatever its name is."""
    directory = Path(jobs[0].output).parent
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks go wrong where `faults.plan` says so."""
    from tests.batch import faults

    monkeypatch.setattr("sdconvert.batch.driver.run", faults.run)


Engines = Callable[[], Any]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A cluster of a head and two nodes, of one processor each, on this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **memory)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Any]:
    """Dask's cluster of two worker processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed")
    import dask

    # Dask itself would let a task kill four workers before it says so.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        yield cluster


@pytest.fixture(params=["processes", "ray", "dask"])
def engine(request: pytest.FixtureRequest) -> Iterator[str | Executor]:
    """What to give as `executor`: the name of each engine, or an executor of it."""
    if request.param == "processes":
        yield "processes"
    elif request.param == "ray":
        request.getfixturevalue("ray_cluster")
        with RayExecutor(None, 2) as executor:
            yield executor
    else:
        cluster = request.getfixturevalue("dask_cluster")
        yield f"dask:{cluster.scheduler_address}"
