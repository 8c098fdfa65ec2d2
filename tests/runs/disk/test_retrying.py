"""Failed trials are evaluated again, and the run ends as one in which they had not failed; nothing else is."""

import dataclasses
import itertools
import random

import pytest

from abcsearch import Budget, Evaluation, ExecutionOptions, resume, search
from abcsearch.config import read_config
from abcsearch.errors import FailuresError, RunError, WorkerLostError
from abcsearch.runs.config_run import run_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import Journal, read_journal
from abcsearch.runs.disk.retrying import earlier, set_back
from tests.evaluation.test_cascade import Counting, cascade
from tests.evaluators import numbers, score
from tests.problems import assert_follows_its_journal, assert_same_as, loop, undisturbed, written
from tests.runs.test_lost_workers import Losing

N = 40
SCHEDULES = {
    "rounds": {},
    "window": {"window": 4},
    "window, evolution": {"window": 6, "searcher": "evolution"},
    "random": {"searcher": "random"},
    "surface": {"searcher": "response_surface"},
    "asynchronous": {"schedule": "asynchronous"},
}


class Shaky:
    """The evaluations of some trials fail while the trouble lasts; notes who is evaluated."""

    def __init__(self, fails=(), interrupts=0):
        self.fails, self.interrupts, self.calls, self.done = set(fails), interrupts, [], []

    def __call__(self, candidate, seed):
        number = numbers()[seed]
        self.calls.append((number, candidate))
        if self.interrupts and len(self.calls) % self.interrupts == 0:
            raise KeyboardInterrupt
        if number in self.fails:
            raise ConnectionError("the cluster is full")
        found = score(candidate, seed)
        self.done.append((number, candidate))
        return found


def back(path):
    with RunFolder(path).locked():
        return set_back(RunFolder(path))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_ends_as_a_run_in_which_nothing_failed(tmp_path, name, seed):
    options, draws = SCHEDULES[name], random.Random(seed)
    expected = undisturbed(tmp_path, **options)
    first = Shaky(draws.sample(range(N), draws.choice([1, 2, 5])))
    loop(tmp_path / "run", evaluator=first, **options).run()
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    disturbed = written(tmp_path / "run")
    failed = back(tmp_path / "run")
    assert failed == sum(trial.evaluation.failure is not None for trial in disturbed.values())
    assert (tmp_path / "run" / "journal.jsonl.before-retry-1").read_bytes() == before
    assert before.startswith((tmp_path / "run" / "journal.jsonl").read_bytes())
    kept = read_journal(tmp_path / "run" / "journal.jsonl").trials
    assert all(trial.evaluation.failure is None for trial in kept.values())
    second = Shaky()
    loop(tmp_path / "run", evaluator=second, **options).run()
    assert_same_as(tmp_path / "run", expected)
    same = {
        n
        for n, trial in disturbed.items()
        if trial == expected[n] and trial.evaluation.failure is None
    }
    assert {number for number, _ in second.calls} == set(range(N)) - same
    assert len(second.calls) == N - len(same)
    if "schedule" in options:
        assert_follows_its_journal(tmp_path / "run", N)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("seed", range(2))
def test_interrupted_anywhere_it_does_so_too_and_never_evaluates_a_trial_again(
    tmp_path, name, seed
):
    options, draws = SCHEDULES[name], random.Random(seed)
    expected = undisturbed(tmp_path, **options)
    loop(tmp_path / "run", evaluator=Shaky(draws.sample(range(N), 3)), **options).run()
    back(tmp_path / "run")
    evaluator = Shaky(draws.sample(range(N), 2), interrupts=4)
    for session in itertools.count():
        try:
            loop(tmp_path / "run", evaluator=evaluator, **options).run()
        except KeyboardInterrupt:
            if draws.random() < 0.5:  # once more from the beginning, whatever has failed by now
                evaluator.fails.clear()
                back(tmp_path / "run")
            if draws.random() < 0.3:
                (tmp_path / "run" / "searcher.json").unlink(missing_ok=True)
            assert session < 100
            continue
        evaluator.fails.clear()
        back(tmp_path / "run")
        evaluator.interrupts = 0
        loop(tmp_path / "run", evaluator=evaluator, **options).run()
        break
    assert_same_as(tmp_path / "run", expected)
    assert len(set(evaluator.done)) == len(evaluator.done)


