"""What a search leaves in its folder, for people, for those who watch, and for the next session."""

import dataclasses
import json
import os
import re
import threading

import pytest

from abcsearch import Budget, Evaluation, ExecutionOptions, resume, search
from abcsearch.errors import FailuresError, RunError
from abcsearch.runs.disk.folder import FORMAT, RunFolder
from abcsearch.runs.disk.journal import Journal, encode_line, read_journal
from abcsearch.runs.settings import SearchSettings
from abcsearch.runs.workers import workers_for
from abcsearch.trial import Trial

EVOLUTION = {
    "name": "evolution",
    "population": 8,
    "mutations": 4,
    "crossovers": 3,
    "parents": 4,
    "archive": 8,
}


def by_sum(candidate, seed):
    """Few channels are good; every fifth seed fails."""
    if seed % 5 == 0:
        raise ValueError("made to fail")
    return Evaluation(fitness=float(-sum(candidate)))


def run(model, data, folder, **changes):
    settings = {
        "budget": Budget(macs=0.6),
        "n_trials": 24,
        "evaluator": by_sum,
        "searcher": EVOLUTION,
        **changes,
    }
    return search(model, data, run_dir=folder, **settings)


def outcome(result):
    return [
        (t.number, t.candidate, dataclasses.replace(t.evaluation, seconds=0.0))
        for t in result.trials
    ]


@pytest.mark.parametrize("searcher", ["bee_colony", "evolution", "response_surface"])
def test_population_is_readable_and_current(tiny_model, tiny_data, tmp_path, searcher):
    part = EVOLUTION if searcher == "evolution" else searcher
    result = run(tiny_model, tiny_data, tmp_path / "run", searcher=part)
    found = json.loads((tmp_path / "run" / "population.json").read_text())
    assert found["told"] == 24
    own = searcher != "response_surface"
    assert found["what"].startswith(
        f"population of {searcher}" if own else "best trials (response_surface"
    )
    trials = {trial.number: trial for trial in result.trials}
    assert found["members"]
    for member in found["members"]:
        trial = trials[member["trial"]]
        assert tuple(member["widths"].values()) == trial.candidate
        assert list(member["widths"]) == [d.name for d in result.task.space.dimensions]
        assert (member["fitness"], member["macs"]) == (
            trial.evaluation.fitness,
            trial.evaluation.macs,
        )
    if not own:
        assert found["members"][0]["trial"] == result.best.number


class Noting:
    """A watcher that notes what it hears, and may fail."""

    def __init__(self, fails=""):
        self.heard, self.fails = [], fails

    def _hear(self, what, value):
        self.heard.append((what, value))
        if what == self.fails:
            raise OSError("no space for watching")

    def begin(self, trials, n_trials):
        self._hear("begin", ([t.number for t in trials], n_trials))

    def trial(self, trial, best):
        assert best is None or best.fitness >= trial.fitness
        self._hear("trial", trial.number)

    def end(self):
        self._hear("end", None)


def test_watchers_hear_of_every_trial_after_it_is_on_disk(tiny_model, tiny_data, tmp_path):
    watcher, folders = Noting(), []

    def make(task, folder):
        folders.append((task.space, folder.path, folder.header()["settings"]["n_trials"]))
        return watcher

    first = run(tiny_model, tiny_data, tmp_path / "run", n_trials=5, watchers=[make])
    assert watcher.heard == [("begin", ([], 5)), *(("trial", n) for n in range(5)), ("end", None)]
    assert folders == [(first.task.space, tmp_path / "run", 5)]
    watcher.heard.clear()
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=8, watchers=[make])
    assert watcher.heard == [
        ("begin", ([*range(5)], 8)),
        *(("trial", n) for n in range(5, 8)),
        ("end", None),
    ]


@pytest.mark.parametrize("fails", ["begin", "trial", "end"])
def test_a_watcher_that_fails_is_dropped_and_the_search_goes_on(
    tiny_model, tiny_data, tmp_path, fails
):
    bad, good = Noting(fails), Noting()
    with pytest.warns(UserWarning, match="Noting stops watching: no space for watching"):
        result = run(
            tiny_model, tiny_data, tmp_path / "run", watchers=[lambda *_: bad, lambda *_: good]
        )
    assert len(result.trials) == 24
    assert [what for what, _ in bad.heard].count(fails) == 1
    assert len(good.heard) == 26


def test_a_watcher_that_hangs_does_not_stop_the_search(
    tiny_model, tiny_data, tmp_path, monkeypatch
):
    class Hanging(Noting):
        def trial(self, trial, best):
            released.wait()

    released = threading.Event()
    monkeypatch.setattr("abcsearch.runs.watching._PATIENCE", 0.01)
    with pytest.warns(UserWarning, match="watchers are far behind"):
        result = run(tiny_model, tiny_data, tmp_path / "run", watchers=[lambda *_: Hanging()])
    released.set()
    assert len(result.trials) == 24


def test_a_reason_is_one_line_of_bearable_length(tiny_model, tiny_data, tmp_path):
    def noisy(candidate, seed):
        raise ValueError("\x1b[31mred\n" * 100_000)

    with pytest.raises(FailuresError) as error:
        run(tiny_model, tiny_data, tmp_path / "run", evaluator=noisy, max_failures=3)
    assert "ValueError: [31mred [31mred" in str(error.value)
    assert len(str(error.value)) < 2000
    assert (tmp_path / "run" / "journal.jsonl").stat().st_size < 10_000
    assert all(
        line[:4].isdigit() for line in (tmp_path / "run" / "log.txt").read_text().splitlines()
    )


