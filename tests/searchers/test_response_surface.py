"""A quadratic landscape is found soon; proposals are new, differ, and do not depend on the machine."""

import itertools

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from abcsearch.budget import Budget, Constraint
from abcsearch.errors import SearcherError
from abcsearch.searchers.response_surface import ResponseSurface, ResponseSurfaceOptions
from abcsearch.space import Dimension, SearchSpace
from abcsearch.trial import Evaluation, Trial


class Widths:
    def macs(self, candidates):
        return np.asarray(candidates, dtype=np.int64).sum(axis=1)


def space_of(n_dims, n_choices=9):
    return SearchSpace(
        tuple(Dimension(f"d{i}", "width", tuple(range(1, n_choices + 1))) for i in range(n_dims))
    )


class Landscape:
    """Minus a positive definite quadratic form around a point, in units of choices."""

    def __init__(self, n_dims, seed=0):
        rng = np.random.default_rng(seed)
        self.top = rng.uniform(3, 8, size=n_dims)
        root = np.eye(n_dims) + 0.3 * rng.normal(size=(n_dims, n_dims)) / n_dims**0.5
        self.form = root @ root.T

    def __call__(self, candidates):
        away = np.asarray(candidates) - self.top
        return -np.einsum("ni,ij,nj->n", away, self.form, away)


def play(searcher, n, fitness, start=0):
    trials = []
    while len(trials) < n:
        batch = searcher.ask(100)
        values = [fitness(candidate) for candidate in batch]
        evaluations = [Evaluation(fitness=v, failure="none" if v is None else None) for v in values]
        new = [
            Trial(start + len(trials) + i, c, e)
            for i, (c, e) in enumerate(zip(batch, evaluations, strict=True))
        ]
        searcher.tell(new)
        trials += new
        if not new:
            break
    return trials


@pytest.mark.parametrize("seed", range(3))
def test_a_listed_landscapes_constrained_optimum_is_found_soon(seed):
    space, landscape = space_of(4), Landscape(4, seed)
    constraint = Budget(macs=0.55).bind(space, Widths())
    every = np.array(list(itertools.product(range(1, 10), repeat=4)))
    best = landscape(every[constraint.violation(every) == 0]).max()
    searcher = ResponseSurface(space, constraint, seed=seed)
    trials = play(searcher, 60, lambda c: float(landscape([c])[0]))
    assert searcher._listable()
    assert max(trial.fitness for trial in trials) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(2))
def test_a_large_landscapes_constrained_optimum_is_come_close_to(seed):
    space, landscape, rng = space_of(14), Landscape(14, seed), np.random.default_rng(0)
    constraint = Budget(macs=0.5).bind(space, Widths())
    searcher = ResponseSurface(space, constraint, seed=seed)
    assert not searcher._listable()
    found = max(trial.fitness for trial in play(searcher, 150, lambda c: float(landscape([c])[0])))
    drawn = [constraint.fill(constraint.repair(space.sample(rng), rng), rng) for _ in range(1000)]
    # Hill climbing with all that the landscape tells, from the best of many random structures.
    here = np.array(drawn[int(np.argmax(landscape(drawn)))])
    unit = np.eye(14, dtype=int)
    moves = np.concatenate([unit, -unit, (unit[:, None] - unit).reshape(-1, 14)])
    while True:
        near = here + moves
        near = near[((near >= 1) & (near <= 9)).all(axis=1)]
        near = near[constraint.violation(near) == 0]
        if landscape(near).max() <= landscape([here])[0]:
            break
        here = near[int(np.argmax(landscape(near)))]
    best, typical = landscape([here])[0], float(np.median(landscape(drawn)))
    assert (best - found) / (best - typical) < 0.03


def learnt(**options):
    space, landscape = space_of(5), Landscape(5)
    searcher = ResponseSurface(
        space, Constraint(space), seed=1, options=ResponseSurfaceOptions(**options)
    )
    play(searcher, 28, lambda c: float(landscape([c])[0]))
    return searcher


@pytest.mark.parametrize("explore", [0.0, 0.5, 1.0])
def test_proposals_of_a_batch_differ_and_are_new(explore):
    searcher = learnt(explore=explore)
    known = set(searcher._known)
    batch = searcher.ask(100)
    assert len(batch) == len(set(batch)) == 8
    assert not known & set(batch)


