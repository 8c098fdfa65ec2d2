"""Several budgets in one run: what is shared, what it costs, what each knows, and that it survives being stopped."""

import dataclasses
import json
import shutil

import pytest

from abcsearch import Budget, FrontResult, resume, search
from abcsearch.channels.options import LatencyOptions
from abcsearch.channels.source import Sliced
from abcsearch.config import parse_run, read_config, read_run
from abcsearch.errors import BudgetError, ConfigError, ModelError, RunError, TrustError
from abcsearch.planning.dry_run import rehearse_front
from abcsearch.preparation.registry import PREPARATIONS
from abcsearch.runs.config_run import run_front_config
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.runs.disk.journal import read_journal
from abcsearch.runs.disk.known import read_known
from abcsearch.runs.front_settings import Front
from abcsearch.runs.settings import Part
from tests.knowing import Mapped
from tests.runs.test_knowledge import LOG, by_width, mapped
from tests.runs.test_search import outcome

BUDGETS = [Budget(macs=0.8), Budget(macs=0.5), Budget(macs=(0.2, 0.3))]
NAMES = ("1-macs-0.8", "2-macs-0.5", "3-macs-0.2-0.3")


class Stopped(KeyboardInterrupt):
    """As Ctrl-C."""


def run(model, data, folder, stop=10**9, **changes):
    LOG.clear()

    def stops(candidate, seed):
        if len(LOG) >= stop:
            raise Stopped
        return by_width(candidate, seed)

    settings = {
        "budgets": BUDGETS,
        "n_trials": 30,
        "searcher": Mapped,
        "evaluator": stops,
        **changes,
    }
    return search(model, data, run_dir=folder, **settings)


def outcomes(front):
    return [outcome(result) for result in front.results]


@pytest.fixture
def whole(tiny_model, tiny_data, tmp_path):
    return run(tiny_model, tiny_data, tmp_path / "whole")


def test_each_budget_is_searched_and_knows_those_before_it(whole, tmp_path):
    assert isinstance(whole, FrontResult)
    assert whole.names == NAMES
    for budget, name, result in zip(BUDGETS, NAMES, whole.results, strict=True):
        assert result.run_dir == tmp_path / "whole" / "budgets" / name
        assert result.settings.budget == budget
        assert all(result.task.constraint.allows(trial.candidate) for trial in result.trials)
    known = [read_known(RunFolder(result.run_dir)) for result in whole.results]
    assert known[0] is None
    first = {
        *mapped(whole.results[0].run_dir),
        *(trial.candidate for trial in whole.results[0].trials),
    }
    second = {trial.candidate for trial in whole.results[1].trials}
    assert known[1].structures == first
    assert known[2].structures == first | second
    assert len(LOG) == len(set(LOG))  # nothing is evaluated twice
    assert [(r.run_dir / "map").exists() for r in whole.results] == [True, False, False]


