"""The driver: hands jobs out, takes outcomes in, tries again what may pass, and writes down what was done.

It holds no more than the jobs in flight, twice as many as there are workers; sources may be a
generator of any length. A worker that dies takes its job along. On this machine all jobs in
flight are lost with it and nobody knows whose fault it was, so they are run one at a time until
each is done or was seen to kill a worker alone; on a cluster the job itself is known. Whoever
kills too often is set aside.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ChoiceError, SdconvertError, printable
from ..opening import PathLike
from ..sharding import DIVIDE, INDEX
from .executors import Engine, engine
from .jobs import Job, state_of
from .manifest import Manifest
from .seen import Outputs
from .summary import Failure, Summary
from .task import DIVIDED, FAILED, Outcome, discard, run

SET_ASIDE, SKIPPED, REPEATED = "set aside", "skipped", "repeated"

_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # Seconds before the second try, doubled for each more.
_TOLD = 100  # Failures that a summary carries; the manifest has all.

Progress = Callable[[Job, Outcome], None]
"""Called with every job that came to its end, and how."""


@dataclass
class _Whole:
    """A job whose output is several files: `left` shards are still to be done, then the index."""

    left: int
    done: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    tries: int = 0
    over: bool = False


@dataclass
class _Attempt:
    """A job, or a part of one, on its way: how often it failed in passing, and how often its worker was lost."""

    job: Job
    part: int = DIVIDE
    whole: _Whole | None = None
    failed: int = 0
    lost: int = 0


def convert_many(
    jobs: Iterable[Job],
    *,
    executor: str | Executor = "processes",
    workers: int | None = None,
    manifest: PathLike | None = None,
    resume: bool = False,
    retries: int = 3,
    on_error: str = "continue",
    progress: Progress = lambda job, outcome: None,
) -> Summary:
    """Convert all `jobs` on an executor, and say what became of them. Nothing is raised for a job that fails.

    `executor` is ``processes``, ``ray[:ADDRESS]``, ``dask:ADDRESS``, the name of an installed engine, or any
    `concurrent.futures.Executor`, which stays open. `workers` jobs run at once, twice as many are handed out.
    `manifest` is a path to append one line of JSON to for each job; with `resume`, jobs that it knows
    as done are skipped if neither source nor output has changed. What may pass (the system's or
    a network's errors, a lost worker) is tried again `retries` times; what a file's content causes is not.
    With `on_error` ``stop``, the first failure ends the batch, else it goes on.

    Raises ChoiceError for arguments that make no sense, UnsupportedError when the executor's package is
    not installed, OutputError when the manifest cannot be written. KeyboardInterrupt ends what runs;
    nothing half-written stays, and `resume` goes on.
    """
    if on_error not in ("continue", "stop"):
        raise ChoiceError(f"on_error is {on_error!r}, neither 'continue' nor 'stop'")
    if resume and manifest is None:
        raise ChoiceError("resuming needs the manifest of the run that is to be resumed")
    book = Manifest(manifest) if manifest is not None else None
    try:
        machine = engine(executor, workers)
        driver = _Driver(machine, book, retries, on_error == "stop", progress)
        done = book.done() if book is not None and resume else set()
        try:
            driver.run(iter(jobs), done)
        finally:
            driver.close(keep=isinstance(executor, Executor))
        return driver.summary()
    finally:
        if book is not None:
            book.close()


class _Driver:
    """One batch: what is in flight, what waits for another try, and the numbers."""

    def __init__(
        self, machine: Engine, book: Manifest | None, retries: int, stop_at_failure: bool, progress: Progress
    ) -> None:
        self.engine, self.book, self.retries = machine, book, retries
        self.stop_at_failure, self.progress = stop_at_failure, progress
        self.executor = machine.start()
        self.running: dict[Future[Outcome], _Attempt] = {}
        self.later: list[tuple[float, int, _Attempt]] = []  # A heap by time.
        self.suspects: deque[_Attempt] = deque()
        self.parts: deque[_Attempt] = deque()  # Of the jobs that were divided, in their order.
        self.order = itertools.count()
        self.outputs = Outputs()
        self.counts: dict[str, int] = {}
        self.nbytes = self.retried = 0
        self.failures: list[Failure] = []
        self.stopped = False
        self.began = time.perf_counter()

    def run(self, jobs: Iterator[Job], done: set[bytes]) -> None:
        """Until all is done."""
        try:
            while True:
                self.hand_out(jobs, done)
                if self.running:
                    self.take_in()
                elif self.later and not self.stopped:
                    time.sleep(max(0.0, self.later[0][0] - time.monotonic()))
                elif not self.suspects:
                    return
                if self.book is not None:
                    self.book.sync()
        except BaseException:
            if self.engine.stop is not None:
                self.engine.stop()
            else:
                for future in self.running:
                    future.cancel()
            raise

    def hand_out(self, jobs: Iterator[Job], done: set[bytes]) -> None:
        """Keep the workers busy: two jobs for each, or one in all while somebody is suspected."""
        while self.suspects and not self.running:
            self.submit(self.suspects.popleft())
        while not self.suspects and len(self.running) < 2 * self.engine.workers and not self.stopped:
            attempt = self.next(jobs, done)
            if attempt is None:
                return
            self.submit(attempt)

    def next(self, jobs: Iterator[Job], done: set[bytes]) -> _Attempt | None:
        if self.later and self.later[0][0] <= time.monotonic():
            return heapq.heappop(self.later)[2]
        while self.parts:
            part = self.parts.popleft()
            if part.whole is None or not part.whole.over:
                return part
        for job in jobs:
            # Only then would the second of two replace the first; otherwise it finds what is there.
            of_this = self.outputs.source_of(job.output, job.source) if job.options.overwrite else None
            if of_this:
                self.count(job, Outcome(REPEATED))
            elif of_this is False:
                self.refuse(job)
            elif done and self.is_done(job, done):
                self.count(job, Outcome(SKIPPED))
            else:
                return _Attempt(job)
        return None

    def refuse(self, job: Job) -> None:
        why = f"{job.source}: another source became {job.output} already. --relative-to keeps their places apart"
        self.count(job, Outcome(FAILED, error=printable(why), kind=ChoiceError.__name__), _Attempt(job))

    def is_done(self, job: Job, done: set[bytes]) -> bool:
        try:
            return bytes.fromhex(job.fingerprint(state_of(job.source, job.options.token))) in done
        except Exception:  # It will fail where failures are counted.
            return False

    def submit(self, attempt: _Attempt) -> None:
        try:
            future = self.executor.submit(run, self.with_threads(attempt.job), attempt.part)
        except BrokenExecutor:
            self.suspects.append(attempt)
            if not self.running:
                self.restart()
            return
        self.running[future] = attempt

    def with_threads(self, job: Job) -> Job:
        if job.options.threads is not None:
            return job
        return replace(job, options=replace(job.options, threads=self.engine.threads))

    def take_in(self) -> None:
        """Wait for something to end, and deal with all that did."""
        pause = None
        if self.later and len(self.running) < 2 * self.engine.workers:
            pause = max(0.0, self.later[0][0] - time.monotonic())
        ended, _ = wait(self.running, timeout=pause, return_when=FIRST_COMPLETED)
        broken: list[_Attempt] = []
        alone = len(self.running) == 1
        for future in ended:
            attempt = self.running.pop(future)
            error = future.exception()
            if error is None:
                self.ended(attempt, future.result())
            elif isinstance(error, BrokenExecutor):
                broken.append(attempt)
            else:
                self.lost(attempt, error)
        if broken:
            broken += self.running.values()  # The whole pool is gone.
            self.running.clear()
            if alone:
                broken = [attempt for attempt in broken if self.may_go_on(attempt, BrokenExecutor())]
            self.suspects.extend(broken)
            self.restart()

    def restart(self) -> None:
        if not self.engine.restarts:
            raise SdconvertError("the executor broke, and it is not ours to start again. --resume goes on with another")
        with suppress(Exception):
            self.executor.shutdown(wait=False)
        self.executor = self.engine.start()

    def ended(self, attempt: _Attempt, outcome: Outcome) -> None:
        if outcome.status == FAILED and outcome.transient and attempt.failed < self.retries:
            attempt.failed += 1
            self.again(attempt, attempt.failed)
        elif outcome.status == DIVIDED:
            whole = _Whole(outcome.parts)
            self.parts.extend(_Attempt(attempt.job, number, whole) for number in range(1, outcome.parts + 1))
        elif attempt.whole is None:
            self.count(attempt.job, outcome, attempt)
        else:
            self.part_ended(attempt, attempt.whole, outcome)

    def part_ended(self, attempt: _Attempt, whole: _Whole, outcome: Outcome) -> None:
        """One file of several: the index is next when all shards are there, and what it says is the job's outcome."""
        whole.done.append(outcome)
        whole.seconds += outcome.seconds
        whole.tries += attempt.failed + attempt.lost
        whole.left -= 1
        if whole.over:
            discard(outcome)
            return
        if outcome.error or attempt.part == INDEX:
            whole.over = True
            shards = sorted((one for done in whole.done[:-1] for one in done.outputs), key=lambda one: one.path)
            outputs = () if outcome.error else (*outcome.outputs, *shards)
            total = replace(outcome, outputs=outputs, seconds=whole.seconds)
            self.count(attempt.job, total, replace(attempt, failed=whole.tries, lost=0))
            if outcome.error:  # Shards without an index are nothing.
                for done in whole.done:
                    discard(done)
        elif whole.left == 0:
            self.parts.appendleft(_Attempt(attempt.job, INDEX, whole))

    def lost(self, attempt: _Attempt, error: BaseException) -> None:
        """The engine says that the worker of this job died, or its machine."""
        if self.may_go_on(attempt, error):
            self.again(attempt, attempt.lost)

    def may_go_on(self, attempt: _Attempt, error: BaseException) -> bool:
        """Whether a job that lost its worker is tried again; set aside if not."""
        attempt.lost += 1
        if attempt.lost <= self.retries:
            return True
        why = f"{attempt.job.source}: {attempt.lost} workers were lost with it ({type(error).__name__})"
        outcome = Outcome(SET_ASIDE, error=printable(why), kind=type(error).__name__)
        if attempt.whole is None:
            self.count(attempt.job, outcome, attempt)
        else:
            self.part_ended(attempt, attempt.whole, outcome)
        return False

    def again(self, attempt: _Attempt, times: int) -> None:
        self.retried += 1
        pause = min(_LONGEST_PAUSE, _PAUSE * 2 ** (times - 1)) * random.uniform(0.5, 1.0)
        heapq.heappush(self.later, (time.monotonic() + pause, next(self.order), attempt))

    def count(self, job: Job, outcome: Outcome, attempt: _Attempt | None = None) -> None:
        self.counts[outcome.status] = self.counts.get(outcome.status, 0) + 1
        self.nbytes += outcome.nbytes
        if outcome.error:
            if len(self.failures) < _TOLD:
                self.failures.append(Failure(job.source, outcome.error))
            self.stopped = self.stopped or self.stop_at_failure
        if self.book is not None and attempt is not None:
            self.book.add(_record(job, outcome, attempt))
        self.progress(job, outcome)

    def summary(self) -> Summary:
        counts = self.counts
        return Summary(
            done=counts.get("done", 0),
            there=counts.get("there", 0),
            skipped=counts.get(SKIPPED, 0),
            repeated=counts.get(REPEATED, 0),
            failed=counts.get(FAILED, 0),
            set_aside=counts.get(SET_ASIDE, 0),
            retried=self.retried,
            nbytes=self.nbytes,
            seconds=time.perf_counter() - self.began,
            failures=tuple(self.failures),
            stopped=self.stopped,
        )

    def close(self, *, keep: bool) -> None:
        if not keep:
            self.executor.shutdown(wait=True)
            self.engine.close()


def _record(job: Job, outcome: Outcome, attempt: _Attempt) -> dict[str, Any]:
    """A line of the manifest."""
    record: dict[str, Any] = {
        "status": outcome.status,
        "source": job.source,
        "output": job.output,
        "job": job.fingerprint(outcome.state),
        "outputs": [{"path": one.path, "bytes": one.nbytes, "sha256": one.sha256} for one in outcome.outputs],
        "tensors": outcome.tensors,
        "bytes": outcome.nbytes,
        "seconds": round(outcome.seconds, 3),
        "attempts": 1 + attempt.failed + attempt.lost,
        **outcome.about,
    }
    if outcome.error:
        record |= {"error": outcome.error, "kind": outcome.kind}
    return record
