"""Calls in worker processes of Ray on this machine: they come back, or say why not, and nobody else can reach them."""

import contextlib
import os
import threading
import time
from concurrent.futures import CancelledError

import pytest
from ray._private import worker as ray_worker

from abcsearch import Budget, search
from abcsearch.errors import (
    ConfigError,
    RunError,
    SearcherError,
    ShortageError,
    WorkerLostError,
    WorkerStoppedError,
)
from abcsearch.evaluation.base import evaluate
from abcsearch.execution import ray_executor
from abcsearch.execution.options import ExecutionOptions
from abcsearch.execution.ray_executor import RayExecutor
from abcsearch.testing import ExecutorContract
from tests.evaluators import (
    Counted,
    Explosive,
    Troubled,
    die,
    divide,
    has_torch,
    nonsense,
    without_memory,
)
from tests.problems import (
    PATIENCE,
    PROC,
    assert_same_as,
    descendants,
    forks,
    loop,
    outcome,
    undisturbed,
    until,
    until_gone,
)

needs_proc = pytest.mark.skipif(
    not (PROC / "self" / "net").exists(), reason="looks at processes in /proc (Linux)"
)


@pytest.fixture(scope="module")
def connection():
    """Ray as the first executor starts it; the others of this module borrow it."""
    executor = RayExecutor(2)
    executor.submit(os.getpid).result(PATIENCE)
    yield executor
    executor.shutdown()


@pytest.fixture
def executor(connection):
    with made(2) as own:
        yield own


@contextlib.contextmanager
def made(workers, **options):
    executor = RayExecutor(workers, **options)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


@pytest.mark.usefixtures("connection")
class TestContract(ExecutorContract):
    def make(self):
        return RayExecutor(2)


