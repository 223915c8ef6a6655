"""A cluster that loses a machine."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import pytest

from sdconvert.batch import RayExecutor, convert_many
from tests.batch import faults
from tests.batch.conftest import Checkpoints, one_at_a_time, outputs

pytestmark = [pytest.mark.xdist_group("engines"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc to see workers end")
@pytest.mark.usefixtures("faulty")
def test_a_ray_node_that_goes_away_takes_no_job_with_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    jobs = checkpoints(8)
    expected = one_at_a_time(jobs, tmp_path / "single")
    for job in jobs:
        faults.plan(Path(job.source), "wait", 1)
    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    node = cluster.add_node(num_cpus=2, **memory)
    cluster.add_node(num_cpus=2, **memory)
    ray.init(address=cluster.address, log_to_driver=False)

    def remove_when_busy() -> None:
        while sum(faults.tries(Path(job.source)) for job in jobs) < 4:  # Both nodes have two jobs then, that wait.
            time.sleep(0.1)
        busy = {pid for job in jobs for pid in faults.workers(Path(job.source))}
        cluster.remove_node(node, allow_graceful=False)
        while len([pid for pid in busy if is_alive(pid)]) > 2:  # They outlive their node for a moment.
            time.sleep(0.1)
        faults.go(Path(jobs[0].source))

    try:
        with RayExecutor(None, 4) as executor:
            Thread(target=remove_when_busy, daemon=True).start()
            summary = convert_many(jobs, executor=executor, workers=4)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (summary.done + summary.there, summary.ok) == (8, True), summary.failures
    assert summary.retried > 0  # Or the node was idle, and nothing was shown.
    assert outputs(jobs) == expected


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
