"""The surface is the textbook's: evidence, its maximum, posterior and draws, of few trials and of many."""

import itertools

import numpy as np
import pytest
from scipy import stats

from abcsearch.searchers.quadratic import Form, Quadratic, Surface
from abcsearch.space import Dimension, SearchSpace


def space_of(n_dims, n_choices=5):
    return SearchSpace(
        tuple(Dimension(f"d{i}", "width", tuple(range(1, n_choices + 1))) for i in range(n_dims))
    )


def problem(n, n_dims=3, seed=0):
    """A quadratic that knows two forms, random structures, fitness values and log variances."""
    rng = np.random.default_rng(seed)
    quadratic = Quadratic(space_of(n_dims), 0.0, [random_form(n_dims, rng) for _ in range(2)])
    indices = rng.integers(5, size=(n, n_dims))
    return quadratic, indices, rng.normal(size=n), quadratic.prior() + rng.normal(size=9)


def random_form(n_dims, rng):
    pairs = rng.normal(size=(n_dims, n_dims))
    np.fill_diagonal(pairs, 0)
    table, scale = rng.normal(size=(n_dims, 5)), Quadratic(space_of(n_dims), 0.0).scale
    return Form(constant=float(rng.normal()), table=table, scale=scale, pairs=pairs + pairs.T)


def unexplained(quadratic, indices, fitness):
    """What is left of fitness beside what is expected of what is known."""
    return fitness - quadratic.columns(indices) @ quadratic.expected


def variances(quadratic, log_variances):
    """The prior variance of every column: that of its kind; the constant is nearly free."""
    return np.concatenate([[CONSTANT], np.exp(log_variances)[quadratic.kinds]])


def log_probability(quadratic, indices, targets, log_variances):
    """Of trials and log variances, without the constant of normals: by the whole covariance of the trials.

    Log variances are normal about the prior's.
    """
    columns = quadratic.columns(indices)
    covariance = (columns * variances(quadratic, log_variances)) @ columns.T
    covariance += np.exp(log_variances[-1]) * np.eye(len(targets))
    dense = stats.multivariate_normal(columns @ quadratic.expected, covariance).logpdf(targets)
    away = (log_variances - quadratic.prior()) / SPREAD
    return dense + len(targets) / 2 * np.log(2 * np.pi) - away @ away / 2


CONSTANT, SPREAD = 10.0, 2.0  # variance of the constant, deviation of log variances
FEW, MANY = 8, 40  # trials: less and more than the 15 columns of three dimensions and what is known


