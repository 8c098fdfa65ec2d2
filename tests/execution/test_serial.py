"""Calls in this process behave as in a thread pool, one after the other."""

import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context

import pytest

from abcsearch.execution.serial import SerialExecutor
from abcsearch.testing import ExecutorContract


def divide(number, by=2):
    return number / by


class TestContract(ExecutorContract):
    def make(self):
        return SerialExecutor()


class TestThreads(ExecutorContract):
    def make(self):
        return ThreadPoolExecutor(3)


class TestProcesses(ExecutorContract):
    def make(self):
        return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


def test_same_results_and_exceptions_as_a_thread_pool():
    outcomes = []
    for executor in (SerialExecutor(), ThreadPoolExecutor(2)):
        with executor:
            futures = [executor.submit(divide, 6, by=by) for by in (3, 0, 2)]
            assert set(as_completed(futures)) == set(futures)
            outcomes.append(
                [(f.result() if f.exception() is None else repr(f.exception())) for f in futures]
            )
            outcomes[-1].append(list(executor.map(divide, range(4))))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][:3] == [2.0, "ZeroDivisionError('division by zero')", 3.0]


def test_the_exception_is_the_very_one_and_is_raised_for_who_asks():
    raised = ValueError("mine")

    def fails():
        raise raised

    future = SerialExecutor().submit(fails)
    assert future.done()
    assert future.exception() is raised
    with pytest.raises(ValueError, match="mine"):
        future.result()


def test_calls_run_in_order_in_this_thread():
    calls = []
    executor = SerialExecutor()
    for number in range(3):
        executor.submit(lambda number=number: calls.append((number, threading.current_thread())))
    assert calls == [(number, threading.current_thread()) for number in range(3)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_control_c_passes_through(error):
    def interrupted():
        raise error

    with pytest.raises(error):
        SerialExecutor().submit(interrupted)