def test_all_budgets_together_take_at_most_twice_the_evaluations_of_one(
    tiny_model, tiny_data, tmp_path
):
    alone = run(tiny_model, tiny_data, tmp_path / "alone", budgets=None, budget=BUDGETS[0])
    evaluated = len(LOG)
    assert len(alone.trials) == 30
    for count in (1, 2, 3):
        front = run(tiny_model, tiny_data, tmp_path / str(count), budgets=BUDGETS[:count])
        assert [len(result.trials) for result in front.results] == [min(30, 60 // count)] * count
        assert len(LOG) <= 2 * evaluated


def test_network_ranking_and_evaluator_are_made_once(
    whole, tiny_model, tiny_data, tmp_path, monkeypatch
):
    assert len({id(result.task.source) for result in whole.results}) == 1
    made = []
    init = Sliced.__init__
    monkeypatch.setattr(
        Sliced, "__init__", lambda self, *args: (made.append(1), init(self, *args))[1]
    )
    run(tiny_model, tiny_data, tmp_path / "run")
    assert len(made) == 1


def test_the_front_is_the_winners_by_size(whole):
    points = whole.front()
    assert [point.macs for point in points] == sorted(
        (point.macs for point in points), reverse=True
    )
    assert {point.name: point.candidate for point in points} == {
        name: result.best.candidate for name, result in zip(NAMES, whole.results, strict=True)
    }


@pytest.mark.parametrize("stop", [2, 5, 17, 40])
def test_stopped_anywhere_it_goes_on_to_the_same_end(whole, tiny_model, tiny_data, tmp_path, stop):
    with pytest.raises(Stopped):
        run(tiny_model, tiny_data, tmp_path / "run", stop=stop)
    LOG.clear()
    objects = {"model": tiny_model, "data": tiny_data, "searcher": Mapped}
    again = resume(tmp_path / "run", evaluator=by_width, **objects)
    assert outcomes(again) == outcomes(whole)
    assert len(LOG) <= sum(len(result.trials) for result in whole.results) + 5 - stop
    # So does the same call
    assert outcomes(run(tiny_model, tiny_data, tmp_path / "run")) == outcomes(whole)
    assert not LOG


def test_it_goes_on_where_it_was_moved_to(whole, tiny_model, tiny_data, tmp_path):
    with pytest.raises(Stopped):
        run(tiny_model, tiny_data, tmp_path / "run", stop=40)
    (tmp_path / "run").rename(tmp_path / "moved")
    objects = {"model": tiny_model, "data": tiny_data, "searcher": Mapped, "evaluator": by_width}
    assert outcomes(resume(tmp_path / "moved", **objects)) == outcomes(whole)
    own = resume(tmp_path / "moved" / "budgets" / NAMES[1], **objects)  # each is a run of its own
    assert outcome(own) == outcomes(whole)[1]
    shutil.copytree(tmp_path / "moved" / "budgets" / NAMES[2], tmp_path / "alone")
    assert outcome(resume(tmp_path / "alone", **objects)) == outcomes(whole)[2]


def test_more_trials_for_all(whole, tiny_model, tiny_data, tmp_path):
    objects = {"model": tiny_model, "data": tiny_data, "searcher": Mapped, "evaluator": by_width}
    more = resume(tmp_path / "whole", n_trials=36, **objects)
    assert [len(result.trials) for result in more.results] == [24, 24, 24]
    assert [outcome(r)[0][:20] for r in more.results] == [own for own, _ in outcomes(whole)]
    with pytest.raises(
        RunError, match=r"budgets/1-macs-0.8: 24 trials done, and n_trials = 20 would leave out 4"
    ):
        resume(tmp_path / "whole", n_trials=30, **objects)
    with pytest.raises(RunError, match="--until cuts one journal: name the run folder of a budget"):
        resume(tmp_path / "whole", until=3, **objects)


def test_another_list_is_another_front(whole, tiny_model, tiny_data, tmp_path):
    there = r"budgets: \[\{'macs': 0.8\}, .*\] in the folder, \[\{'macs': 0.5\}\] now"
    with pytest.raises(RunError, match=rf"already holds another front: {there}.*abcsearch resume"):
        run(tiny_model, tiny_data, tmp_path / "whole", budgets=[Budget(macs=0.5)])
    with pytest.raises(RunError, match="already holds another front: seed: 0 in the folder, 1 now"):
        run(tiny_model, tiny_data, tmp_path / "whole", seed=1)
    with pytest.raises(
        RunError, match=r"whole holds several budgets; choose another folder for one"
    ):
        run(tiny_model, tiny_data, tmp_path / "whole", budgets=None, budget=Budget(macs=0.5))
    run(tiny_model, tiny_data, tmp_path / "one", budgets=None, budget=Budget(macs=0.5), n_trials=2)
    with pytest.raises(
        RunError, match="one holds a run of one budget; choose another folder for 3 budgets"
    ):
        run(tiny_model, tiny_data, tmp_path / "one")


BAD = {
    "an empty list": ([], ConfigError),
    r"found Budget\(macs=0.5": (Budget(macs=0.5), ConfigError),
    r"found .*, 0\.5\]": ([Budget(macs=0.7), 0.5], ConfigError),
    r"budgets\[0\] and budgets\[2\] are equal \(macs 0.7\)": (
        [Budget(macs=0.7), Budget(macs=0.5), Budget(macs=0.7)],
        ConfigError,
    ),
    r"budgets\[1\] \(macs 0.0001\): budget macs = 0.0001 cannot be reached": (
        [Budget(macs=0.5), Budget(macs=0.0001)],
        BudgetError,
    ),
    r"budgets\[1\] \(macs 0.05, params 0.5 to 1.0\): .*met together": (
        [Budget(macs=0.5), Budget(macs=0.05, params=(0.5, 1.0))],
        BudgetError,
    ),
    r"n_trials = 1 leaves none for each of 3 budgets, which share 2 times as many; set n_trials to 2 at least": (
        [Budget(macs=0.7), Budget(macs=0.5), Budget(macs=0.4)],
        ConfigError,
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_lists_are_named_before_anything_is_evaluated(tiny_model, tiny_data, tmp_path, text):
    budgets, error = BAD[text]
    with pytest.raises(error, match=text):
        run(
            tiny_model,
            tiny_data,
            tmp_path / "run",
            budgets=budgets,
            n_trials=1 if "n_trials" in text else 30,
        )
    assert not LOG
    if error is BudgetError:  # nothing is lost: a better list is taken
        run(tiny_model, tiny_data, tmp_path / "run", budgets=BUDGETS[:1], n_trials=2)


def test_the_same_bounds_in_other_words_are_one_too_many(whole, tiny_model, tiny_data, tmp_path):
    full = int(whole.results[0].task.graph.costs.macs([whole.results[0].task.space.full])[0])
    with pytest.raises(
        BudgetError,
        match=r"budgets\[0\] \(macs 0.5\) and budgets\[1\] \(macs \d+\) are the same on this",
    ):
        run(
            tiny_model,
            tiny_data,
            tmp_path / "run",
            budgets=[Budget(macs=0.5), Budget(macs=full // 2)],
        )


def test_one_budget_or_several(whole, tiny_model, tiny_data, tmp_path):
    with pytest.raises(ConfigError, match="give a budget or a list of budgets, both was given"):
        run(tiny_model, tiny_data, tmp_path / "run", budget=Budget(macs=0.5))
    with pytest.raises(ConfigError, match="neither was given"):
        run(tiny_model, tiny_data, tmp_path / "run", budgets=None)
    searcher = Mapped(whole.results[0].task.space)
    with pytest.raises(ConfigError, match="one searcher cannot search several budgets"):
        run(tiny_model, tiny_data, tmp_path / "run", searcher=searcher)


def test_of_a_searcher_that_looks_for_a_front_it_says_what_happens(tiny_model, tiny_data, tmp_path):
    with pytest.warns(UserWarning, match="'nsga2' looks for a front inside of each budget"):
        front = run(
            tiny_model,
            tiny_data,
            tmp_path / "run",
            searcher="nsga2",
            n_trials=6,
            budgets=BUDGETS[:2],
        )
    for result in front.results:
        assert result.best.fitness == max(trial.fitness for trial in result.trials)


def test_forward_time_is_measured_once_for_all(tiny_model, tiny_data, tmp_path):
    budgets = [Budget(macs=0.8), Budget(latency_ms=1.0), Budget(latency_ms=0.99)]
    latency = LatencyOptions(repeats=3, finalists=0)  # as measured again, none may be inside
    run(tiny_model, tiny_data, tmp_path / "run", budgets=budgets, n_trials=6, latency=latency)
    kept = [
        path.read_bytes() for path in sorted((tmp_path / "run" / "budgets").glob("*/latency.json"))
    ]
    assert len(kept) == 2
    assert len(set(kept)) == 1


@pytest.fixture(scope="module")
def config_text(tmp_path_factory):
    from tests.conftest import TINY_CONFIG

    text = (
        TINY_CONFIG.replace("budget = {macs = 0.5}", "").replace('"uniform", "random"', '"uniform"')
        + "budgets = [{macs = 0.7}, {macs = 0.4}]\n"
    )
    path = tmp_path_factory.mktemp("config") / "front.toml"
    path.write_text(text.replace("n_trials = 24", "n_trials = 8"))
    return path


def test_a_configured_front_trains_its_network_once(config_text, tmp_path):
    front = read_run(config_text)
    assert isinstance(front, Front)
    found = run_front_config(front, tmp_path / "run")
    files = [result.run_dir / "base.safetensors" for result in found.results]
    assert files[0].samefile(files[1])  # another name, not written twice
    for name in ("1-macs-0.7", "2-macs-0.4"):
        (tmp_path / "run" / "budgets" / name / "searcher.json").unlink()
        path = tmp_path / "run" / "budgets" / name / "journal.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert outcomes(resume(tmp_path / "run")) == outcomes(found)
    files[1].unlink()
    shutil.copytree(tmp_path / "run" / "budgets" / "2-macs-0.4", tmp_path / "apart")
    assert outcome(resume(tmp_path / "apart")) == outcomes(found)[1]
    (tmp_path / "run" / "budgets" / "2-macs-0.4" / "run.json").unlink()
    with pytest.warns(UserWarning, match="run.json is missing: made again from the config"):
        assert outcomes(resume(tmp_path / "run")) == outcomes(found)


def test_after_a_preparation_that_failed_a_front_goes_on_with_other_settings(config_text, tmp_path):
    options = {"strength": 0.05, "recipe": {"epochs": 1, "batch_size": 256, "lr": 1e20}}
    front = read_run(config_text, ["baselines=[]", "n_trials=2"])
    bad, good = (
        replace_prepare(front, {**options, "recipe": {**options["recipe"], "lr": lr}})
        for lr in (1e20, 0.02)
    )
    with pytest.raises(ModelError, match="lower lr"):
        run_front_config(bad, tmp_path / "run")
    base = next((tmp_path / "run").rglob("base.safetensors"))
    weights = base.read_bytes()
    run_front_config(good, tmp_path / "run")
    assert base.read_bytes() == weights
    with pytest.raises(
        RunError, match=r"another front: prepare\.options\.recipe\.lr: 0\.02 in the folder"
    ):
        run_front_config(bad, tmp_path / "run")


def replace_prepare(front, options):
    prepare = Part(name="slimming", options=options)
    return dataclasses.replace(front, settings=dataclasses.replace(front.settings, prepare=prepare))


def test_configs_say_budget_or_budgets(tmp_path, config_text):
    plain = {"n_trials": 4, "model": "small_resnet", "data": "digits", "pretrain": {}}
    front = parse_run({**plain, "budgets": [{"macs": 0.7}, {"macs": [0.4, 0.5], "params": 0.9}]})
    assert front.budgets == (Budget(macs=0.7), Budget(macs=(0.4, 0.5), params=0.9))
    assert front.names == ("1-macs-0.7", "2-macs-0.4-0.5-params-0.9")
    bad = {
        "set one of the two, found both": {"budgets": [{"macs": 0.7}], "budget": {"macs": 0.5}},
        r"found \[\]": {"budgets": []},
        r"found \{'macs': 0.7\}": {"budgets": {"macs": 0.7}},
        r"budgets\[1\].*macs = 1.5": {"budgets": [{"macs": 0.7}, {"macs": 1.5}]},
        r"budgets\[0\].*'mac'.*macs": {"budgets": [{"mac": 0.7}]},
        r"peers\[1\].*accuracy from 0 to 1": {
            "budgets": [{"macs": 0.7}],
            "peers": [
                {"name": "a", "macs": 1000, "accuracy": 0.5},
                {"name": "b", "macs": 0.3, "accuracy": 91.0},
            ],
        },
        r"'accuracy' in \[peers\[0\]\] is missing": {
            "budgets": [{"macs": 0.7}],
            "peers": [{"name": "a", "macs": 0.5}],
        },
        "are equal": {"budgets": [{"macs": 0.7}, {"macs": 0.7}]},
    }
    for text, tables in bad.items():
        with pytest.raises(ConfigError, match=text):
            parse_run({**plain, **tables})
    with pytest.raises(ConfigError, match=r"3 mistake"):
        parse_run({**plain, "budgets": [{"macs": 2.5}], "budget": {"macs": 0.5}, "seed": "a"})
    with pytest.raises(ConfigError, match="has several budgets"):
        read_config(config_text)


def test_a_rehearsal_says_how_many_and_how_long(config_text, tmp_path):
    front = read_run(config_text, ["searcher=tests.knowing:Mapped"])
    found = rehearse_front(front, tmp_path / "run", patience=0.0)
    assert found.budgets == ("1-macs-0.7", "2-macs-0.4")
    assert (found.trials, found.mapped) == (8, 5)
    assert found.search == pytest.approx(2 * 8 * found.evaluation.seconds)
    assert found.mapping == pytest.approx(5 * found.evaluation.seconds)
    text = "\n".join(found.lines)
    assert "5 evaluations of the map, 8 trials" in text
    assert "budgets: 1-macs-0.7, 2-macs-0.4; times are of all of them" in text
    json.dumps(found.to_plain())
    assert not (tmp_path / "run").exists()
    bad = dataclasses.replace(front, budgets=(Budget(macs=0.7), Budget(macs=0.00001)))
    with pytest.raises(BudgetError, match=r"budgets\[1\]"):
        rehearse_front(bad, tmp_path / "run", patience=0.0)


@pytest.mark.parametrize("prepare", [None, "slimmable"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_budget_out_of_reach_is_named_by_its_place_wherever_it_stands(
    config_text, tiny_model, tiny_data, tmp_path, index, prepare
):
    budgets = list(BUDGETS)
    budgets[index] = Budget(macs=0.0001)
    said = rf"^budgets\[{index}\] \(macs 0\.0001\): budget macs = 0\.0001 cannot be reached"
    recipe = {"epochs": 1, "batch_size": 16, "lr": 0.05}
    with pytest.raises(BudgetError, match=said):
        run(
            tiny_model,
            tiny_data,
            tmp_path / "python",
            budgets=budgets,
            prepare=prepare and {"name": prepare, "recipe": recipe},
        )
    front = dataclasses.replace(read_run(config_text), budgets=tuple(budgets))
    if prepare:
        part = Part(name=prepare, options={"recipe": recipe})
        front = dataclasses.replace(
            front, settings=dataclasses.replace(front.settings, prepare=part)
        )
    for begin in (run_front_config, rehearse_front):
        with pytest.raises(BudgetError, match=said):
            begin(front, tmp_path / "config")
    assert not list(tmp_path.iterdir())


def test_a_front_from_elsewhere_is_not_taken_at_its_word(tiny_model, tiny_data, tmp_path):
    run(tiny_model, tiny_data, tmp_path / "run", n_trials=2, budgets=BUDGETS[:1])
    path = tmp_path / "run" / "front.json"
    folder, plain = RunFolder(tmp_path / "run"), json.loads(path.read_text())
    plain.pop("checksum")
    folder.write_json("front.json", {**plain, "names": ["1-macs-0.8"], "id": "other"})
    with pytest.raises(
        TrustError, match=r"comes from elsewhere: it would have .*Mapped.* imported"
    ):
        resume(tmp_path / "run")
    for names in (["../../other"], ["1"], [], ["1-a", "1-a"]):
        folder.write_json("front.json", {**plain, "names": names})
        if names != ["1"]:
            with pytest.raises(
                RunError, match=r"front.json is damaged: names are one for each budget"
            ):
                resume(tmp_path / "run")
    path.write_text(path.read_text()[:50])
    with pytest.raises(RunError, match=r"front.json is damaged"):
        resume(tmp_path / "run")


def test_journals_are_whole(whole):
    for result in whole.results:
        assert len(read_journal(result.run_dir / "journal.jsonl").trials) == 20


@pytest.mark.parametrize("there", [False, True])
def test_a_front_that_is_refused_before_it_begins_leaves_nothing(
    tiny_model, tiny_data, tmp_path, there
):
    folder = tmp_path / "refused"
    if there:
        folder.mkdir()
    with pytest.raises(RunError, match="nowhere"):
        run(tiny_model, tiny_data, folder, known=[tmp_path / "nowhere"])
    assert folder.exists() == there
    assert not there or not list(folder.iterdir())
    assert run(tiny_model, tiny_data, folder).names == NAMES  # and the folder is free


def test_a_front_that_has_begun_stays_where_it_is_refused_later(
    whole, tiny_model, tiny_data, tmp_path
):
    folder = tmp_path / "whole"
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    with pytest.raises(RunError, match=r"nowhere|another front"):
        run(tiny_model, tiny_data, folder, known=[tmp_path / "nowhere"])
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize(
    "name",
    [
        "iterate",
        "slimmable",
        *(
            pytest.param(name, marks=pytest.mark.faults)
            for name in sorted(set(PREPARATIONS) - {"iterate", "slimmable"})
        ),
    ],
)
def test_what_was_prepared_for_another_budget_is_not_known(name, tiny_model, tiny_data, tmp_path):
    recipe = {"epochs": 2, "batch_size": 16, "lr": 0.05}
    options = {"widths": "free"} if name == "slimmable" else {}  # trained for any budget
    changes = {
        "budgets": BUDGETS[:2],
        "n_trials": 4,
        "searcher": "random",
        "evaluator": "adaptive_bn",
        "prepare": {"name": name, "recipe": recipe, **options},
    }
    front = run(tiny_model, tiny_data, tmp_path / "run", **changes)
    hashes = [
        json.loads((result.run_dir / "prepared.json").read_text())["weights"]
        for result in front.results
    ]
    known = read_known(RunFolder(front.results[1].run_dir))
    assert bool(known.sources) == (hashes[0] == hashes[1])
    if name in ("iterate", "slimmable"):
        assert bool(known.sources) == (name == "slimmable")
    stopped = tmp_path / "run" / "budgets" / NAMES[1]
    (stopped / "known.json").unlink()
    (stopped / "journal.jsonl").unlink()
    again = run(tiny_model, tiny_data, tmp_path / "run", **changes)
    assert outcomes(again) == outcomes(front)
