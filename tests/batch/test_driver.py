"""The driver by itself, on executors that are here: how many jobs it holds, what it repeats, what it writes down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sdconvert
from sdconvert import ChoiceError, Limits, OutputError, SdconvertError
from sdconvert.batch import Job, Manifest, Options, Outcome, convert_many, read, run
from sdconvert.batch.executors import engine
from tests.batch.conftest import Checkpoints, one_at_a_time, outputs


class Scripted(Executor):
    """An executor that does nothing but say what `script` says of the n-th job it is given."""

    def __init__(self, script: Callable[[int, Job], Outcome | Exception]) -> None:
        self.script, self.given = script, 0
        self.jobs: list[Job] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        said = self.script(self.given, args[0])
        self.given += 1
        self.jobs.append(args[0])
        if isinstance(said, Exception):
            future.set_exception(said)
        else:
            future.set_result(said)
        return future


DONE = Outcome("done", nbytes=10)
PASSING = Outcome("failed", error="a network was away", transient=True)
REFUSED = Outcome("failed", error="x.pt: is not a checkpoint")


def some(count: int) -> Iterator[Job]:
    return (Job(f"{number}.pt", f"{number}.safetensors") for number in range(count))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdconvert.batch.driver._PAUSE", 0.0)


def test_all_jobs_are_done_once() -> None:
    executor = Scripted(lambda number, job: DONE)
    summary = convert_many(some(100), executor=executor, workers=3)
    assert (summary.done, summary.nbytes, summary.ok) == (100, 1000, True)
    assert [job.source for job in executor.jobs] == [job.source for job in some(100)]


def test_no_more_than_twice_the_workers_are_in_flight() -> None:
    taken: list[int] = []
    running: list[Future[Outcome]] = []

    class Slow(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            running.append(Future())
            taken.append(len(running) - sum(future.done() for future in running))
            if taken[-1] == 6:  # Nothing ends before six are there.
                running[len(taken) - 6].set_result(DONE)
            return running[-1]

    def jobs() -> Iterator[Job]:
        yield from some(50)
        for future in running:
            if not future.done():
                future.set_result(DONE)

    assert convert_many(jobs(), executor=Slow(), workers=3).done == 50
    assert max(taken) == 6


def test_what_may_pass_is_tried_again_as_often_as_was_said() -> None:
    summary = convert_many(some(1), executor=Scripted(lambda number, job: PASSING), workers=1, retries=4)
    assert (summary.failed, summary.retried, summary.ok) == (1, 4, False)
    summary = convert_many(
        some(1), executor=Scripted(lambda number, job: PASSING if number < 2 else DONE), workers=1, retries=2
    )
    assert (summary.done, summary.retried, summary.ok) == (1, 2, True)


def test_what_a_file_causes_is_not_tried_again() -> None:
    executor = Scripted(lambda number, job: REFUSED)
    assert convert_many(some(3), executor=executor, workers=1).failed == 3
    assert executor.given == 3


def test_a_job_whose_worker_is_lost_again_and_again_is_set_aside() -> None:
    executor = Scripted(lambda number, job: RuntimeError("node died") if job.source == "1.pt" else DONE)
    summary = convert_many(some(3), executor=executor, workers=1, retries=2)
    assert (summary.done, summary.set_aside) == (2, 1)
    assert summary.failures[0].source == "1.pt"
    assert "3 workers were lost" in summary.failures[0].error


def test_an_executor_that_was_given_and_broke_is_an_error() -> None:
    with pytest.raises(SdconvertError, match="not ours to start again"):
        convert_many(some(3), executor=Scripted(lambda number, job: BrokenExecutor()), workers=1)


def test_stopping_at_the_first_failure_leaves_the_rest() -> None:
    executor = Scripted(lambda number, job: REFUSED if number == 2 else DONE)
    summary = convert_many(some(1000), executor=executor, workers=1, on_error="stop")
    assert (summary.stopped, summary.failed, summary.ok) == (True, 1, False)
    assert executor.given <= 4


def test_a_thousand_failures_are_counted_and_a_hundred_told() -> None:
    summary = convert_many(some(1000), executor=Scripted(lambda number, job: REFUSED), workers=2)
    assert (summary.failed, len(summary.failures)) == (1000, 100)
    assert "and 900 more" in str(summary)


@pytest.mark.parametrize(
    "wrong", [{"on_error": "ignore"}, {"resume": True}, {"executor": "abacus"}, {"executor": "processes:here"}]
)
def test_arguments_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ChoiceError):
        convert_many(some(1), **wrong)


def test_resuming_skips_what_is_done_and_unchanged(checkpoints: Checkpoints, tmp_path: Path) -> None:
    jobs, manifest = checkpoints(6), str(tmp_path / "manifest")
    with ThreadPoolExecutor(2) as executor:
        first = convert_many(jobs[:4], executor=executor, manifest=manifest)
        Path(jobs[1].output).unlink()  # An output that went away,
        source = Path(jobs[2].source)  # and a source that was replaced.
        source.write_bytes(Path(jobs[3].source).read_bytes())
        second = convert_many(jobs, executor=executor, manifest=manifest, resume=True)
    assert (first.done, second.skipped, second.done, second.failed) == (4, 2, 3, 1)
    assert "exists already" in second.failures[0].error  # Another's weights are not overwritten unasked.


def test_running_a_job_twice_is_harmless(checkpoints: Checkpoints) -> None:
    jobs = checkpoints(3)
    with ThreadPoolExecutor(2) as executor:
        convert_many(jobs, executor=executor)
        before = outputs(jobs)
        summary = convert_many(jobs, executor=executor)
    assert (summary.done, summary.there, summary.ok) == (0, 3, True)
    assert outputs(jobs) == before


def test_a_torn_line_is_no_line(checkpoints: Checkpoints, tmp_path: Path) -> None:
    jobs, path = checkpoints(4), tmp_path / "manifest"
    with ThreadPoolExecutor(2) as executor:
        convert_many(jobs, executor=executor, manifest=str(path))
        path.write_bytes(path.read_bytes()[:-40])
        expected = one_at_a_time(jobs, tmp_path / "single")
        summary = convert_many(jobs, executor=executor, manifest=str(path), resume=True)
    assert (summary.skipped, summary.there, summary.ok) == (3, 1, True)
    assert outputs(jobs) == expected
    assert [record["status"] for record in read(path)] == ["done"] * 3 + ["there"]


def test_a_manifest_has_one_writer(tmp_path: Path) -> None:
    book = Manifest(tmp_path / "manifest")
    with pytest.raises(OutputError, match="another run"):
        Manifest(tmp_path / "manifest")
    book.close()
    Manifest(tmp_path / "manifest").close()


@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "/dev/full"])
def test_a_manifest_is_a_file(what: str, tmp_path: Path) -> None:
    """A FIFO waits for ever, and a device has no end."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OutputError, match="is not a regular file"):
        Manifest(tmp_path / what)


