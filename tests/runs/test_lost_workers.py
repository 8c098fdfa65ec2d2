"""A lost worker is no fault of the candidate the first time; the second time the candidate has failed."""

import pytest

from abcsearch.errors import NodeLostError, RunError, SearcherError, WorkerLostError
from abcsearch.execution.serial import SerialExecutor
from abcsearch.rng import derived_seed
from abcsearch.runs.disk.journal import Journal
from abcsearch.searchers.bee_colony import BeeColony, BeeColonyOptions
from tests.evaluators import SPACE, numbers
from tests.problems import BOUND, assert_same_as, loop, undisturbed

N = 40


class Losing(SerialExecutor):
    """Loses the worker of some trials, some times."""

    def __init__(self, losses):
        self.losses = {number: list(errors) for number, errors in losses.items()}
        self.calls = []

    def submit(self, fn, /, *args, **options):
        number = numbers()[args[2]]
        self.calls.append(args)

        def lost(*_, **__):
            raise errors.pop(0)

        errors = self.losses.get(number)
        return super().submit(lost if errors else fn, *args, **options)


def calls_of(executor, number):
    return [args for args in executor.calls if args[2] == derived_seed(0, "evaluation", number)]


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
def test_one_lost_worker_or_many_lost_machines_change_nothing(tmp_path, options):
    expected = undisturbed(tmp_path, **options)
    executor = Losing(
        {
            3: [WorkerLostError("died")],
            5: [NodeLostError("gone")] * 9,
            39: [WorkerLostError("died")],
        }
    )
    loop(tmp_path / "run", executor=executor, **options).run()
    assert_same_as(tmp_path / "run", expected)
    assert [len(calls_of(executor, number)) for number in (2, 3, 5, 39)] == [1, 2, 10, 2]
    assert all(
        len({repr(args) for args in calls_of(executor, number)}) == 1 for number in (3, 5, 39)
    )


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
def test_two_lost_workers_are_a_failed_trial_with_both_reasons(tmp_path, options):
    executor = Losing(
        {7: [WorkerLostError("died of hunger"), NodeLostError("gone"), WorkerLostError("hung")]}
    )
    trials = loop(tmp_path, executor=executor, **options).run()
    assert trials[7].evaluation.failure == "lost its worker 2 times: died of hunger and hung"
    assert trials[7].evaluation.fitness is None
    assert len(calls_of(executor, 7)) == 3
    assert len(trials) == N


@pytest.mark.parametrize("stop", ["after the first", "after the second"])
def test_lost_workers_are_counted_across_restarts(tmp_path, monkeypatch, stop):
    executor = Losing({7: [WorkerLostError("died")] * 5})
    note = Journal.note
    seen = []

    def interrupted(self, kind, number, **values):
        note(self, kind, number, **values)
        seen.append(kind)
        if len(seen) == (1 if stop == "after the first" else 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop(tmp_path, executor=executor).run()
    trials = loop(tmp_path, executor=executor).run()
    assert trials[7].evaluation.failure == "lost its worker 2 times: died"
    assert len(calls_of(executor, 7)) == 2


def test_a_searcher_is_not_told_of_a_lost_worker(tmp_path):
    told = []

    class Hearing(BeeColony):
        def _learn(self, batch):
            told.extend(trial.number for trial in batch)
            super()._learn(batch)

    executor = Losing({number: [WorkerLostError("died")] for number in range(N)})
    loop(
        tmp_path,
        searcher=Hearing(SPACE, BOUND, options=BeeColonyOptions(n_sources=4)),
        executor=executor,
    ).run()
    assert told == sorted(set(told))


def test_an_executor_that_is_broken_ends_the_run_with_one_clear_error(tmp_path):
    class Broken(SerialExecutor):
        def submit(self, fn, /, *args, **options):
            raise RuntimeError("cannot schedule new futures after shutdown")

    with pytest.raises(
        RunError, match=r"Broken could not run an evaluation: .*; finished trials are kept in"
    ):
        loop(tmp_path, executor=Broken()).run()
    with pytest.raises(SearcherError, match="found NoneType"):
        loop(tmp_path, evaluator=lambda candidate, seed: None).run()
