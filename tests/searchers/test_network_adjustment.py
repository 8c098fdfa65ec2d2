"""Network adjustment: moves by known utilisation, scaled to the budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.budget import Budget
from abcsearch.errors import ConfigError, SearcherError
from abcsearch.runs.settings import Part, SearchSettings
from abcsearch.searchers.network_adjustment import adjusted, scaled
from abcsearch.searchers.registry import make_searcher
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import SearcherContract, ToyCosts, toy_fitness
from abcsearch.trial import Evaluation, Trial

FINE = SearchSpace(tuple(Dimension(f"w{i}", "width", tuple(range(4, 65)), 64) for i in range(6)))


class Sum:
    """Every channel costs as much as any other."""

    def macs(self, rows):
        return np.asarray(rows, dtype=np.int64).sum(axis=1)


class TestWithDiagnostics(SearcherContract):
    """The contract where evaluations say what layers are worth."""

    rounds = 200

    def make(self, space, constraint, seed):
        return make_searcher("network_adjustment", space, constraint, seed=seed, batch=3)

    def evaluated(self, space, candidate, number):
        if number % 7 == 6:
            return super().evaluated(space, candidate, number)
        worth = {
            d.name: (1 + i % 4) / value if d.kind == "width" else 0.1
            for i, (d, value) in enumerate(zip(space.dimensions, candidate, strict=True))
            if value
        }
        return Trial(
            number, candidate, Evaluation(fitness=toy_fitness(space, candidate), diagnostics=worth)
        )


def test_those_worth_most_get_what_those_worth_least_lose():
    here, worth = np.full(6, 32.0), np.array([3.0, 1, 2, 6, 5, 4])
    after = adjusted(FINE, here, worth, np.array([0.25, 0.125]))
    assert after.tolist() == [32.0, 16, 24, 48, 40, 32]
    # None moves: nothing moves
    assert adjusted(FINE, here, worth, np.zeros(0)).tolist() == here.tolist()
    # What cannot get more is passed over, and so is what cannot lose more; nobody does both.
    here = np.array([32.0, 4, 32, 64, 32, 32])
    assert adjusted(FINE, here, worth, np.array([0.25])).tolist() == [32.0, 4, 16, 64, 48, 32]
    many = adjusted(FINE, np.full(6, 32.0), worth, np.full(9, 0.125))
    assert sorted(many.tolist()) == [24.0] * 3 + [40.0] * 3


@given(st.lists(st.floats(4, 64), min_size=6, max_size=6), st.floats(0.1, 0.9))
def test_scaled_to_within_a_hundredth_of_the_budget(here, share):
    constraint = Budget(macs=share).bind(FINE, ToyCosts())
    target = scaled(constraint, np.array(here))
    nearest = FINE.nearest(target.tolist())
    (macs,) = ToyCosts().macs([nearest])
    assert macs <= constraint.limits[0].high
    full = np.array([64] * 6)
    inner = (target > 4) & (target < 64)
    if inner.all():  # whatever is clipped has no room to follow
        assert macs >= constraint.limits[0].high - 0.02 * float(ToyCosts().macs([full])[0])
        ratios = target / np.array(here)
        assert ratios.max() == pytest.approx(ratios.min())


def played(trials, worth, **options):
    """The structures of a search in which every layer's worth is a function of its width."""
    constraint = Budget(macs=0.5).bind(FINE, Sum())
    searcher = make_searcher("network_adjustment", FINE, constraint, **options)
    told = []
    while len(told) < trials:
        for candidate in searcher.ask(8):
            own = {f"w{i}": worth(i, value) for i, value in enumerate(candidate)}
            told.append(Trial(len(told), candidate, Evaluation(fitness=own["w0"], diagnostics=own)))
            searcher.tell(told[-1:])
    return [trial.candidate for trial in told]


def test_it_begins_with_one_share_for_all_and_ends_where_all_layers_are_worth_the_same():
    """Worth a_i / width^2 is that of losses a_i / width, whose least sum at a cost has widths as the roots of a_i."""
    weights = np.array([1.0, 4, 9, 1, 4, 9])
    asked = played(40, lambda i, width: weights[i] / width**2, moved=2, fewer=0.02, step=0.1)
    assert len(set(asked[0])) == 1
    wanted = np.sqrt(weights) / np.sqrt(weights).sum() * 192

    def distance(structure):
        return float(np.abs(np.array(structure) - wanted).max())

    assert distance(asked[-1]) < 8 < distance(asked[0]) / 2 + 8
    assert min(map(distance, asked)) < 6
    assert all(185 <= sum(structure) <= 192 for structure in asked)


def test_the_order_of_a_round_does_not_matter_but_its_fittest_does():
    one, other = (played(30, lambda i, width: (1 + i) / width, batch=3, seed=0) for _ in range(2))
    assert one == other
    assert one != played(30, lambda i, width: (1 + i) / width, batch=1, seed=0)


def test_what_has_one_choice_stays_and_bands_are_kept():
    one = SearchSpace((Dimension("a", "width", (3,), 8), Dimension("b", "width", (5,), 8)))
    searcher = make_searcher("network_adjustment", one)
    assert searcher.ask(3) == [(3, 5)]
    searcher.tell([Trial(0, (3, 5), Evaluation(fitness=0.5, diagnostics={"a": 1.0, "b": 2.0}))])
    assert searcher.ask(3) == []
    band = Budget(macs=(0.48, 0.5)).bind(FINE, ToyCosts())
    searcher = make_searcher("network_adjustment", FINE, band)
    for number in range(12):
        (asked,) = searcher.ask(1)
        assert band.allows(asked)
        worth = {f"w{i}": (1.0 + i) / value for i, value in enumerate(asked)}
        searcher.tell([Trial(number, asked, Evaluation(fitness=0.5, diagnostics=worth))])


@pytest.mark.parametrize(
    "options", [{"moved": -1}, {"step": 0}, {"less": 2.0}, {"batch": 0}, {"mvoed": 1}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(SearcherError, match=next(iter(options)).replace("mvoed", "moved")):
        make_searcher("network_adjustment", FINE, **options)


def test_an_evaluator_that_says_nothing_is_refused():
    searcher = Part(name="network_adjustment")
    for name, options, where in (
        ("adaptive_bn", {}, "evaluator"),
        ("short_training", {"utilisation": 0}, "evaluator"),
        ("cascade", {}, "evaluator.short_training"),
    ):
        with pytest.raises(
            ConfigError, match=rf"{name!r} says nothing: set {where}\.utilisation = 5"
        ):
            SearchSettings(
                budget=Budget(macs=0.5),
                n_trials=1,
                searcher=searcher,
                evaluator=Part(name=name, options=options),
            )
    for name, options in (
        ("adaptive_bn", {"utilisation": 1}),
        ("cascade", {"short_training": {"utilisation": 2}}),
        ("mine:evaluator", {}),
    ):
        SearchSettings(
            budget=Budget(macs=0.5),
            n_trials=1,
            searcher=searcher,
            evaluator=Part(name=name, options=options),
        )