def test_a_manifest_full_of_nonsense_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    lines = [
        b"\0\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        b'{"bytes": ' + b"9" * 5000 + b"}",
        b'{"job": 5}',
        b'{"job": "zz", "status": "done", "outputs": []}',
        b'{"job": "00", "status": ["done"], "outputs": []}',
        *(
            b'{"job": "00", "status": "done", "outputs": %s}' % outputs
            for outputs in (
                b"null",
                b'"abc"',
                b"[5]",
                b'[{"path": 5, "bytes": "x"}]',
                b'[{"path": "a\\u0000b", "bytes": 5}]',
                b'[{"path": "nosuch://x/y", "bytes": 5}]',
                b'[{"path": "memory://x/y", "bytes": 1e999}]',
            )
        ),
        b'{"status": 1',
    ]
    path.write_bytes(b"\n".join(lines))
    book = Manifest(path)
    assert book.done() == set()
    book.add({"job": "00", "status": "done", "outputs": []})
    book.close()
    assert path.read_bytes().endswith(b'\n{"job": "00", "status": "done", "outputs": []}\n')


def checkpoint(path: Path, seed: int = 0) -> str:
    """A checkpoint of four tensors, float32; its path."""
    torch.manual_seed(seed)
    torch.save({f"{number}.w": torch.randn(40, 50) for number in range(4)}, path)
    return str(path)


WAYS = {
    "cast": Options(dtype="bfloat16"),
    "metadata": Options(metadata=(("from", "here"),)),
    "sharded": Options(max_shard_size=20_000),
    "pt": Options(format="pt"),
}