def test_columns_by_hand():
    dimensions = (
        Dimension("a", "width", (1, 2, 4)),
        Dimension("b", "block", (0, 1)),
        Dimension("fixed", "width", (7,)),
        Dimension("c", "width", (1, 3, 9, 27)),
    )
    quadratic = Quadratic(SearchSpace(dimensions), 0.0)
    assert quadratic.kinds.tolist() == [0, 0, 0, 1, 1, 1, 3, 2, 3, 4, 5, 6]
    found = quadratic.columns(np.array([[1, 1, 0, 0], [2, 0, 0, 2]]))
    # t = (0, 1, -1) and (1, -1, 1/3): constant, t, squares, pairs ab ac bc, and the sums over sqrt(3).
    root = 3**0.5
    expected = [
        [1, 0, 1, -1, 0, 1, 1, 0, 0, -1, 0, 2 / root, -1 / root],
        [
            1,
            1,
            -1,
            1 / 3,
            1,
            1,
            1 / 9,
            -1,
            1 / 3,
            -1 / 3,
            1 / 3 / root,
            19 / 9 / root,
            -4 / 3 / root,
        ],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_columns_of_criteria_are_one_for_every_choice_and_one_for_all_layers():
    dimensions = (
        Dimension("a", "width", (1, 2, 4)),
        Dimension("b", "width", (1, 3)),
        Dimension("of a", "criterion", (0, 1, 2), of="a", labels=("x", "y", "z")),
        Dimension("of b", "criterion", (0, 1), of="b", labels=("x", "y")),
    )
    quadratic, plain = (
        Quadratic(SearchSpace(dimensions), 0.0),
        Quadratic(SearchSpace(dimensions[:2]), 0.0),
    )
    indices = np.array([[1, 1, 2, 0], [2, 0, 1, 1]])
    found, before = quadratic.columns(indices), plain.columns(indices[:, :2])
    np.testing.assert_array_equal(np.delete(found, np.s_[6:14], axis=1), before)
    assert quadratic.kinds.tolist() == [
        *plain.kinds[:5].tolist(),
        *[0] * 5,
        *[4] * 3,
        *plain.kinds[5:].tolist(),
    ]
    third, root = 1 / 3, 2**0.5
    each = np.array(
        [[-third, -third, 2 * third, 0.5, -0.5], [-third, 2 * third, -third, -0.5, 0.5]]
    )
    shared = np.stack([each[:, 0] + each[:, 3], each[:, 1] + each[:, 4], each[:, 2]], axis=1) / root
    np.testing.assert_allclose(found[:, 6:14], np.hstack([each, shared]), atol=1e-12)


@pytest.mark.parametrize(("power", "middle"), [(0.0, 0.0), (0.5, -1 / 3), (1.0, -0.6)])
def test_widths_are_on_a_scale_from_minus_one_to_one(power, middle):
    quadratic = Quadratic(SearchSpace((Dimension("a", "width", (1, 4, 16)),)), power)
    np.testing.assert_allclose(
        quadratic.columns(np.array([[0], [1], [2]]))[:, 1], [-1, middle, 1], atol=1e-12
    )


def test_a_space_without_a_choice_has_a_constant_only():
    columns = Quadratic(SearchSpace((Dimension("a", "width", (3,)),)), 0.0).columns(
        np.zeros((4, 1), dtype=int)
    )
    np.testing.assert_array_equal(columns, np.eye(4)[0] * np.ones((4, 1)))


@pytest.mark.parametrize("n", [FEW, 14, 15, 16, MANY])
def test_evidence_is_the_most_that_any_variances_have(n):
    """That of a dense normal at the variances found, and no step from there leads to more."""
    quadratic, indices, targets, start = problem(n)
    surface = Surface(quadratic, start)
    for _ in range(10):  # each goes on from the last
        surface.estimate(indices, targets)
    here = surface.log_variances
    best = log_probability(quadratic, indices, targets, here)
    assert surface.evidence == pytest.approx(best, rel=1e-9, abs=1e-8)
    for direction in (*np.eye(9), *-np.eye(9)):
        for step in (0.01, 0.1, 1.0):
            near = log_probability(quadratic, indices, targets, here + step * direction)
            assert near < best + 1e-4 * step


def test_kernels_are_those_of_the_columns():
    widths = tuple(Dimension(f"d{i}", "width", (1, 2, 3, 4, 5)) for i in range(4))
    criteria = [
        Dimension(f"of {d.name}", "criterion", (0, 1, 2), of=d.name, labels=tuple("xyz"))
        for d in widths[:2]
    ]
    rng = np.random.default_rng(0)
    plain = Quadratic(SearchSpace((*widths, *criteria)), 0.0)
    known = [plain.form(rng.normal(size=len(plain.kinds) + 1)) for _ in range(2)]
    quadratic, indices = (
        Quadratic(SearchSpace((*widths, *criteria)), 0.0, known),
        rng.integers(3, size=(12, 6)),
    )
    columns = quadratic.columns(indices)[:, 1:]
    own = [columns[:, quadratic.kinds == kind] for kind in range(8)]
    np.testing.assert_allclose(
        quadratic.kernels(indices), [every @ every.T for every in own], atol=1e-12
    )


def test_a_form_and_a_weighted_sum_are_those_of_the_columns():
    dimensions = (
        Dimension("a", "width", (1, 2, 4)),
        Dimension("fixed", "width", (7,)),
        Dimension("b", "block", (0, 1)),
        *(Dimension(f"c{i}", "width", (1, 3, 9, 27)) for i in range(3)),
        Dimension("of a", "criterion", (0, 1, 2), of="a", labels=("x", "y", "z")),
        Dimension("of c1", "criterion", (0, 1), of="c1", labels=("x", "y")),
    )
    space, rng = SearchSpace(dimensions), np.random.default_rng(0)
    plain = Quadratic(space, 0.5)
    own = plain.form(rng.normal(size=len(plain.kinds) + 1))
    quadratic = Quadratic(space, 0.5, [own])
    rows = np.array([space.indices(space.sample(rng)) for _ in range(20)])
    weights, sums = rng.normal(size=len(quadratic.kinds) + 1), rng.normal(size=20)
    np.testing.assert_allclose(
        quadratic.form(weights)(rows), quadratic.columns(rows) @ weights, atol=1e-12
    )
    np.testing.assert_allclose(
        quadratic.weighted(rows, sums), quadratic.columns(rows).T @ sums, atol=1e-12
    )


def test_what_is_known_is_expected_to_be_true_until_trials_say_otherwise():
    rng = np.random.default_rng(0)
    known = random_form(6, rng)
    quadratic = Quadratic(space_of(6), 0.0, [known])
    indices, new = rng.integers(5, size=(2, 40, 6))
    truth = -known(indices)
    for count, sign in ((0, 1), (40, -1)):
        surface = Surface(quadratic, quadratic.prior())
        surface.condition(indices[:count], truth[:count])
        predicted = quadratic.form(surface.mean)(new)
        assert sign * np.corrcoef(predicted, known(new))[0, 1] > 0.9


@pytest.mark.parametrize("n", [FEW, 15, MANY])
def test_posterior_and_draws_are_the_textbooks(n):
    quadratic, indices, targets, log_variances = problem(n, seed=3)
    surface = Surface(quadratic, log_variances)
    surface.condition(indices, targets)
    columns, noise = quadratic.columns(indices), np.exp(log_variances[-1])
    prior = variances(quadratic, log_variances)
    covariance = np.linalg.inv(columns.T @ columns / noise + np.diag(1 / prior))
    left = unexplained(quadratic, indices, targets)
    mean = quadratic.expected + covariance @ columns.T @ left / noise
    np.testing.assert_allclose(surface.mean, mean, rtol=1e-6, atol=1e-8)
    rng, count = np.random.default_rng(0), 8000
    draws = np.array([surface.draw(rng) for _ in range(count)])
    deviations = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(axis=0) - mean) / deviations).max() < 5 / count**0.5
    found = np.cov(draws.T) / np.outer(deviations, deviations)
    assert np.abs(found - covariance / np.outer(deviations, deviations)).max() < 7 / count**0.5