@pytest.mark.parametrize("step", ["copy", "journal", "snapshot"])
def test_killed_while_it_is_set_back_it_can_be_done_again(tmp_path, monkeypatch, step):
    expected = undisturbed(tmp_path)
    path = tmp_path / "run"
    loop(path, evaluator=Shaky([5, 17])).run()
    failed = sum(trial.evaluation.failure is not None for trial in written(path).values())

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "snapshot":
            patched.setattr("pathlib.Path.unlink", stop)
        else:
            replace, calls = type(path).replace, []

            def replacing(self, target):
                calls.append(target)
                if len(calls) == (1 if step == "copy" else 2):
                    raise KeyboardInterrupt
                return replace(self, target)

            patched.setattr("pathlib.Path.replace", replacing)
        with pytest.raises(KeyboardInterrupt):
            set_back(RunFolder(path))
    assert back(path) == (0 if step == "snapshot" else failed)
    loop(path).run()
    assert_same_as(path, expected)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"schedule": "asynchronous"}])
def test_a_trial_that_lost_its_workers_gets_new_ones(tmp_path, options):
    expected = undisturbed(tmp_path, **options)
    losing = Losing({7: [WorkerLostError("died")] * 2, 9: [WorkerLostError("died")]})
    loop(tmp_path / "run", executor=losing, **options).run()
    assert back(tmp_path / "run") >= 1
    assert 7 not in read_journal(tmp_path / "run" / "journal.jsonl").lost
    loop(tmp_path / "run", **options).run()
    assert_same_as(tmp_path / "run", expected)


def test_a_trial_that_was_about_to_fail_counts_as_failed(tmp_path):
    loop(tmp_path, n_trials=3).run()
    with Journal(tmp_path / "journal.jsonl") as journal:
        for _ in range(2):
            journal.note("lost", 3, reason="died")
    failed = [n for n, trial in written(tmp_path).items() if trial.evaluation.failure is not None]
    assert back(tmp_path) == len(failed) + 1


@pytest.mark.parametrize("damage", ["a line", "all of it"])
def test_a_copy_that_is_damaged_costs_evaluations_only(tmp_path, damage):
    expected = undisturbed(tmp_path)
    loop(tmp_path / "run", evaluator=Shaky([2])).run()
    back(tmp_path / "run")
    copy = tmp_path / "run" / "journal.jsonl.before-retry-1"
    whole = copy.read_bytes()
    known = len(earlier(RunFolder(tmp_path / "run")))
    copy.write_bytes(
        whole.replace(b'"number": 4,', b'"number": 5,') if damage == "a line" else b"\xff\x00" * 99
    )
    assert len(earlier(RunFolder(tmp_path / "run"))) == (known - 1 if damage == "a line" else 0)
    loop(tmp_path / "run").run()
    assert_same_as(tmp_path / "run", expected)


def test_without_a_failure_nothing_changes(tmp_path):
    loop(tmp_path, n_trials=2, evaluator=lambda candidate, seed: Evaluation(1.0)).run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set_back(RunFolder(tmp_path)) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def outcome(result):
    return [
        (t.number, t.candidate, dataclasses.replace(t.evaluation, seconds=0.0))
        for t in result.trials
    ]


@pytest.mark.parametrize(
    "way", [{}, {"execution": ExecutionOptions(window=4)}, {"searcher": "bee_colony"}], ids=str
)
def test_a_cascade_is_set_back_as_well(tiny_model, tiny_data, tmp_path, way):
    def run(folder, evaluator):
        given = {"budget": Budget(macs=0.5), "n_trials": 30, "searcher": "random", **way}
        return search(
            tiny_model, tiny_data, run_dir=tmp_path / folder, evaluator=evaluator, **given
        )

    whole = run("whole", cascade(Counting(), Counting(10), 0.4))
    two = [t.candidate for t in whole.trials if t.evaluation.metrics["stage"] == 2]
    run(
        "run",
        cascade(Counting(fails=[whole.trials[8].candidate]), Counting(10, fails=two[2:3]), 0.4),
    )
    again = resume(
        tmp_path / "run",
        model=tiny_model,
        data=tiny_data,
        evaluator=cascade(Counting(), Counting(10), 0.4),
        retry_failed=True,
    )
    assert outcome(again) == outcome(whole)


