"""Evaluations in worker processes of Ray, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import deque
from concurrent.futures import Executor, Future, InvalidStateError, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayTaskError, TaskCancelledError

from abcsearch.errors import (
    ConfigError,
    NodeLostError,
    RunError,
    WorkerLostError,
    WorkerStoppedError,
    one_line,
)
from abcsearch.execution.ray_cluster import NO_MEMORY, Cluster, connect, lost, sent
from abcsearch.execution.setup import sent_setup
from abcsearch.execution.worker_paths import own_paths, take_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

P = ParamSpec("P")
T = TypeVar("T")

_TICK = 0.5  # seconds between looks at timeouts
_LOOK = 5.0  # seconds between looks at the cluster
_PATIENCE = 30.0  # seconds without any worker after which the log says so
_VERDICT = 60.0  # seconds within which Ray finds out that a machine is gone
_STARTS = 3  # workers that may fail to start, one after the other, before the executor gives up
_LONGEST_PAUSE = 60.0  # seconds before another worker is started

# Of a call: whether it is kept in the object store, and the value or the reference to it
Part = tuple[bool, Any]


class _Host:
    """What a worker process runs: it keeps what it has been sent once."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def begin(self, paths: list[str], parts: list[Part]) -> str:
        """Loads what the first call needs, so that its time is not the call's; returns the id of the node."""
        take_paths(paths)
        for piece in parts:
            self._value(piece)
        return ray.get_runtime_context().get_node_id()

    def run(self, parts: list[Part]) -> Any:  # noqa: ANN401 - what the function returns
        """Calls a function with arguments, after the setup."""
        _, function, *arguments = map(self._value, parts)
        return function(*arguments)

    def _value(self, piece: Part) -> Any:  # noqa: ANN401 - any object
        kept, value = piece
        if not kept:
            return value
        if value.hex() not in self._kept:
            self._kept[value.hex()] = ray.get(value)
        return self._kept[value.hex()]


@dataclass(eq=False)
class _Task:
    """A call that has been submitted."""

    parts: list[Part]
    future: Future[Any]


@dataclass(eq=False)
class _Worker:
    """A worker process: starting until its node is known, then idle or with a task."""

    actor: Any
    node: str = ""
    task: _Task | None = None
    deadline: float = math.inf