def test_a_watcher_hears_the_end_also_after_ctrl_c(tiny_model, tiny_data, tmp_path):
    def interrupted(candidate, seed):
        raise KeyboardInterrupt

    watcher = Noting()
    with pytest.raises(KeyboardInterrupt):
        run(
            tiny_model,
            tiny_data,
            tmp_path / "run",
            evaluator=interrupted,
            watchers=[lambda *_: watcher],
        )
    assert watcher.heard[-1] == ("end", None)


def test_progress_file_says_how_it_stands_also_at_the_end(tiny_model, tiny_data, tmp_path):
    run(tiny_model, tiny_data, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert (found["stage"], found["done"], found["total"], found["pid"]) == (
        "search",
        24,
        24,
        os.getpid(),
    )
    assert (found["busy"], found["workers"]) == (0, 1)
    assert found["failed"] == sum(
        t.evaluation.failure is not None for t in resumed(tiny_model, tiny_data, tmp_path)
    )


def resumed(model, data, tmp_path):
    return resume(tmp_path / "run", model=model, data=data, evaluator=by_sum).trials


def test_damage_in_the_middle_names_the_line_and_until_continues_from_there(
    tiny_model, tiny_data, tmp_path
):
    whole = run(tiny_model, tiny_data, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    before = journal.read_bytes()
    damaged = before.replace(b'"number": 11,', b'"number": 99,')
    journal.write_bytes(damaged)
    with pytest.raises(
        RunError, match=r"line 12 of 24 is damaged; .* abcsearch resume .*run --until 11$"
    ):
        resumed(tiny_model, tiny_data, tmp_path)
    assert journal.read_bytes() == damaged
    with pytest.raises(RunError, match=r"--until 25: .* has 24 lines; give a number from 0 to 24"):
        resume(tmp_path / "run", model=tiny_model, data=tiny_data, evaluator=by_sum, until=25)
    again = resume(tmp_path / "run", model=tiny_model, data=tiny_data, evaluator=by_sum, until=11)
    assert outcome(again) == outcome(whole)
    assert (tmp_path / "run" / "journal.jsonl.before-cut-1").read_bytes() == damaged
    assert journal.read_bytes().splitlines()[:11] == before.splitlines()[:11]
    assert "kept the first 11 lines" in (tmp_path / "run" / "log.txt").read_text()


def test_a_folder_of_the_first_format_is_continued(tiny_model, tiny_data, tmp_path):
    whole = run(tiny_model, tiny_data, tmp_path / "whole")
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=10)
    folder = RunFolder(tmp_path / "run")
    header = folder.header()
    assert header.pop("format") == FORMAT
    del header["settings"]["execution"]
    folder.write_json("run.json", {"format": 1, **header})
    state = folder.read_json("searcher.json")
    folder.write_json("searcher.json", {key: state[key] for key in ("told", "exhausted", "state")})
    assert outcome(run(tiny_model, tiny_data, tmp_path / "run")) == outcome(whole)
    assert folder.header()["format"] == FORMAT


def test_an_event_of_a_later_version_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(
        encode_line({"event": "dreamt", "number": 0}) + encode_line({"event": "lost", "number": 0})
    )
    with pytest.raises(
        RunError, match="line 1 of 2 is not an event of a run: event 'dreamt' is unknown"
    ):
        read_journal(path)


def test_a_second_writer_is_noticed_before_anything_is_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as one, Journal(path) as two:
        one.append(Trial(0, (1,), Evaluation(fitness=0.5)))
        with pytest.raises(RunError, match="somebody else writes to it"):
            two.append(Trial(0, (1,), Evaluation(fitness=0.5)))
    assert len(path.read_bytes().splitlines()) == 1


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(Trial(0, (1,), Evaluation(fitness=0.5)))
        before = path.read_bytes()

        def full(_descriptor):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
                journal.append(Trial(1, (1,), Evaluation(fitness=0.5)))
        assert path.read_bytes() == before
        journal.append(Trial(1, (2,), Evaluation(fitness=0.5)))
    assert list(read_journal(path).trials) == [0, 1]


def test_more_workers_than_cores_are_advised_against_and_only_needed_ones_start(tmp_path):
    settings = SearchSettings(
        budget=Budget(macs=0.5), n_trials=1, execution=ExecutionOptions(workers=10_000)
    )
    words = "10,000 workers of 1 thread.* share .* CPU"
    with (
        pytest.warns(UserWarning, match=words),
        workers_for(settings, RunFolder(tmp_path), None) as executor,
    ):
        assert executor.alive == 0


def test_another_schedule_or_window_is_another_run(tiny_model, tiny_data, tmp_path):
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=3)
    with pytest.raises(RunError, match=r"execution\.window: 0 in the folder, 8 now"):
        run(
            tiny_model,
            tiny_data,
            tmp_path / "run",
            n_trials=3,
            execution=ExecutionOptions(window=8),
        )
    with pytest.raises(
        RunError, match=r"execution\.schedule: 'rounds' in the folder, 'asynchronous' now"
    ):
        run(
            tiny_model,
            tiny_data,
            tmp_path / "run",
            n_trials=3,
            execution=ExecutionOptions(schedule="asynchronous"),
        )