def test_estimation_finds_noise_and_never_gets_worse():
    rng = np.random.default_rng(0)
    quadratic = Quadratic(space_of(4, 9), 1.0)
    indices = rng.integers(9, size=(300, 4))
    clean = quadratic.columns(indices) @ rng.normal(size=len(quadratic.kinds) + 1)
    for share in (0.05, 0.5):
        targets = clean / clean.std() * (1 - share) ** 0.5 + rng.normal(size=300) * share**0.5
        targets = (targets - targets.mean()) / targets.std()
        surface = Surface(quadratic, quadratic.prior())
        before = log_probability(quadratic, indices, targets, quadratic.prior())
        surface.estimate(indices, targets)
        assert surface.evidence > before
        assert share / 1.5 < np.exp(surface.log_variances[-1]) < share * 1.5


def standardised(values):
    values = np.array(values, dtype=np.float64)
    return (values - values.mean()) / (values.std() or 1.0)


draws = np.random.default_rng(0)
ODD = {
    "two trials": (np.array([[0] * 5, [1] * 5]), [0, 1]),
    "one structure": (np.zeros((30, 5), dtype=int), draws.normal(size=30)),
    "collinear": (np.repeat(np.arange(9)[:, None], 5, axis=1), np.arange(9)),
    "collinear, many": (
        np.repeat(np.tile(np.arange(9), 20)[:, None], 5, axis=1),
        np.tile(np.arange(9), 20),
    ),
    "no noise": (np.array(list(itertools.product(range(0, 9, 4), repeat=5))), np.arange(243)),
    "equal fitness": (draws.integers(9, size=(100, 5)), np.zeros(100)),
    "an outlier": (draws.integers(9, size=(100, 5)), [1e6] + [0] * 99),
    "noise only": (draws.integers(9, size=(100, 5)), draws.normal(size=100)),
    "one dimension varies": (
        draws.integers(9, size=(100, 5)) * [0, 0, 1, 0, 0],
        draws.normal(size=100),
    ),
    "two values": (draws.integers(9, size=(100, 5)), draws.integers(2, size=100)),
}


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("kind", ODD)
def test_odd_trials_make_no_trouble(kind, power):
    indices, fitness = ODD[kind]
    fitness = standardised(fitness)
    quadratic = Quadratic(space_of(5, 9), power)
    surface = Surface(quadratic, quadratic.prior())
    for _ in range(3):
        surface.estimate(indices, fitness)
    surface.condition(indices, fitness)
    assert np.isfinite(surface.evidence)
    assert np.isfinite(surface.log_variances).all()
    assert np.isfinite(surface.mean).all()
    assert np.isfinite(surface.draw(np.random.default_rng(0))).all()


@pytest.mark.parametrize("end", [-1, 1])
def test_variances_at_the_ends_of_their_range_can_be_factored(end):
    """Estimation is bounded there."""
    for n in (10, 300):
        indices = np.random.default_rng(n).integers(9, size=(n, 5)) // 8 * 8
        fitness = standardised(indices.sum(axis=1) ** 2)
        quadratic = Quadratic(space_of(5, 9), 0.0)
        for corner in itertools.product((-8, 8), repeat=2):
            log_variances = quadratic.prior() + corner[0]
            log_variances[-1] = quadratic.prior()[-1] + end * corner[1]
            surface = Surface(quadratic, log_variances)
            surface.condition(indices, fitness)
            numbers = [*surface.mean, *surface.draw(np.random.default_rng(0))]
            surface.estimate(indices, fitness)
            assert np.isfinite([*numbers, surface.evidence, *surface.log_variances]).all()


def test_many_trials_in_many_dimensions():
    rng = np.random.default_rng(0)
    quadratic = Quadratic(space_of(60, 9), 0.0)
    indices = rng.integers(9, size=(600, 60))
    fitness = standardised(np.log1p(indices).sum(axis=1))
    surface = Surface(quadratic, quadratic.prior())
    surface.estimate(indices, fitness)
    surface.condition(indices, fitness)
    new = rng.integers(9, size=(200, 60))
    predicted = quadratic.columns(new) @ surface.mean
    assert np.corrcoef(predicted, np.log1p(new).sum(axis=1))[0, 1] > 0.99
