"""A shortage of the machine stops a run and is nobody's result; what is the candidate's stays a failed trial."""

import asyncio
import builtins
import errno
import json
import math
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from abcsearch.errors import (
    ModelError,
    NodeLostError,
    SearcherError,
    ShortageError,
    WorkerStoppedError,
)
from abcsearch.evaluation.base import evaluate
from abcsearch.execution.serial import SerialExecutor
from abcsearch.runs.disk.journal import read_journal
from abcsearch.trial import Evaluation
from tests.evaluators import numbers, score, without_memory
from tests.problems import assert_same_as, forks, loop, undisturbed
from tests.runs.test_lost_workers import Losing

SHORT = {
    "MemoryError()": "memory",
    "RuntimeError('could not create a primitive')": "memory",
    "RuntimeError('[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can\\'t allocate memory: 9 bytes')": "memory",
    "OSError(errno.ENOMEM, 'Cannot allocate memory')": "memory",
    "OSError(errno.EMFILE, 'x')": "file descriptors",
    "OSError(errno.ENFILE, 'x')": "file descriptors",
    "RuntimeError('unable to open shared memory object </torch_1> : Too many open files (24)')": "file descriptors",
    "OSError(errno.ENOSPC, 'x')": "disk space",
    "OSError(errno.EDQUOT, 'x')": "disk space",
    "Exception('Error while serializing: I/O error: No space left on device (os error 28)')": "disk space",
    "RuntimeError('CUDA error: an illegal memory access was encountered')": "a GPU that works",
    "RuntimeError('CUDA error: unspecified launch failure')": "a GPU that works",
    "RuntimeError('CUDA error: no CUDA-capable device is detected')": "a GPU that works",
    "ExceptionGroup('several', [ValueError(), MemoryError()])": "memory",
}
CANDIDATES = [
    "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')",
    "RuntimeError('CUDA error: out of memory')",
    "RuntimeError('CUDA error: invalid configuration argument')",
    "RuntimeError('mat1 and mat2 shapes cannot be multiplied')",
    "OSError(errno.ENOENT, 'x')",
    "ZeroDivisionError()",
    "RecursionError()",
    "SystemExit()",
    "SystemExit('enough')",
    "GeneratorExit()",
    "asyncio.CancelledError()",
    "BaseException('odd')",
    "BaseExceptionGroup('odd ones', [SystemExit(1), ValueError()])",
]


def made(text):
    """Returns an exception from its text: some cannot be pickled as parameters."""
    return eval(text, {**vars(builtins), "errno": errno, "torch": torch, "asyncio": asyncio})


def plainly(error):
    raise error


def raised_from(error):
    raise ModelError("the network cannot be run") from error


def while_handled(error):
    try:
        raise error
    except BaseException:  # noqa: BLE001
        raise KeyError("clean-up")  # noqa: B904 - as it happens


def deep(error):
    try:
        raised_from(error)
    except ModelError as wrapped:
        raise ValueError("again") from wrapped


@pytest.mark.parametrize("how", [plainly, raised_from, while_handled, deep])
@pytest.mark.parametrize("text", SHORT)
def test_a_shortage_is_no_evaluation_however_it_is_wrapped_and_can_be_pickled(text, how):
    with pytest.raises(ShortageError, match=f"ran short of {SHORT[text]}: ") as raised:
        evaluate(lambda *_: how(made(text)), (1,), 0)
    again = pickle.loads(pickle.dumps(raised.value))
    assert (type(again), str(again)) == (ShortageError, str(raised.value))


@pytest.mark.parametrize("how", [plainly, raised_from])
@pytest.mark.parametrize("text", CANDIDATES)
def test_what_is_a_candidates_is_a_failure_with_a_reason(text, how):
    error = made(text)
    found = evaluate(lambda *_: how(error), (1,), 0)
    assert found.fitness is None
    assert found.failure.startswith(
        type(error).__name__ if how is plainly else "ModelError: the network"
    )


def test_what_was_dealt_with_does_not_count():
    def mine(_candidate, _seed):
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("too wide") from None

    assert evaluate(mine, (1,), 0).failure == "ValueError: too wide"


class Mute(Exception):
    def __str__(self):
        raise SystemExit(1)

    __repr__ = __str__


class Wordy(Exception):
    def __str__(self):
        return 3  # noqa: PLE0307 - a mistake

    def __repr__(self):
        return "wordy"


def test_an_exception_without_a_text_is_a_failure_all_the_same():
    assert (
        evaluate(lambda *_: plainly(Mute()), (1,), 0).failure
        == "Mute: (it has no text that can be shown)"
    )
    assert evaluate(lambda *_: plainly(Wordy()), (1,), 0).failure == "Wordy: wordy"
    assert evaluate(lambda *_: Evaluation(None, failure=Wordy()), (1,), 0).failure == "wordy"