@pytest.fixture(params=["directory", "url"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where outputs go to: a directory, or the same as a URL."""
    (tmp_path / "out").mkdir()
    if request.param == "url":
        pytest.importorskip("fsspec")
    return str(tmp_path / "out") if request.param == "directory" else f"file://{tmp_path}/out"


@pytest.mark.parametrize("way", WAYS)
def test_what_was_done_without_a_word_is_found_done(way: str, out: str, tmp_path: Path) -> None:
    """As when the driver is killed between the end of a job and the line that says so."""
    job = Job(checkpoint(tmp_path / "model.pt"), f"{out}/model.{WAYS[way].format or 'safetensors'}", WAYS[way])
    with ThreadPoolExecutor(2) as executor:
        first = convert_many([job], executor=executor, manifest=tmp_path / "manifest")
        before = files(tmp_path / "out")
        [record] = read(tmp_path / "manifest")
        (tmp_path / "manifest").unlink()
        again = convert_many([job], executor=executor, manifest=tmp_path / "manifest", resume=True)
    assert (first.done, again.there, again.failed) == (1, 1, 0), (first.failures, again.failures)
    assert files(tmp_path / "out") == before
    assert [one["path"] for one in record["outputs"]] == [
        one["path"] for one in next(iter(read(tmp_path / "manifest")))["outputs"]
    ]


@pytest.mark.parametrize("way", WAYS)
def test_what_another_job_left_is_not_touched(way: str, out: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model.pt")
    with ThreadPoolExecutor(2) as executor:
        convert_many([Job(source, f"{out}/model.{WAYS[way].format or 'safetensors'}", WAYS[way])], executor=executor)
        before = files(tmp_path / "out")
        checkpoint(tmp_path / "model.pt", seed=1)
        again = convert_many(
            [Job(source, f"{out}/model.{WAYS[way].format or 'safetensors'}", WAYS[way])], executor=executor
        )
    assert (again.done, again.there, again.failed) == (0, 0, 1)
    assert "exists already" in again.failures[0].error
    assert files(tmp_path / "out") == before


def test_shards_that_are_replaced_never_lie_beside_the_old_index(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(checkpoint(tmp_path / "model.pt"), f"{out}/model.safetensors", WAYS["sharded"])
    seen: list[set[str]] = []

    def looking(job: Job, part: int) -> Outcome:
        outcome = run(job, part)
        seen.append(set(files(tmp_path / "out")))
        return outcome

    monkeypatch.setattr("sdconvert.batch.driver.run", looking)
    with ThreadPoolExecutor(1) as executor:
        convert_many([job], executor=executor)
        checkpoint(tmp_path / "model.pt", seed=1)
        seen.clear()
        again = replace(job, options=replace(job.options, overwrite=True))
        assert convert_many([again], executor=executor).done == 1
    index = "model.safetensors.index.json"
    assert [index in names for names in seen] == [False] * (len(seen) - 1) + [True]
    assert len(seen) > 3


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_sources_that_are_named_twice_are_converted_once(overwrite: bool, tmp_path: Path) -> None:
    source, options = checkpoint(tmp_path / "model.pt"), Options(overwrite=overwrite)
    jobs = [Job(source, str(tmp_path / "model.safetensors"), options)] * 5
    with ThreadPoolExecutor(3) as executor:
        summary = convert_many(jobs, executor=executor)
    assert (summary.done, summary.there + summary.repeated, summary.ok) == (1, 4, True), summary.failures


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [None, 20_000])
def test_two_sources_never_become_one_output(overwrite: bool, size: int | None, tmp_path: Path) -> None:
    options = Options(overwrite=overwrite, max_shard_size=size)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "model.safetensors"
    jobs = [Job(checkpoint(tmp_path / f"{n}.pt", seed=n), str(output), options) for n in range(3)]
    with ThreadPoolExecutor(1) as executor:
        summary = convert_many(jobs, executor=executor, workers=1)
    assert (summary.done, summary.failed) == ((1, 2) if size is None or overwrite else (summary.done, 3 - summary.done))
    assert ("another source" if overwrite else "exists already") in summary.failures[0].error
    whole = output if size is None else output.with_name("model.safetensors.index.json")
    assert not summary.done or any(sdconvert.verify(job.source, whole).equal for job in jobs)
    assert summary.done or files(tmp_path / "out") == {}


def test_what_does_not_decide_the_output_does_not_have_it_made_again(tmp_path: Path) -> None:
    job, manifest = Job(checkpoint(tmp_path / "m.pt"), str(tmp_path / "m.safetensors")), tmp_path / "manifest"
    with ThreadPoolExecutor(1) as executor:
        convert_many([job], executor=executor, manifest=manifest)
        other = Options(overwrite=True, threads=3, digest=False, limits=Limits(expansion=99), token="hf_xyz")
        again = convert_many([replace(job, options=other)], executor=executor, manifest=manifest, resume=True)
        cast = replace(job, options=replace(other, dtype="float16"))
        changed = convert_many([cast], executor=executor, manifest=manifest, resume=True)
    assert (again.skipped, again.done) == (1, 0)
    assert (changed.skipped, changed.done) == (0, 1)
    assert b"hf_xyz" not in manifest.read_bytes()
    assert "hf_xyz" not in repr(cast)


@pytest.mark.parametrize("harm", ["gone", "cut short", "grown"])
def test_an_output_that_is_not_what_it_was_is_made_again(harm: str, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    job, manifest = Job(checkpoint(tmp_path / "m.pt"), str(output), Options(overwrite=True)), tmp_path / "manifest"
    with ThreadPoolExecutor(1) as executor:
        convert_many([job], executor=executor, manifest=manifest)
        before = output.read_bytes()
        if harm == "gone":
            output.unlink()
        else:
            output.write_bytes(before[:-1] if harm == "cut short" else before + b"x")
        again = convert_many([job], executor=executor, manifest=manifest, resume=True)
    assert (again.skipped, again.done) == (0, 1)
    assert output.read_bytes() == before


def test_each_worker_has_its_share_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdconvert.batch.executors.processors", lambda: 8)
    assert [engine("processes", workers).threads for workers in (1, 2, 3, 8, 64, None)] == [8, 4, 2, 1, 1, 1]
    with ThreadPoolExecutor(3) as executor:
        assert engine(executor, 3).threads == 1
    given: list[int | None] = []

    class Asking(Scripted):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            given.append(args[0].options.threads)
            return super().submit(fn, *args, **kwargs)

    jobs = [Job("a.pt", "a"), Job("b.pt", "b", Options(threads=5))]
    convert_many(jobs, executor=Asking(lambda number, job: DONE))
    assert given == [1, 5]


def test_no_worker_of_a_broken_pool_is_waited_for() -> None:
    """One that was started in the moment in which the pool broke is not ended by it."""
    machine = engine("processes", 1)
    pool: Any = machine.start()
    first = pool.submit(os.getpid).result()
    late = pool._mp_context.Process(target=time.sleep, args=(100_000,))
    late.start()
    late.terminate = lambda: None
    pool._processes[late.pid] = late
    watcher = pool._executor_manager_thread
    try:
        os.kill(first, signal.SIGKILL)
        watcher.join(0.5)
        assert late.is_alive()
        again = machine.start()
        assert again.submit(os.getpid).result() != first
        watcher.join(60)
        assert not watcher.is_alive()
        assert not late.is_alive()
        again.shutdown()
    finally:
        late.kill()


MANY = """
import resource, sys
from concurrent.futures import Executor, Future
from sdconvert.batch import Job, Outcome, convert_many
class At_once(Executor):
    def submit(self, fn, job, part):
        future = Future()
        future.set_result(Outcome("done"))
        return future
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
jobs = (Job(f"s3://bucket/model-{n}.pt", f"s3://bucket/out/model-{n}.safetensors") for n in range(int(sys.argv[1])))
print(convert_many(jobs, executor=At_once(), workers=32, manifest=sys.argv[2]).done)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_driver_does_not_grow_with_the_number_of_jobs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY, "100000", str(tmp_path / "manifest")], capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 100_000
    assert grown < 4 << 10  # kiB


def test_the_limits_of_a_job_go_with_it(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(50)}, tmp_path / "model.pt")
    strict = Options(limits=Limits(expansion=16, expansion_slack=0))
    source = str(tmp_path / "model.pt")
    jobs = [Job(source, str(tmp_path / "a.safetensors"), strict), Job(source, str(tmp_path / "b.safetensors"))]
    with ThreadPoolExecutor(1) as executor:
        summary = convert_many(jobs, executor=executor)
    assert (summary.done, summary.failed) == (1, 1)
    assert "--max-expansion" in summary.failures[0].error
