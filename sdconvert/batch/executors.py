"""The engines that jobs run on. None is our own: all are `concurrent.futures` executors, or thin covers of a cluster's.

``processes`` runs on this machine, ``ray`` or ``ray:ADDRESS`` and ``dask:ADDRESS`` on a cluster. Other packages
add engines through the entry-point group ``sdconvert.executors``: a callable that takes an
address (or None) and a number of workers (or None) and returns an executor.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from ..errors import ChoiceError, UnsupportedError

GROUP = "sdconvert.executors"


@dataclass(frozen=True)
class Engine:
    """How to start an executor, again if it broke, how many jobs run on it at once, and how many threads each has.

    `stop` ends what is running and what waits; without it, what waits is cancelled and what runs is waited for.
    `close` comes last.
    """

    start: Callable[[], Executor]
    workers: int
    threads: int = 1
    restarts: bool = False
    stop: Callable[[], None] | None = None
    close: Callable[[], object] = lambda: None


def engine(executor: str | Executor, workers: int | None) -> Engine:
    """The engine that `executor` names, or a given executor as one. ChoiceError when there is none of that name,
    UnsupportedError when what it needs is not installed."""
    if isinstance(executor, Executor):
        given = executor
        size = workers or getattr(executor, "_max_workers", None) or processors()
        return Engine(lambda: given, size)
    name, _, address = executor.partition(":")
    if name == "processes" and not address:
        return _processes(workers or processors())
    if name == "ray":
        _need("ray", "ray")
        return _ray(address or None, workers)
    if name == "dask" and address:
        _need("distributed", "dask")
        return _dask(address, workers)
    for found in entry_points(group=GROUP):
        if found.name == name:
            start = partial(found.load(), address or None, workers)
            return Engine(start, workers or processors(), restarts=True)
    known = ["processes", "ray[:ADDRESS]", "dask:ADDRESS", *(found.name for found in entry_points(group=GROUP))]
    raise ChoiceError(f"there is no executor {executor!r}, only {', '.join(known)}")


def processors() -> int:
    """How many this process may use, which a scheduler may have made fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise UnsupportedError(f"{module} is not installed. Install it with: pip install 'sdconvert[{extra}]'")


# This machine


class _Worker(SpawnProcess):
    """A process that a Ctrl-C, which a terminal sends to all, does not reach before `_begin` could say so."""

    def start(self) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # A new process has its parent's.
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Context(SpawnContext):
    """Processes that are remembered, so that they can be ended. Spawned: a fork would copy our threads' locks."""

    def __init__(self) -> None:
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = _Worker(*args, **kwargs)
        self.started = [one for one in self.started if one.is_alive()] + [process] if self.started else [process]
        return process


def _processes(workers: int) -> Engine:
    context = _Context()

    def start() -> Executor:
        # A pool that breaks while it starts a process does not end that one, and then waits for it for ever.
        for process in context.started:
            if process.is_alive():
                process.kill()
        context.started.clear()
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)

    def stop() -> None:
        # No future is cancelled: a pool that breaks means to tell each, and says so aloud if it cannot.
        for process in context.started:
            if process.is_alive():
                process.terminate()

    # As many workers as processors need no second thread; fewer share the processors that are left over.
    return Engine(start, workers, max(1, processors() // workers), restarts=True, stop=stop)


def _begin() -> None:
    """In a new worker: Ctrl-C is the driver's business, a driver that is gone wants no more work, and torch
    is to use one processor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    # A job's own threads call torch side by side. Schedulers like to set this to the processors of the whole task.
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)  # Outputs have no name until they are whole, so there is nothing to clean up.

        threading.Thread(target=watch, name="sdconvert-watch", daemon=True).start()


# Ray


class RayExecutor(Executor):
    """Ray tasks behind the interface of an executor, of one processor each.

    A task is tried once: whoever submits it knows better whether another try makes sense.
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        import ray

        self._ours = not ray.is_initialized()
        if self._ours:
            size = {} if address else {"num_cpus": workers}
            ray.init(address=address, log_to_driver=False, include_dashboard=False if not address else None, **size)
        self._remote = ray.remote(num_cpus=1, max_retries=0)(_call)
        self._running: set[Any] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a task; its future ends with what `fn` returns, or with Ray's word for what happened to it."""
        reference = self._remote.remote(fn, args, kwargs)
        future: Future[Any] = reference.future()
        self._running.add(reference)
        future.add_done_callback(lambda done: self._running.discard(reference))
        return future

    def cancel_all(self) -> None:
        """Ask every running task to end."""
        import ray

        for reference in list(self._running):
            ray.cancel(reference, force=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, if it was this executor that joined it."""
        import ray

        if cancel_futures:
            self.cancel_all()
        if self._ours:
            ray.shutdown()


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _ray(address: str | None, workers: int | None) -> Engine:
    started: list[RayExecutor] = []

    def start() -> Executor:
        started.append(RayExecutor(address, workers))
        return started[-1]

    def size() -> int:
        import ray

        return workers or int(ray.cluster_resources().get("CPU", 1))

    executor = start()  # Its size is known only once it is there.
    return Engine(lambda: executor, size(), stop=lambda: started[-1].cancel_all())


# Dask


def _dask(address: str, workers: int | None) -> Engine:
    from distributed import Client

    client = Client(address)
    # Not pure: a task that failed is to be run again when it is submitted again.
    executor: Executor = client.get_executor(pure=False, retries=0)
    size = workers or sum(client.nthreads().values()) or 1
    return Engine(lambda: executor, size, close=client.close)
