"""The map: what a searcher wants to know before it begins is evaluated once, kept, and survives everything."""

import shutil

import pytest

from abcsearch import Budget, Evaluation, resume, search
from abcsearch.errors import CandidateError, RunError
from abcsearch.files import unsealed
from abcsearch.results.status import RunWatch
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from tests.knowing import Mapped, Strange
from tests.runs.test_search import outcome

LOG = []


def by_width(candidate, seed):
    """Fitness that tells which dimension matters; says what it was asked."""
    LOG.append(candidate)
    return Evaluation(
        fitness=float(sum(value * (i + 1) for i, value in enumerate(candidate))), metrics={"m": 1.0}
    )


def run(model, data, folder, **changes):
    LOG.clear()
    settings = {
        "budget": Budget(macs=0.6),
        "n_trials": 12,
        "searcher": Mapped,
        "evaluator": by_width,
        **changes,
    }
    return search(model, data, run_dir=folder, **settings)


def mapped(folder):
    return [
        trial.candidate
        for _, trial in sorted(read_journal(folder / "map" / "journal.jsonl").trials.items())
    ]


@pytest.fixture
def whole(tiny_model, tiny_data, tmp_path):
    """A run with a map, undisturbed."""
    return run(tiny_model, tiny_data, tmp_path / "whole")


def test_probes_are_evaluated_once_and_told_before_the_first_proposal(
    whole, tiny_model, tiny_data, tmp_path
):
    space = whole.task.space
    probes = list(dict.fromkeys(Mapped(space).probes()))
    assert mapped(tmp_path / "whole") == probes == LOG[: len(probes)]
    assert len(LOG) == len(set(LOG))  # a trial that is a probe is not evaluated again
    searcher = Mapped(space, whole.task.constraint)
    searcher.know(read_journal(tmp_path / "whole" / "map" / "journal.jsonl").trials.values())
    assert [trial.candidate for trial in whole.trials[:4]] == searcher.ask(4)
    unknowing = Mapped(space, whole.task.constraint).ask(4)
    assert [trial.candidate for trial in whole.trials[:4]] != unknowing
    assert whole.best in whole.trials  # a probe outside of the budget does not win
    assert all(whole.task.constraint.allows(trial.candidate) for trial in whole.trials)


def test_a_trial_that_the_map_has_is_not_evaluated_again(tiny_model, tiny_data, tmp_path):
    found = run(tiny_model, tiny_data, tmp_path / "run", budget=Budget(macs=1.0), n_trials=400)
    probes = set(mapped(tmp_path / "run"))
    both = [trial for trial in found.trials if trial.candidate in probes]
    assert both
    assert all(
        trial.evaluation.seconds == 0 and trial.evaluation.metrics == {"m": 1.0} for trial in both
    )
    assert len(LOG) == len(set(LOG)) == len(probes) + len(found.trials) - len(both)


@pytest.mark.parametrize("lines", [0, 1, 3])
@pytest.mark.parametrize("torn", [True, False])
def test_stopped_within_the_map_it_goes_on_to_the_same_end(
    whole, tiny_model, tiny_data, tmp_path, lines, torn
):
    folder = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", folder)
    journal = folder / "map" / "journal.jsonl"
    every = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(every[:lines]) + (every[lines][:20] if torn else b""))
    for name in (
        "journal.jsonl",
        "searcher.json",
        "best.json",
        "map/searcher.json",
        "map/best.json",
    ):
        (folder / name).unlink()
    LOG.clear()
    again = resume(folder, model=tiny_model, data=tiny_data, searcher=Mapped, evaluator=by_width)
    assert outcome(again) == outcome(whole)
    assert mapped(folder) == mapped(tmp_path / "whole")
    assert not set(LOG) & set(mapped(folder)[:lines])


def test_a_search_told_again_from_its_journal_knows_the_map(whole, tiny_model, tiny_data, tmp_path):
    journal = tmp_path / "whole" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:5]))
    (tmp_path / "whole" / "searcher.json").unlink()
    again = resume(
        tmp_path / "whole", model=tiny_model, data=tiny_data, searcher=Mapped, evaluator=by_width
    )
    assert outcome(again) == outcome(whole)