def test_results_and_exceptions_come_back(executor):
    futures = [executor.submit(divide, 6, by) for by in (3, 0, 2)]
    assert futures[0].result(PATIENCE) == 2.0
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        futures[1].result(PATIENCE)
    assert futures[2].result(PATIENCE) == 3.0
    assert list(executor.map(divide, range(5), [1] * 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError, match="by position, found by"):
        executor.submit(divide, 6, by=3)


def test_what_is_called_is_sent_once_to_each_worker(executor, tmp_path):
    counted = Counted(tmp_path / "unpickled")
    found = [
        future.result(PATIENCE)
        for future in [executor.submit(counted, number) for number in range(30)]
    ]
    assert [number for number, _ in found] == list(range(30))
    workers = {pid for _, pid in found}
    assert os.getpid() not in workers
    assert len(counted.path.read_text()) == executor.alive == len(workers) <= 2


def test_a_worker_that_is_killed_is_lost_and_the_next_call_gets_another(executor):
    before = executor.submit(os.getpid).result(PATIENCE)
    with pytest.raises(WorkerLostError, match="died"):
        executor.submit(die).result(PATIENCE)
    assert executor.submit(os.getpid).result(PATIENCE) != before or executor.alive


def test_a_shortage_of_a_worker_comes_back_as_one(executor):
    with pytest.raises(ShortageError, match="ran short of memory: MemoryError"):
        executor.submit(evaluate, without_memory, (1,), 0, None).result(PATIENCE)


def test_a_worker_that_ray_stops_for_want_of_memory_is_told_from_one_that_died(
    executor, monkeypatch
):
    reason = ray_executor._reason
    words = "Task was killed due to the node running low on memory."
    monkeypatch.setattr(ray_executor, "_reason", lambda _: reason(RuntimeError(words)))
    with pytest.raises(WorkerStoppedError, match="the machine ran out of memory"):
        executor.submit(die).result(PATIENCE)


def test_a_call_that_takes_too_long_loses_its_worker():
    with made(1, timeout=1.0) as executor:
        hanging = executor.submit(time.sleep, 3600)
        with pytest.raises(WorkerLostError, match="no result within 1 s"):
            hanging.result(PATIENCE)
        executor._timeout = PATIENCE  # a busy machine may take a second for anything
        assert executor.submit(os.getpid).result(PATIENCE) != os.getpid()


@pytest.fixture
def _at_once(monkeypatch):
    """No pause before another worker is started."""
    monkeypatch.setattr(ray_executor, "_LONGEST_PAUSE", 0.0)


@pytest.mark.usefixtures("_at_once")
def test_workers_that_cannot_start_are_one_clear_error():
    with made(2) as executor:
        futures = [executor.submit(Explosive()) for _ in range(3)]
        for future in futures:
            with pytest.raises(
                RunError, match=r"workers do not start: .*there is no data set on this machine"
            ):
                future.result(PATIENCE)
        with pytest.raises(RunError, match="workers do not start"):
            executor.submit(os.getpid)


def test_what_cannot_be_sent_is_a_clear_error(executor, tmp_path):
    lock = threading.Lock()

    def locked(candidate, seed):
        with lock:
            return

    with pytest.raises(RunError, match=r"cannot be sent to workers: .*must be picklable"):
        executor.submit(locked)
    with pytest.raises(RunError, match=r"cannot be sent to workers: .*must be picklable"):
        loop(tmp_path, evaluator=locked, executor=executor).run()
    assert executor.submit(divide, 1, 1).result(PATIENCE) == 1.0


def test_a_result_that_cannot_be_sent_is_an_exception(executor):
    with pytest.raises(Exception, match="pickle"):
        executor.submit(threading.Lock).result(PATIENCE)
    assert executor.submit(divide, 1, 1).result(PATIENCE) == 1.0


@pytest.mark.usefixtures("_at_once")
def test_a_log_that_cannot_be_written_stops_nobody():
    def full(line):
        raise OSError(28, "No space left on device")

    with made(1, log=full) as executor:
        with pytest.raises(WorkerLostError):
            executor.submit(die).result(PATIENCE)
        assert executor.submit(divide, 1, 1).result(PATIENCE) == 1.0
    with made(1, log=full) as executor, pytest.raises(RunError, match="workers do not start"):
        executor.submit(Explosive()).result(PATIENCE)


def test_shutdown_drops_what_waits_and_what_runs(tmp_path):
    with made(1) as executor:
        executor.submit(os.getpid).result(PATIENCE)
        running, waiting = executor.submit(time.sleep, 3600), executor.submit(time.sleep, 3600)
        while not running.running():
            time.sleep(0.01)
        assert waiting.cancel()
    assert waiting.cancelled()
    assert not running.done() or isinstance(running.exception(), WorkerLostError | CancelledError)


def test_shutdown_waits_for_what_is_submitted():
    executor = RayExecutor(1)
    futures = [executor.submit(divide, number, 1) for number in range(3)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == [0, 1, 2]


def test_no_workers_are_refused_and_nothing_is_taken_after_shutdown():
    with pytest.raises(ConfigError, match="needs 1 worker or more, found 0"):
        RayExecutor(0)
    for used in (False, True):
        with made(1) as executor:
            if used:
                executor.submit(os.getpid).result(PATIENCE)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(os.getpid)


@needs_proc
def test_everything_listens_on_this_machine_only(connection):
    connection.submit(os.getpid).result(PATIENCE)
    family = descendants(os.getpid())
    assert any("gcs_server" in line for line in family.values())
    assert any("raylet" in line for line in family.values())
    sockets = {inode for pid in [os.getpid(), *family] for inode in _inodes(pid)}
    listening = {}
    for table, here in (
        ("tcp", {"0100007F"}),
        ("tcp6", {"0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}),
    ):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in sockets:
                listening[local] = local.split(":")[0] in here
    assert len(listening) >= 3
    assert all(listening.values()), listening


def _inodes(pid):
    """Returns the sockets that a process has open."""
    with contextlib.suppress(OSError):
        for entry in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    yield target[8:-1]


def test_nobody_without_the_token_is_let_in(connection):
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_workers_import_torch_only_for_those_who_need_it(executor, tmp_path):
    assert executor.submit(has_torch).result(PATIENCE) is False
    loop(tmp_path, evaluator=Troubled(_folder(tmp_path)), executor=executor, n_trials=8).run()
    assert {executor.submit(has_torch).result(PATIENCE) for _ in range(8)} == {False}


def _folder(path):
    path = path / "attempts"
    path.mkdir()
    return path


def test_a_search_with_lost_and_hanging_workers_is_as_undisturbed(tmp_path):
    expected = undisturbed(tmp_path, n_trials=20, window=4)
    evaluator = Troubled(_folder(tmp_path), kills={2: 1, 9: 1}, hangs={5: 1})
    with made(
        2, timeout=5.0
    ) as executor:  # a busy machine takes a second for anything, now and then
        loop(tmp_path / "run", evaluator=evaluator, executor=executor, n_trials=20, window=4).run()
    assert_same_as(tmp_path / "run", expected)
    assert [evaluator.attempts(number) for number in (2, 3, 5, 9)] == [2, 1, 2, 2]


def test_an_evaluator_that_returns_nonsense_ends_the_search(executor, tmp_path):
    with pytest.raises(SearcherError, match="returns an Evaluation, or a fitness"):
        loop(tmp_path, evaluator=nonsense, executor=executor).run()


def test_a_search_on_a_network_is_the_one_of_this_process(
    connection, tiny_model, tiny_data, tmp_path
):
    found = []
    for workers in (0, 2):
        result = search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.6),
            n_trials=12,
            run_dir=tmp_path / str(workers),
            evaluator="adaptive_bn",
            execution=ExecutionOptions(workers=workers),
        )
        found.append((outcome(result.trials), result.best.number))
    assert found[0] == found[1]


@needs_proc
def test_nothing_is_left_of_it(tmp_path):
    """In a process of its own: this one is connected already."""
    ours, theirs = forks().Pipe()
    process = forks().Process(target=_come_and_go, args=(theirs,))
    process.start()
    family = ours.recv()
    assert any("raylet" in line for line in family.values())
    assert ours.recv()  # Ray's own way of printing is back
    until_gone(family)
    process.join(PATIENCE)
    assert process.exitcode == 0


def _come_and_go(pipe):
    prints = ray_worker.print_to_stdstream
    executor = RayExecutor(1)
    executor.submit(os.getpid).result(PATIENCE)
    pipe.send(descendants(os.getpid()))
    executor.shutdown(cancel_futures=True)
    until(
        lambda: not any("ray" in line for line in descendants(os.getpid()).values()),
        "the end of Ray",
    )
    pipe.send(ray_worker.print_to_stdstream is prints)


def test_ray_that_does_not_start_is_tried_once_more(monkeypatch):
    tries, lines = [], []

    def slow(**options):
        tries.append(options["address"])
        raise RuntimeError("timed out during startup")

    monkeypatch.setattr("abcsearch.execution.ray_cluster.ray.init", slow)
    monkeypatch.setattr("abcsearch.execution.ray_cluster.ray.is_initialized", lambda: False)
    monkeypatch.setattr("abcsearch.execution.ray_cluster.ray.shutdown", lambda: None)
    with (
        made(1, log=lines.append) as own,
        pytest.raises(RunError, match=r"on this machine .*: timed out during startup"),
    ):
        own.submit(os.getpid)
    assert tries == ["local", "local"]
    assert lines == ["Ray did not start, trying once more: timed out during startup"]
