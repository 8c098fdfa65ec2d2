"""What a climb tries is inside the budget and valued rightly; it ends where enumeration finds the maximum."""

import itertools

import numpy as np
import pytest

from abcsearch.budget import Budget, Constraint
from abcsearch.searchers.climbing import Climb
from abcsearch.searchers.quadratic import Quadratic
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts, toy_space


def forms_of(space, count, seed=0):
    """Random surfaces, each of two scales."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        quadratic = Quadratic(space, float(number % 2))
        made.append(quadratic.form(rng.normal(size=len(quadratic.kinds) + 1) * 0.3))
    return made


def climbed(space, constraint, forms, seed=0, **options):
    rng = np.random.default_rng(seed)
    starts = np.array([space.indices(constraint.repair(space.sample(rng), rng)) for _ in forms])
    return starts, *Climb(forms, constraint, rng)(starts, **options)


@pytest.mark.parametrize(
    "budget", [Budget(macs=0.4), Budget(macs=(0.3, 0.4)), Budget(macs=0.6, params=0.7), None]
)
def test_what_is_tried_is_inside_and_valued_as_the_form_says(budget):
    space = toy_space()
    constraint = Constraint(space) if budget is None else budget.bind(space, ToyCosts())
    forms = forms_of(space, 5)
    starts, rows, values = climbed(space, constraint, forms)
    for form, start, own, value in zip(forms, starts, rows, values, strict=True):
        good = np.isfinite(value)
        assert good[0]
        assert (own[0] == start).all()
        assert ((own[good] >= 0) & (own[good] <= space.last_indices)).all()
        assert (constraint.violation(space.values(own[good])) == 0).all()
        np.testing.assert_allclose(value[good], form(own[good]) - form.constant, atol=1e-9)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_best_of_enumeration_is_mostly_reached(share):
    choices = (1, 2, 4, 6, 8)
    space = SearchSpace(tuple(Dimension(f"d{i}", "width", choices) for i in range(5)))
    constraint = Budget(macs=share).bind(space, ToyCosts())
    every = np.array(list(itertools.product(range(5), repeat=5)))
    every = every[constraint.violation(space.values(every)) == 0]
    forms = forms_of(space, 24, seed=1)
    values = climbed(space, constraint, forms)[2]
    best = np.array([(form(every) - form.constant).max() for form in forms])
    typical = np.array([np.median(form(every) - form.constant) for form in forms])
    missed = (best - values.max(axis=1)) / (best - typical)
    assert (missed >= -1e-9).all()
    assert np.mean(missed < 1e-9) >= 0.5
    assert missed.mean() < 0.15


def test_more_rounds_are_never_worse():
    space = toy_space()
    constraint = Budget(macs=0.4).bind(space, ToyCosts())
    best = [
        climbed(space, constraint, forms_of(space, 4), rounds=rounds)[2].max(axis=1)
        for rounds in (0, 3, 12)
    ]
    assert (best[0] <= best[1]).all()
    assert (best[1] <= best[2]).all()
    assert best[0].sum() < best[2].sum()


def test_a_space_without_a_choice():
    space = SearchSpace((Dimension("a", "width", (3,)), Dimension("b", "width", (5,))))
    _, rows, values = climbed(space, Constraint(space), forms_of(space, 2))
    assert (rows == 0).all()
    assert np.isfinite(values).all()
