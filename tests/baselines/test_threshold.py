"""One threshold for all layers as a baseline, and as what a search begins with."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch import Budget, search
from abcsearch.baselines.registry import BASELINES
from abcsearch.channels.named import CRITERIA
from abcsearch.channels.orders import Ranking
from abcsearch.config import read_config
from abcsearch.data.registry import load_data
from abcsearch.errors import ConfigError, RankingError
from abcsearch.results.open_run import open_run
from abcsearch.results.report import make_report
from abcsearch.runs.config_run import run_config
from abcsearch.runs.task import Task
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts

NAMES = ("global_threshold", "global_threshold_per_mac")
WIDTHS = (4, 6, 8)  # of a chain of three layers, whose costs are those of products of neighbours


def toy(scores, budget, lowest=1):
    """A task of three layers that keep at least so many channels."""
    space = SearchSpace(
        tuple(Dimension(f"w{c}", "width", tuple(range(lowest, c + 1))) for c in WIDTHS)
    )
    return SimpleNamespace(
        source=SimpleNamespace(ranking=Ranking(criterion="toy", scores=tuple(scores))),
        graph=SimpleNamespace(costs=ToyCosts()),
        space=space,
        constraint=Budget(macs=budget).bind(space, ToyCosts()),
    )


def interleaved():
    """Scores 1 ... 18, dealt out to the three groups in turns, then to those that have room."""
    scores = [[], [], []]
    turns = itertools.cycle(range(3))
    for score in range(1, 1 + sum(WIDTHS)):
        scores[next(group for group in turns if len(scores[group]) < WIDTHS[group])].append(
            float(score)
        )
    return [np.array(own) for own in scores]


def structure(name, task):
    return BASELINES[name].structure(task)


@given(st.lists(st.floats(0.35, 1), min_size=2, max_size=4), st.integers(1, 3))
@pytest.mark.parametrize("name", NAMES)
def test_structures_are_the_largest_inside_their_budgets_and_lie_inside_each_other(
    name, budgets, lowest
):
    tasks = [toy(interleaved(), budget, lowest) for budget in sorted(budgets)]
    structures = [structure(name, task) for task in tasks]
    for task, found in zip(tasks, structures, strict=True):
        task.space.check(found)
        assert min(found) >= lowest
        assert task.constraint.allows(found)
        larger = [other for other in structures if sum(other) > sum(found)]
        assert not any(task.constraint.allows(other) for other in larger)
    for smaller, larger in itertools.pairwise(structures):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


def test_scores_are_compared_within_the_mean_of_their_group():
    """Groups whose scores differ by a factor alone are cut alike: a sum over nine layers counts no more than one."""
    plain = [np.arange(1.0, c + 1) for c in WIDTHS]
    factors = [1e-3, 9.0, 1e6]
    for budget in (0.2, 0.5, 0.8):
        alike = structure("global_threshold", toy(plain, budget))
        scaled = toy([own * factor for own, factor in zip(plain, factors, strict=True)], budget)
        assert structure("global_threshold", scaled) == alike
        shares = [kept / full for kept, full in zip(alike, WIDTHS, strict=True)]
        # Rising scores: cut evenly
        assert max(shares) - min(shares) <= 1 / min(WIDTHS) + 1 / max(WIDTHS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("score", [0.0, 1.0, -2.0])
def test_equal_scores_are_cut_the_same_way_every_time(name, score):
    scores = [np.full(c, score) for c in WIDTHS]
    found = {structure(name, toy([own.copy() for own in scores], 0.5)) for _ in range(3)}
    assert len(found) == 1
    assert toy(scores, 0.5).constraint.allows(found.pop())


def test_what_a_channel_costs_counts_per_mac():
    """Of equal channels those go first that save the most; these are of the middle layer, between two others."""
    scores = [np.full(c, 1.0) for c in WIDTHS]
    task = toy(scores, 0.9)
    assert structure("global_threshold_per_mac", task)[1] < WIDTHS[1]
    assert structure("global_threshold_per_mac", task)[::2] == WIDTHS[::2]


def test_a_score_that_is_none_is_refused():
    scores = interleaved()
    scores[1][0] = np.nan
    with pytest.raises(RankingError, match="a number for every channel"):
        structure("global_threshold", toy(scores, 0.5))


def half(tensors, group):
    """A criterion that has no scores for some groups, where l1 stands in: of another size, which is divided out."""
    return 1e6 * np.arange(group.channels) if group.channels == 4 else None


@pytest.mark.filterwarnings("ignore:criterion 'half'")
@pytest.mark.parametrize("criterion", ["l1", "random", "half"])
def test_a_row_of_the_report_that_meets_the_budget(tiny_config, tmp_path, monkeypatch, criterion):
    monkeypatch.setitem(CRITERIA._entries, "half", half)
    config = read_config(
        tiny_config,
        ["n_trials=2", f'baselines=["{NAMES[1]}", "{NAMES[0]}"]', f"criterion={criterion}"],
    )
    run_config(config, tmp_path / "run")
    rows = {row.network: row for row in make_report(open_run(tmp_path / "run")).rows}
    assert list(rows) == ["full", *NAMES, "bee_colony"]
    for name in NAMES:
        assert rows[name].macs <= 0.5 * rows["full"].macs
        assert rows[name].fitness is not None
    run = open_run(tmp_path / "run")
    for one in run.structures[1:-1]:
        run.result.task.space.check(one.candidate)


def test_a_search_begins_with_the_structures_that_it_is_told_by_name(tiny_config, tmp_path):
    config = read_config(
        tiny_config, ["n_trials=4", 'searcher.initial=["global_threshold", 0.3, "uniform"]']
    )
    result = run_config(config, tmp_path / "run")
    task = Task.of(result.task.base, load_data("digits"), config)
    first = structure("global_threshold", task)
    assert [trial.candidate for trial in result.trials[:2]] == [first, task.space.uniform(0.3)]
    rows = {own.name: own.candidate for own in open_run(tmp_path / "run").structures}
    assert result.task.space.nearest(rows["uniform"]) == result.trials[2].candidate
    again = run_config(dataclasses.replace(config, n_trials=5), tmp_path / "run")
    assert again.trials[:4] == result.trials


def test_given_evaluates_the_threshold_alone_from_python(tiny_model, tiny_data, tmp_path):
    given = {"name": "given", "initial": ["global_threshold"]}
    result = search(
        tiny_model,
        tiny_data,
        budget=Budget(macs=0.5),
        n_trials=9,
        searcher=given,
        run_dir=tmp_path / "a",
    )
    assert [t.candidate for t in result.trials] == [structure("global_threshold", result.task)]
    assert result.task.constraint.allows(result.best.candidate)


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        (
            '["global_treshold"]',
            r"searcher.initial\[0\] = 'global_treshold': .*did you mean 'global_threshold'",
        ),
        ('[0.5, "random"]', r"searcher.initial\[1\] = 'random': baseline 'random' is a search, or"),
        ('[2.5, "global_threshold"]', r"searcher.initial\[0\] = 2.5: a warm start is"),
        ('"global_threshold"', "searcher.initial is a list"),
    ],
)
def test_what_no_search_can_begin_with_is_told_with_the_config(tiny_config, initial, words):
    with pytest.raises(ConfigError, match=words):
        read_config(tiny_config, [f"searcher.initial={initial}"])


def test_a_name_is_looked_up_in_python_too(tiny_model, tiny_data, tmp_path):
    given = {"name": "random", "initial": ["global_treshold"]}
    with pytest.raises(ConfigError, match="did you mean 'global_threshold'"):
        search(
            tiny_model,
            tiny_data,
            budget=Budget(macs=0.5),
            n_trials=1,
            searcher=given,
            run_dir=tmp_path / "a",
        )