def flaky(source, data, folder):
    """An evaluator by import path: its fitness depends on the seed, and while a file is there some trials fail."""
    from pathlib import Path

    def evaluator(candidate, seed):
        fails = (Path(folder) / "trouble").exists() and seed % 2 == 0
        if fails:
            raise ConnectionError("the cluster is full")
        return Evaluation(fitness=-sum(candidate) + seed % 1000 / 1e4)

    return evaluator


def both(folder):
    return [written(folder), written(folder / "baselines" / "random")]


@pytest.mark.parametrize("when", ["both", "the search", "the baseline"])
def test_the_random_baseline_is_part_of_it(tiny_config, tmp_path, when):
    name = f"evaluator={{name='tests.runs.disk.test_retrying:flaky', folder='{tmp_path}'}}"
    config = read_config(tiny_config, [name, "n_trials=12", "max_failures=12"])
    run_config(config, tmp_path / "whole")
    trouble = tmp_path / "trouble"

    def switched(stage, done, total, _note):
        begins = {
            "both": "bee_colony",
            "the search": "bee_colony",
            "the baseline": "random baseline",
        }[when]
        if stage == begins and done == 2:
            trouble.touch()
        if when == "the search" and stage == begins and done == total:
            trouble.unlink()

    run_config(config, tmp_path / "run", progress=switched)
    trouble.unlink(missing_ok=True)
    assert any(t.evaluation.failure for own in both(tmp_path / "run") for t in own.values())
    resume(tmp_path / "run", retry_failed=True)
    assert both(tmp_path / "run") == both(tmp_path / "whole")


def test_too_many_failures_name_the_command(tmp_path):
    run = loop(tmp_path / "run", evaluator=Shaky(range(N)))
    run.max_failures = 3
    with pytest.raises(
        FailuresError, match=rf"again with: abcsearch resume {tmp_path / 'run'} --retry-failed$"
    ):
        run.run()
    baseline = loop(tmp_path / "run" / "baselines" / "random", evaluator=Shaky(range(N)))
    baseline.max_failures = 3
    with pytest.raises(
        FailuresError, match=rf"again with: abcsearch resume {tmp_path / 'run'} --retry-failed$"
    ):
        baseline.run()


def test_fewer_trials_than_are_done_need_a_word(tiny_model, tiny_data, tmp_path):
    def rising(candidate, seed):
        return Evaluation(fitness=float(sum(candidate)))

    def again(**options):
        return resume(
            tmp_path / "run", model=tiny_model, data=tiny_data, evaluator=rising, **options
        )

    whole = search(
        tiny_model,
        tiny_data,
        budget=Budget(macs=0.6),
        n_trials=12,
        run_dir=tmp_path / "run",
        evaluator=rising,
    )
    best = whole.best
    files = {
        path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()
    }
    other = max(
        whole.trials[: best.number] or whole.trials[:1],
        key=lambda trial: (trial.fitness, -trial.number),
    )
    for n in range(1, 12):
        with pytest.raises(
            RunError, match=rf"12 trials done, and n_trials = {n} would leave out {12 - n}"
        ) as raised:
            again(n_trials=n)
        assert f"the winner would {'stay' if n > best.number else 'be'} trial " in str(raised.value)
        assert str(raised.value).endswith(f"--n-trials {n} --shorten (from Python shorten=True)")
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()
    } == files
    assert len(again(n_trials=15).trials) == 15
    short = again(n_trials=max(1, best.number), shorten=True)
    assert len(short.trials) == max(1, best.number)
    assert short.best.number == other.number
    assert (
        len(again().trials)
        == len(again(n_trials=max(1, best.number)).trials)
        == max(1, best.number)
    )
    assert outcome(again(n_trials=12)) == outcome(whole)