def test_a_map_that_is_deleted_is_evaluated_again_to_the_same_end(
    whole, tiny_model, tiny_data, tmp_path
):
    shutil.rmtree(tmp_path / "whole" / "map")
    (tmp_path / "whole" / "journal.jsonl").write_bytes(b"")
    (tmp_path / "whole" / "searcher.json").unlink()
    again = resume(
        tmp_path / "whole", model=tiny_model, data=tiny_data, searcher=Mapped, evaluator=by_width
    )
    assert outcome(again) == outcome(whole)


@pytest.mark.parametrize("file", ["run.json", "journal.jsonl"])
def test_a_damaged_map_is_named_with_what_to_do(whole, tiny_model, tiny_data, tmp_path, file):
    path = tmp_path / "whole" / "map" / file
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 3))
    (tmp_path / "whole" / "searcher.json").unlink()
    with pytest.raises(
        RunError, match=r"map/.*delete .*/whole/map: the map is then evaluated again"
    ):
        resume(
            tmp_path / "whole",
            model=tiny_model,
            data=tiny_data,
            searcher=Mapped,
            evaluator=by_width,
        )
    path.unlink()
    if file == "run.json":
        with pytest.raises(RunError, match=r"is the map of a run whose run.json is missing"):
            resume(
                tmp_path / "whole",
                model=tiny_model,
                data=tiny_data,
                searcher=Mapped,
                evaluator=by_width,
            )


def test_a_run_that_was_begun_without_a_map_goes_on_without(
    whole, tiny_model, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(Mapped, "probes", lambda self: [])
    old = run(tiny_model, tiny_data, tmp_path / "old", n_trials=8)
    longer = run(tiny_model, tiny_data, tmp_path / "longer", n_trials=16)
    monkeypatch.undo()
    again = resume(
        tmp_path / "old",
        model=tiny_model,
        data=tiny_data,
        searcher=Mapped,
        evaluator=by_width,
        n_trials=16,
    )
    assert again.trials[:8] == old.trials
    assert outcome(again) == outcome(longer)
    assert not (tmp_path / "old" / "map").exists()


def test_other_probes_than_those_of_the_map_are_refused(
    whole, tiny_model, tiny_data, tmp_path, monkeypatch
):
    probes = Mapped.probes
    monkeypatch.setattr(Mapped, "probes", lambda self: probes(self)[1:2])
    with pytest.raises(
        RunError, match=r"wants to know the fitness of other structures.*hash 5 .*in the folder, 1 "
    ):
        resume(
            tmp_path / "whole",
            model=tiny_model,
            data=tiny_data,
            searcher=Mapped,
            evaluator=by_width,
        )


def test_probes_outside_of_the_space_are_named(tiny_model, tiny_data, tmp_path):
    with pytest.raises(CandidateError, match="a candidate of this space has"):
        run(tiny_model, tiny_data, tmp_path / "run", searcher=Strange)


def test_failed_probes_can_be_evaluated_again(tiny_model, tiny_data, tmp_path):
    broken = []

    def fails(candidate, seed):
        if broken and candidate == broken[0]:
            raise ValueError("made to fail")
        return by_width(candidate, seed)

    sound = run(tiny_model, tiny_data, tmp_path / "sound", evaluator=fails)
    broken.append(mapped(tmp_path / "sound")[-1])  # that of the dimension that matters most
    failed = run(tiny_model, tiny_data, tmp_path / "run", evaluator=fails)
    assert outcome(failed) != outcome(sound)
    broken.clear()
    LOG.clear()
    objects = {"model": tiny_model, "data": tiny_data, "searcher": Mapped, "evaluator": fails}
    assert outcome(resume(tmp_path / "run", retry_failed=True, **objects)) == outcome(sound)


def test_status_counts_the_map_apart(whole, tmp_path):
    status = RunWatch(tmp_path / "whole").look()
    assert [search.done for search in status.searches] == [12]
    assert (status.map.done, status.map.total, status.map.name) == (5, 5, "map")
    assert status.finished
    journal = tmp_path / "whole" / "map" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:4]))
    assert RunWatch(tmp_path / "whole").look().map.done == 4


def test_what_the_map_belongs_to_is_in_it(whole, tmp_path):
    header, own = (
        RunFolder(tmp_path / "whole" / "map").header(),
        RunFolder(tmp_path / "whole").header(),
    )
    assert [header["identity"][key] == own["identity"][key] for key in ("model", "data")] == [
        True,
        True,
    ]
    for key in ("criterion", "evaluator", "space", "seed"):
        assert header["settings"][key] == own["settings"][key]
    assert unsealed((tmp_path / "whole" / "map" / "run.json").read_text())[1]  # it has a checksum
