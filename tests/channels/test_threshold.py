"""A threshold on scores: a chain of structures, each inside the one before, and the largest of them in the budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.budget import Budget
from abcsearch.channels.threshold import largest_within, threshold_path
from abcsearch.errors import RankingError
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing import ToyCosts


@st.composite
def problems(draw):
    """A space of a few widths of any grid, perhaps with a block, and scores, most of them several times."""
    dimensions, scores = [], []
    for index in range(draw(st.integers(1, 4))):
        full = draw(st.integers(1, 9))
        choices = draw(st.sets(st.integers(1, full), min_size=1))
        dimensions.append(Dimension(f"w{index}", "width", tuple(sorted(choices)), full))
        score = st.sampled_from([0.0, 0.25, 0.5, 1.0, np.inf])
        scores.append(np.array(draw(st.lists(score, min_size=full, max_size=full))))
    if draw(st.booleans()):
        dimensions.append(Dimension("block", "block", (0, 1)))
    return SearchSpace(tuple(dimensions)), scores


@given(problems())
def test_the_path_is_a_chain_from_the_largest_to_the_smallest(problem):
    space, scores = problem
    path = threshold_path(scores, space)
    smallest = [d.choices[-1] if d.kind == "block" else d.choices[0] for d in space.dimensions]
    assert path[0].tolist() == space.values(space.last_indices).tolist()
    assert path[-1].tolist() == smallest
    for before, after in itertools.pairwise(path):
        space.check(tuple(after.tolist()))
        assert (after <= before).all()
        assert (after < before).sum() == 1
    costs = ToyCosts().macs(path)
    assert (np.diff(costs) < 0).all()
    assert threshold_path([own.copy() for own in scores], space).tolist() == path.tolist()


@given(problems(), st.sampled_from([-1.0, 0.0, 0.25, 0.4, 0.5, 1.0, 2.0]))
def test_what_the_threshold_spares_has_room(problem, threshold):
    """Every threshold is on the path: widths that are enough for the channels above it, and not a step more."""
    space, scores = problem
    left = [int((own > threshold).sum()) for own in scores]
    wanted = []
    for dimension, count in zip(space.dimensions, left, strict=False):
        enough = [c for c in dimension.choices if c >= count]
        wanted.append(enough[0] if enough else dimension.choices[-1])
    wanted += [1] * (len(space) - len(wanted))
    assert wanted in threshold_path(scores, space).tolist()


@given(problems(), st.floats(0.05, 1.0))
def test_the_largest_inside_the_budget_is_taken(problem, share):
    space, scores = problem
    path = threshold_path(scores, space)
    reach = [float(cost) for cost in ToyCosts().macs(path[[-1, 0]])]
    constraint = Budget(macs=int(reach[0] + share * (reach[1] - reach[0]))).bind(space, ToyCosts())
    inside = [tuple(row) for row in path.tolist() if constraint.allows(tuple(row))]
    assert largest_within(path, constraint) == inside[0]


def test_interleaved_scores_go_in_turns():
    space = SearchSpace(tuple(Dimension(f"w{i}", "width", tuple(range(1, 4)), 3) for i in range(3)))
    path = threshold_path(
        [np.array([1.0, 4, 7]), np.array([2.0, 5, 8]), np.array([9.0, 3, 6])], space
    )
    assert path.tolist() == [
        [3, 3, 3],
        [2, 3, 3],
        [2, 2, 3],
        [2, 2, 2],
        [1, 2, 2],
        [1, 1, 2],
        [1, 1, 1],
    ]


@pytest.mark.parametrize(
    "scores", [[np.ones(3)], [np.ones(3), np.ones(2)], [np.ones(3), np.array([1, np.nan, 2])]]
)
def test_a_score_for_every_channel_is_needed(scores):
    space = SearchSpace(tuple(Dimension(f"w{i}", "width", (1, 3)) for i in range(2)))
    with pytest.raises(RankingError, match="a number for every channel"):
        threshold_path(scores, space)