@pytest.mark.parametrize("value", [True, False, np.True_, np.array(True), torch.tensor(False)])
def test_true_and_false_are_no_fitness_and_no_cost(value):
    with pytest.raises(SearcherError, match="a fitness is a number, found"):
        Evaluation(fitness=value)
    for arguments in (
        {"fitness": value},
        {"fitness": 1.0, "macs": value},
        {"fitness": 1.0, "params": value},
    ):
        with pytest.raises(SearcherError, match=r"a fitness is a number|at least 0, found"):
            evaluate(lambda *_, given=arguments: Evaluation(**given), (1,), 0)


@pytest.mark.parametrize("cost", [-1, np.int64(-5), -1.5, math.nan, math.inf, "many", None])
def test_costs_that_are_none_are_a_mistake_of_the_evaluator(cost):
    for name in ("macs", "params"):
        with pytest.raises(SearcherError, match="an evaluator returns an Evaluation of numbers"):
            evaluate(lambda *_, name=name: Evaluation(fitness=1.0, **{name: cost}), (1,), 0)


def short_at(*trials):
    def evaluator(candidate, seed):
        if numbers()[seed] in trials:
            raise OSError(errno.EMFILE, "Too many open files")
        return score(candidate, seed)

    return evaluator


EXECUTORS = [SerialExecutor, lambda: ThreadPoolExecutor(3)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
def test_a_run_stops_writes_nothing_down_and_ends_as_undisturbed(tmp_path, options, executor):
    asynchronous = "schedule" in options
    expected = (
        None
        if asynchronous and executor is not SerialExecutor
        else undisturbed(tmp_path, **options)
    )
    with executor() as pool, pytest.raises(ShortageError) as raised:
        loop(tmp_path / "run", evaluator=short_at(7), executor=pool, **options).run()
    assert "trial 7 could not be evaluated: " in str(raised.value)
    assert (
        "ran short of file descriptors: OSError: [Errno 24] Too many open files. Nothing was"
        in str(raised.value)
    )
    assert str(raised.value).endswith(f"continue with: abcsearch resume {tmp_path / 'run'}")
    kept = read_journal(tmp_path / "run" / "journal.jsonl").trials
    assert 7 not in kept
    assert set(range(4)) <= set(kept) or asynchronous  # the fifth may be evaluated at the same time
    with executor() as pool:
        loop(tmp_path / "run", executor=pool, **options).run()
    if expected is not None:
        assert_same_as(tmp_path / "run", expected)


def test_it_comes_through_from_other_processes(tmp_path):
    with (
        ProcessPoolExecutor(2, mp_context=forks()) as pool,
        pytest.raises(ShortageError, match=r"short of memory: Mem"),
    ):
        loop(tmp_path, evaluator=without_memory, executor=pool).run()
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


def test_what_finished_at_the_same_time_is_written_down(tmp_path):
    with ThreadPoolExecutor(8) as pool, pytest.raises(ShortageError):
        loop(tmp_path, evaluator=short_at(0), executor=Together(pool), window=8).run()
    assert sorted(read_journal(tmp_path / "journal.jsonl").trials) == [1, 2, 3, 4, 5, 6, 7]


class Together:
    """An executor of eight whose evaluations finish before anybody waits for them."""

    _max_workers = 8

    def __init__(self, pool):
        self._pool = pool

    def submit(self, *args):
        future = self._pool.submit(*args)
        future.exception()
        return future


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
def test_a_worker_stopped_for_want_of_memory_runs_once_more_and_then_the_run_stops(
    tmp_path, options
):
    expected = undisturbed(tmp_path, **options)
    once = Losing(
        {3: [WorkerStoppedError("out")], 9: [WorkerStoppedError("out"), NodeLostError("gone")]}
    )
    loop(tmp_path / "once", executor=once, **options).run()
    assert_same_as(tmp_path / "once", expected)
    assert b"lost" not in (tmp_path / "once" / "journal.jsonl").read_bytes()
    for _ in range(3):  # however often the run is continued, it is not held against the candidate
        with pytest.raises(
            ShortageError, match="trial 9 could not be evaluated: out for the second time"
        ):
            loop(
                tmp_path / "run", executor=Losing({9: [WorkerStoppedError("out")] * 2}), **options
            ).run()
    loop(tmp_path / "run", **options).run()
    assert_same_as(tmp_path / "run", expected)


def odd_metrics(candidate, seed):
    found = score(candidate, seed)
    return Evaluation(
        found.fitness, metrics={"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5}
    )


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("searcher", ["bee_colony", "nsga2", "response_surface", "greedy"])
def test_numbers_that_are_not_finite_leave_valid_json_and_come_back(tmp_path, searcher):
    first = loop(tmp_path / "run", evaluator=odd_metrics, searcher=searcher, n_trials=13).run()
    for path in (tmp_path / "run").glob("*.json"):
        strict(path.read_text())
    for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines():
        event = strict(line.partition(b" ")[2])
        assert event["evaluation"]["metrics"] in (
            {"a": "nan", "b": "inf", "c": "-inf", "d": 0.5},
            {},
        )
    (tmp_path / "run" / "searcher.json").unlink()
    again = loop(tmp_path / "run", evaluator=odd_metrics, searcher=searcher, n_trials=13).run()
    assert repr(again) == repr(first)
