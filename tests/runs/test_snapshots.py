"""Stopped at the worst instants, or with a snapshot of another time or run: the end is that of an undisturbed run."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from abcsearch import Budget, Evaluation, search
from abcsearch.errors import ConfigError, RunError
from abcsearch.execution.options import ExecutionOptions
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import Journal
from abcsearch.runs.workers import changed_execution
from abcsearch.searchers.bee_colony import BeeColony, BeeColonyOptions
from tests.evaluators import SPACE, constant, score
from tests.problems import (
    BOUND,
    Interrupting,
    assert_follows_its_journal,
    assert_same_as,
    loop,
    resumed,
    undisturbed,
    written,
)

N = 40


@pytest.mark.parametrize("schedule", ["rounds", "asynchronous"])
def test_a_snapshot_of_any_earlier_time_gives_the_same_end(tmp_path, schedule):
    snapshots = []

    def keeping(candidate, seed):
        if (tmp_path / "run" / "searcher.json").exists():
            snapshots.append((tmp_path / "run" / "searcher.json").read_bytes())
        return score(candidate, seed)

    interrupting = Interrupting(every=8)
    resumed(
        tmp_path / "run",
        between=lambda: snapshots.append((tmp_path / "run" / "searcher.json").read_bytes()),
        evaluator=interrupting,
        schedule=schedule,
    )
    expected = (written(tmp_path / "run"), (tmp_path / "run" / "searcher.json").read_bytes())
    assert len(set(snapshots)) >= 4
    for snapshot in set(snapshots):
        (tmp_path / "run" / "searcher.json").write_bytes(snapshot)
        loop(
            tmp_path / "run", evaluator=None, schedule=schedule
        ).run()  # nothing is left to be evaluated
        assert (
            written(tmp_path / "run"),
            (tmp_path / "run" / "searcher.json").read_bytes(),
        ) == expected


def test_a_snapshot_with_any_field_of_another_kind_is_told_again_from_the_journal(tmp_path):
    expected = undisturbed(tmp_path, n_trials=20)
    path = tmp_path / "undisturbed"
    folder = RunFolder(path)
    good = folder.read_json("searcher.json")
    for key in ("told", "asked", "replayed", "open", "n_trials", "state"):
        for wrong in (None, "x", -1, [3], {}, 10**6):
            folder.write_json("searcher.json", {**good, key: wrong})
            loop(path, n_trials=20, window=0).run()
            (path / "searcher.json").unlink()
            loop(path, n_trials=20).run()
            assert_same_as(path, expected)
    for whole in ([], 3, None, "x"):
        folder.write_json("searcher.json", whole)
        loop(path, n_trials=20).run()
        assert_same_as(path, expected)


@pytest.mark.parametrize("n_trials", [20, 24])
def test_a_snapshot_of_another_run_is_not_used(tmp_path, n_trials):
    expected = undisturbed(tmp_path, n_trials=30)
    loop(tmp_path / "own", n_trials=n_trials).run()
    loop(
        tmp_path / "other",
        n_trials=20,
        searcher=BeeColony(SPACE, BOUND, seed=5, options=BeeColonyOptions(n_sources=4)),
    ).run()
    (tmp_path / "own" / "searcher.json").write_bytes(
        (tmp_path / "other" / "searcher.json").read_bytes()
    )
    loop(tmp_path / "own", n_trials=30).run()
    assert_same_as(tmp_path / "own", expected)


# -- at the worst instants


@pytest.mark.parametrize("schedule", ["rounds", "asynchronous"])
@pytest.mark.parametrize(
    "where", ["before the journal", "after the journal", "snapshot", "tell", "ask", "population"]
)
def test_stopped_at_the_worst_instants_it_is_as_undisturbed(tmp_path, monkeypatch, schedule, where):
    """A Ctrl-C is an exception between any two steps; the folder is then as it would be after a kill, or better."""
    expected = undisturbed(tmp_path, schedule=schedule)
    calls = itertools.count(1)

    def bursting(original, *, after):
        def call(*args, **options):
            now = next(calls) in (1, 4, 11, 25, 60, 140, 300)
            if now and not after:
                raise KeyboardInterrupt
            value = original(*args, **options)
            if now:
                raise KeyboardInterrupt
            return value

        return call

    target, name, after = {
        "before the journal": (Journal, "append", False),
        "after the journal": (Journal, "append", True),
        "snapshot": (RunFolder, "write_json", True),
        "population": (BeeColony, "population", False),
        "tell": (BeeColony, "tell", True),
        "ask": (BeeColony, "ask", True),
    }[where]
    with monkeypatch.context() as patched:
        patched.setattr(target, name, bursting(getattr(target, name), after=after))
        resumed(tmp_path / "run", schedule=schedule)
    assert_same_as(tmp_path / "run", expected)
    if schedule == "asynchronous":
        assert_follows_its_journal(tmp_path / "run", N)


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path, monkeypatch):
    expected = undisturbed(tmp_path)
    refused = itertools.cycle([False] * 6 + [True])
    fsync = Journal._write

    def write(self, event):
        if next(refused):
            raise OSError(28, "No space left on device", str(tmp_path / "run"))
        fsync(self, event)

    monkeypatch.setattr(Journal, "_write", write)
    for _ in range(20):
        try:
            loop(tmp_path / "run").run()
            break
        except OSError:
            continue
    assert_same_as(tmp_path / "run", expected)


def test_a_clock_that_jumps_does_not_hide_the_progress(tmp_path, monkeypatch):
    clock = itertools.count(1_000_000_000, -10)
    monkeypatch.setattr("abcsearch.runs.run_state.time.time", lambda: next(clock))
    monkeypatch.setattr("abcsearch.runs.run_state._EVERY", 0.0)
    loop(tmp_path, n_trials=5).run()
    assert RunFolder(tmp_path).read_json("progress.json")["done"] == 5


def test_a_very_long_line_is_as_good_as_any(tmp_path):
    def verbose(candidate, seed):
        return Evaluation(
            fitness=float(seed % 7), metrics={"x" * 3_000_000 if seed % 2 else "y\n" * 1000: 1.0}
        )

    for _ in range(2):
        trials = loop(tmp_path, evaluator=verbose, n_trials=6).run()
    assert max(len(name) for trial in trials for name in trial.evaluation.metrics) == 3_000_000


def test_another_schedule_or_window_is_refused_with_the_difference(tmp_path):
    before = ExecutionOptions(workers=4, window=8)
    assert changed_execution(before, {"workers": 0}) == ExecutionOptions(window=8)
    with pytest.raises(
        ConfigError, match=r"execution\.window decides the trials: 8 in the folder, 4 now"
    ):
        changed_execution(before, {"window": 4})
    with pytest.raises(
        ConfigError, match=r"execution\.schedule decides the trials: 'rounds' in the folder, 'async"
    ):
        changed_execution(before, {"schedule": "asynchronous"})


def test_a_folder_is_continued_with_any_workers_but_with_its_own_schedule(
    tiny_model, tiny_data, tmp_path
):
    def run(n_trials, executor=None, **execution):
        return search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.6),
            n_trials=n_trials,
            run_dir=tmp_path,
            evaluator=constant,
            executor=executor,
            execution=ExecutionOptions(**execution),
        )

    run(5, window=4)
    for execution, difference in (
        ({}, "execution.window: 4 in the folder, 0 now"),
        (
            {"schedule": "asynchronous"},
            "execution.schedule: 'rounds' in the folder, 'asynchronous' now",
        ),
    ):
        with pytest.raises(RunError, match=difference):
            run(9, **execution)
    with ThreadPoolExecutor(3) as pool:
        assert len(run(9, executor=pool, window=4, workers=3).trials) == 9
