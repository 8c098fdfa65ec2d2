"""The benchmark of many workers: its arithmetic, a run with threads, and a run that goes on."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from abcsearch.execution.options import ExecutionOptions
from abcsearch.searchers.registry import make_searcher
from abcsearch.trial import Evaluation, Trial
from experiments.benchmarks import resuming, scaling
from experiments.benchmarks.sleeping import Sleeping


def test_efficiencies_of_sleeps_that_are_known():
    # The second worker loses 0.5 s, the first one too
    sleeps = [(10.0, 2.0), (10.0, 1.0), (11.5, 1.5), (12.5, 0.5)]
    assert scaling.steady(sleeps, 2) == pytest.approx((2 + 1 + 1) / (2 * 2.5))
    assert scaling.whole(sleeps, 2, 4.0) == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("window", "begins", "end"),
    [
        (0, [0, 0, 1, 2], 4),
        (4, [0, 0, 1, 2], 4),
        (2, [0, 0, 3, 3], 5),  # the third and the fourth wait for the first
        (1, [0, 3, 4, 5], 7),  # one after the other
    ],
)
def test_what_is_possible(window, begins, end):
    sleeps, shortest = scaling.possible([3, 1, 1, 2], 2, window)
    assert [began for began, _ in sleeps] == begins
    assert shortest == end


@pytest.mark.parametrize("schedule", ["asynchronous", "rounds"])
def test_a_session_with_threads(schedule):
    constraint = resuming.problem()
    searcher = make_searcher("bee_colony", constraint.space, constraint)
    window = 4 if schedule == "rounds" else 0
    with ThreadPoolExecutor(2) as pool:
        execution = ExecutionOptions(schedule=schedule, window=window)
        done = scaling.session(searcher, Sleeping(0.01, 0.03), pool, execution, 12)
    found = scaling.efficiencies(done, 2, window)
    assert [trial.number for trial in done.trials] == list(range(12))
    assert 0 < found["whole run"] < found["whole run, possible"] <= 1
    assert 0 < found["steady"] < 1
    assert found["steady, possible"] == pytest.approx(1, abs=0.3 if window else 1e-9)
    assert 0 < found["of it ask and tell, ms"] < found["driver CPU, ms per trial"]


@pytest.mark.parametrize(
    ("metrics", "workers", "message"),
    [
        ({"torch": 1.0, "process": 1.0}, 1, "a worker has loaded torch"),
        ({"torch": 0.0, "process": 1.0}, 2, "1 of 2 workers took part"),
    ],
)
def test_what_would_be_no_measurement(metrics, workers, message):
    with pytest.raises(SystemExit, match=message):
        scaling.check([Trial(0, (1,), Evaluation(fitness=1.0, metrics=metrics))], workers)


def test_a_failed_evaluation_is_none_either():
    with pytest.raises(SystemExit, match="it was ill"):
        scaling.check([Trial(0, (1,), Evaluation(fitness=None, failure="it was ill"))], 1)


def test_a_run_goes_on_with_and_without_its_snapshot(tmp_path, monkeypatch):
    seen = []

    def here(path, *arguments):
        seen.append((path / "searcher.json").exists())
        before = len((path / "journal.jsonl").read_bytes().splitlines())
        first = resuming.search(path, resuming.problem(), *arguments)
        assert len((path / "journal.jsonl").read_bytes().splitlines()) == before + 1
        return {"ready": 0.0, "resumed": first}

    monkeypatch.setattr(resuming, "started_anew", here)
    found = resuming.resumed(tmp_path / "run", "bee_colony", "rounds", 25)
    assert seen == [True, False]
    assert all(each["resumed"] > 0 for each in found)