def weights(searcher, monkeypatch):
    """Returns for each proposal whether its surface was the mean of its quadratic's."""
    made = []
    scores = "abcsearch.searchers.response_surface._Scores"

    class Spy:
        def __init__(self, members):
            made.extend(members)

        def of(self, columns):
            return np.stack([columns[quadratic] @ own for quadratic, own in made])

    monkeypatch.setattr(scores, Spy)
    searcher.ask(1)
    means = {
        surface.quadratic: surface.mean
        for surface in searcher._surfaces
        if hasattr(surface, "mean")
    }
    return [bool((own == means[quadratic]).all()) for quadratic, own in made]


@pytest.mark.parametrize(("explore", "expected"), [(0.0, {True}), (1.0, {False})])
def test_explore_is_the_share_of_drawn_surfaces(explore, expected, monkeypatch):
    found = weights(learnt(explore=explore), monkeypatch)
    assert len(found) == 8
    assert set(found) == expected


def targets(values, first=2):
    space = space_of(3)
    searcher = ResponseSurface(
        space, Constraint(space), options=ResponseSurfaceOptions(first=first)
    )
    searcher._fitness = [-np.inf if value is None else float(value) for value in values]
    return searcher._targets()


def test_targets_are_standardised_and_cut_off():
    found = targets([1, 2, 3, 4, 5])
    np.testing.assert_allclose(found, (np.arange(1, 6) - 3) / 2**0.5)
    # Best 10, median 9: below 6 all is equally bad, and so are failures.
    found = targets([10, 9, 9, 9, 8, 5, -1000, None])
    assert found[5] == found[6] == found[7] < found[4] < found[1] < found[0]
    np.testing.assert_allclose(found, targets([10, 9, 9, 9, 8, 6, 6, 6]))
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert found.std() == pytest.approx(1)


def test_failures_count_as_the_worst_where_nothing_is_cut_off():
    found = targets([1, 2, 3, 4, None])
    assert found[4] == found[0]


@pytest.mark.parametrize("values", [[], [1], [1, None], [None] * 5, [2, 2, 2], [2, None, 2]])
def test_trials_that_tell_nothing(values):
    assert targets(values) is None


def test_no_surface_before_enough_trials():
    assert targets([1, 2, 3], first=4) is None
    assert targets([1, 2, 3, 4], first=4) is not None


def test_a_median_equal_to_the_best_cuts_nothing_off():
    found = targets([3, 3, 3, 1, 0])
    assert found[4] < found[3] < found[0]


def test_failed_trials_are_kept_away_from():
    space = space_of(4)
    searcher = ResponseSurface(space, Constraint(space), seed=0)
    trials = play(searcher, 92, lambda c: None if c[0] > 5 else float(sum(c)))
    late = [trial for trial in trials[44:] if trial.evaluation.failure is not None]
    assert len(late) < 0.4 * len(trials[44:])
    assert max(trial.fitness for trial in trials) == 5 + 9 * 3


@pytest.mark.parametrize("n_dims", [5, 14])
def test_threads_do_not_change_proposals(n_dims):
    landscape, asked = Landscape(n_dims), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            searcher = ResponseSurface(space_of(n_dims), seed=3)
            asked.append(
                [
                    trial.candidate
                    for trial in play(searcher, 44, lambda c: float(landscape([c])[0]))
                ]
            )
    assert asked[0] == asked[1]


def test_listed_structures_that_are_known_score_minus_infinity():
    searcher = learnt()
    rows, _ = searcher._listed(_Flat())
    _, scores = searcher._listed(_Flat())
    known = [searcher.space.at(row) in searcher._known for row in rows]
    assert sum(known) == len(searcher._known)
    assert (np.isinf(scores[0]) == known).all()


class _Flat:
    def of(self, columns):
        return np.zeros((2, len(next(iter(columns.values())))))


@pytest.mark.parametrize("kept", [[3], [1, 2], []])
def test_dimensions_without_a_choice(kept):
    """Constant columns beside others, and none but the constant."""
    space = SearchSpace(
        tuple(Dimension(f"d{i}", "width", (1, 2, 5, 6) if i in kept else (3,)) for i in range(4))
    )
    searcher = ResponseSurface(space, options=ResponseSurfaceOptions(first=2, batch=2))
    assert len(play(searcher, 100, lambda c: float(sum(c)))) == 4 ** len(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "response_surface: batch is from 1 to 1000, found 0"),
        ({"first": -1}, "response_surface: first is from 0 to 10000, found -1"),
        ({"first": 3.5}, "response_surface: first is a whole number, found 3.5"),
        ({"explore": 1.1}, "response_surface: explore is from 0 to 1, found 1.1"),
        ({"explore": float("nan")}, "response_surface: explore is from 0 to 1, found nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SearcherError, match=message):
        ResponseSurfaceOptions(**options)