class RayExecutor(Executor):
    """Runs calls in long-lived worker processes of Ray, which load what callables they are given once.

    Functions and callable arguments (an evaluator with its network and data) go to Ray's object store once, from where
    every node has one copy; anything else is sent with the call. Workers start when there is work for them, also on
    nodes that join later. A call whose worker dies, or takes too long, raises `WorkerLostError`; if its machine was
    lost, `NodeLostError`. The next call gets another worker.

    One thread owns all state: whatever happens is an event in its queue.
    """

    def __init__(
        self,
        workers: int,
        *,
        address: str | None = None,
        threads: int = 1,
        gpus: float = 0.0,
        timeout: float | None = None,
        log: Callable[[str], object] = str,  # drops it
    ) -> None:
        """Sets up an executor; Ray is started, or connected to, with the first call.

        Args:
            workers: how many there are at most.
            address: of a cluster, "host:port" or "auto"; None starts Ray on this machine, reachable from it only.
            threads: CPUs that each worker takes.
            gpus: share of a GPU that each worker takes.
            timeout: seconds that a call may take.
            log: takes a line when workers come and go.

        Raises:
            ConfigError: if there are no workers.
        """
        if workers < 1:
            msg = f"an executor of Ray needs 1 worker or more, found {workers}"
            raise ConfigError(msg)
        self._max_workers = workers
        self._address, self._threads, self._gpus = address, threads, gpus
        self._timeout = math.inf if timeout is None else timeout
        self._log = log
        self._cluster: Cluster | None = None
        self._kept: dict[
            int, tuple[Any, Any]
        ] = {}  # by id: the object, so that it stays this one, and its reference
        self._setup: Mapping[str, Callable[[], object]] = {}
        self._open: set[Future[Any]] = set()
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._manage, name="abcsearch-ray", daemon=True)
        self._tasks: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._unclear: list[
            tuple[float, _Worker, _Task, str]
        ] = []  # lost, but with or without its machine?
        self._failed_starts, self._next_start = 0, 0.0
        self._looked, self._waiting_since = time.monotonic(), time.monotonic()
        self._failure: RunError | None = None
        self._closed = False

    @property
    def alive(self) -> int:
        """How many workers have started and are there."""
        return sum(worker.node != "" for worker in list(self._workers))

    def prepare(self, setup: Mapping[str, Callable[[], object]]) -> None:
        """Has every worker make some calls, once, before those that are submitted from now on.

        Args:
            setup: the calls, by what they are called in messages; they are pickled with the next submitted call.
        """
        self._setup = setup

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Returns the future of a call.

        Raises:
            RunError: if there is no Ray to be had, or the arguments cannot be sent.
            RuntimeError: after `shutdown`.
        """
        if kwargs:
            msg = f"arguments go by position, found {', '.join(kwargs)}"
            raise TypeError(msg)
        if self._failure is not None:
            raise self._failure
        if self._closed:
            msg = "cannot schedule new calls after shutdown"
            raise RuntimeError(msg)
        if self._cluster is None:
            self._cluster = connect(
                self._address, self._max_workers * self._threads, self._gpus, self._log
            )
            self._thread.start()
        task = _Task([self._prepared(), *map(self._part, (fn, *args))], Future())
        self._open.add(task.future)
        task.future.add_done_callback(self._open.discard)
        self._events.put(lambda: self._accept(task))
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        """Stops the workers, and Ray where it was started here. With `cancel_futures`, what they do is dropped."""
        self._closed = True
        if self._cluster is None:
            return
        if wait and not cancel_futures:
            _wait(self._open)
        self._events.put(None)
        self._thread.join()
        for worker in self._workers:
            _kill(worker)
        self._workers.clear()
        self._kept.clear()
        self._cluster.close()
        self._cluster = None

    def _part(self, value: Any) -> Part:  # noqa: ANN401 - any argument
        """Returns an argument as it is sent: callables through the object store, once."""
        if not callable(value):
            return False, value
        if id(value) not in self._kept:
            self._kept[id(value)] = (
                value,
                sent(value, repr(value), "what an evaluator holds must be picklable"),
            )
        return True, self._kept[id(value)][1]

    def _prepared(self) -> Part:
        """Returns the setup as it is sent, once."""
        if not self._setup:
            return False, None
        if id(self._setup) not in self._kept:
            self._kept[id(self._setup)] = self._setup, sent_setup(self._setup)
        return True, self._kept[id(self._setup)][1]

    # -- the thread

    def _manage(self) -> None:
        """Handles events until None comes."""
        while True:
            event = None
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=_TICK)
                if event is None:
                    return
            try:
                if event is not None:
                    event()
                self._look()
                if self._failure is None:
                    self._assign()
            except Exception as error:  # noqa: BLE001 - without this thread, everybody would wait for ever
                self._give_up(f"Ray does not work any more: {error!r}")

    def _accept(self, task: _Task) -> None:
        """Takes a task from who submits it."""
        if self._failure is None:
            self._tasks.append(task)
        else:
            _fail(task.future, self._failure)

    def _say(self, line: str) -> None:
        """Tells the log, which may be on a full disk."""
        with contextlib.suppress(Exception):
            self._log(line)

    def _assign(self) -> None:
        """Gives tasks to idle workers, and starts workers where there are more tasks."""
        idle = [worker for worker in self._workers if worker.node and worker.task is None]
        while idle and self._tasks:
            task = self._tasks.popleft()
            if task.future.set_running_or_notify_cancel():
                self._give(idle.pop(), task)
        busy = sum(worker.task is not None for worker in self._workers)
        wanted = min(self._max_workers, busy + len(self._tasks))
        while len(self._workers) < wanted and time.monotonic() >= self._next_start:
            self._start(self._tasks[0])

    def _give(self, worker: _Worker, task: _Task) -> None:
        worker.task, worker.deadline = task, time.monotonic() + self._timeout
        self._when_done(worker.actor.run.remote(task.parts), lambda done: self._done(worker, done))

    def _start(self, task: _Task) -> None:
        """Starts a worker with what a task needs; it may take until the cluster has room for it."""
        options = {
            "num_cpus": self._threads,
            "num_gpus": self._gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        worker = _Worker(ray.remote(_Host).options(**options).remote())
        self._workers.append(worker)
        kept = [piece for piece in task.parts if piece[0]]
        self._when_done(
            worker.actor.begin.remote(own_paths(), kept), lambda done: self._began(worker, done)
        )

    def _when_done(self, reference: Any, then: Callable[[Future[Any]], None]) -> None:  # noqa: ANN401 - Ray's
        reference.future().add_done_callback(lambda done: self._events.put(lambda: then(done)))

    def _began(self, worker: _Worker, done: Future[Any]) -> None:
        """Takes that a worker has started, or could not."""
        if worker not in self._workers:
            return
        try:
            worker.node = done.result()
        except Exception as error:  # noqa: BLE001 - of whatever kind, there is no worker
            self._workers.remove(worker)
            _kill(worker)
            self._failed_starts += 1
            self._next_start = time.monotonic() + min(_LONGEST_PAUSE, 2.0**self._failed_starts)
            self._say(f"a worker did not start: {_reason(error)}")
            if self._failed_starts >= _STARTS and not any(other.node for other in self._workers):
                self._give_up(f"workers do not start: {_reason(error)}")
            return
        self._failed_starts = 0

    def _done(self, worker: _Worker, done: Future[Any]) -> None:
        """Takes what a call returned or raised, or that its worker was lost."""
        task, worker.task = worker.task, None
        if worker not in self._workers or task is None:
            return  # dismissed before
        try:
            task.future.set_result(done.result())
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, TaskCancelledError):
                cause = WorkerLostError("the call raised KeyboardInterrupt")
            task.future.set_exception(
                cause if isinstance(cause, Exception) else RuntimeError(str(error))
            )
        except Exception as error:  # noqa: BLE001 - of whatever kind, the worker is of no use any more
            if self._cluster is None or not self._cluster.answers():
                self._give_up(
                    "there is no Ray any more" if self._cluster is None else self._cluster.gone
                )
                return
            self._dismiss(worker)
            wait = _VERDICT if isinstance(error, ActorUnavailableError) else 0.0
            self._unclear.append((time.monotonic() + wait, worker, task, _reason(error)))

    def _judge(self) -> None:
        """Says of lost workers whether their machine was lost with them: the candidate is then not to blame."""
        for entry in (
            list(self._unclear) if self._cluster is not None and self._cluster.answers() else ()
        ):
            until, worker, task, what = entry
            lost_node = not Cluster.alive(worker.node)
            if not lost_node and time.monotonic() < until:
                continue
            self._unclear.remove(entry)
            kind = WorkerStoppedError if what == NO_MEMORY else WorkerLostError
            kind, what = (NodeLostError, "its machine was lost") if lost_node else (kind, what)
            self._say(f"worker lost: {what}")
            task.future.set_exception(kind(what))

    def _look(self) -> None:
        """Looks for calls that take too long, and whether the cluster is still there."""
        now = time.monotonic()
        if self._unclear and self._failure is None:
            self._judge()
        for worker in [
            worker for worker in self._workers if worker.task is not None and now > worker.deadline
        ]:
            self._dismiss(worker)
            if worker.task is not None:
                worker.task.future.set_exception(
                    WorkerLostError(f"no result within {self._timeout:g} s")
                )
        if now - self._looked < _LOOK or self._cluster is None or self._failure is not None:
            return
        self._looked = now
        trouble = self._cluster.trouble()
        if trouble is not None:
            self._give_up(trouble)
        if any(worker.node for worker in self._workers) or not self._tasks:
            self._waiting_since = now
        elif now - self._waiting_since > _PATIENCE:
            self._waiting_since = now
            needs = f"{self._threads} CPU" + (f" and {self._gpus:g} GPU" if self._gpus else "")
            there = {
                name: n for name, n in ray.cluster_resources().items() if name in ("CPU", "GPU")
            }
            self._say(
                f"waiting for workers: each takes {needs}; the cluster has {there or 'nothing'} in all"
            )

    def _dismiss(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        _kill(worker)

    def _give_up(self, why: str) -> None:
        """Fails everything that is open."""
        self._failure = self._failure or RunError(
            f"{why}; finished trials are kept, the run can be continued"
        )
        self._say(str(self._failure))
        for worker in self._workers:
            worker.task = None
        self._tasks.clear()
        for future in list(self._open):
            _fail(future, self._failure)


def _fail(future: Future[Any], error: RunError) -> None:
    """Ends a future, unless somebody else does."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _wait(futures: set[Future[Any]]) -> None:
    wait(list(futures))


def _kill(worker: _Worker) -> None:
    """Ends a worker process, whatever it is doing."""
    with contextlib.suppress(Exception):  # it may be dead already, and Ray as well
        ray.kill(worker.actor)


def _reason(error: Exception) -> str:
    """Returns in a line why a worker is gone."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    text = str(error)
    return lost(text) or one_line(text, 300)
