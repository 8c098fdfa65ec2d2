"""Candidates, dimensions and spaces: coding is exact, sampling uniform, mistakes are named."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.errors import CandidateError
from abcsearch.space import Dimension, SearchSpace


@st.composite
def spaces(draw, most=12):
    dimensions = []
    for index in range(draw(st.integers(1, most))):
        if draw(st.booleans()):
            choices = tuple(sorted(draw(st.sets(st.integers(1, 2048), min_size=1, max_size=12))))
            dimensions.append(Dimension(f"d{index}", "width", choices, draw(st.integers(0, 4096))))
        else:
            dimensions.append(
                Dimension(f"d{index}", "block", draw(st.sampled_from([(0,), (1,), (0, 1)])))
            )
    return SearchSpace(tuple(dimensions))


@settings(deadline=None)
@given(spaces(), st.data())
def test_coding_is_exact(space, data):
    candidate = tuple(data.draw(st.sampled_from(d.choices)) for d in space.dimensions)
    point = space.encode(candidate)
    assert point.shape == (len(space),)
    assert point.dtype == np.float64
    assert ((point >= 0) & (point <= 1)).all()
    assert space.decode(point) == candidate
    assert space.at(space.indices(candidate)) == candidate
    space.check(candidate)
    nudged = point + np.array([data.draw(st.floats(-0.49, 0.49)) for _ in point]) / np.maximum(
        space.last_indices, 1
    )
    assert space.decode(nudged) == candidate


@settings(deadline=None)
@given(spaces(), st.data())
def test_every_point_is_decoded(space, data):
    point = [data.draw(st.floats(allow_nan=False)) for _ in space.dimensions]
    candidate = space.decode(point)
    space.check(candidate)
    for value, d, x in zip(candidate, space.dimensions, point, strict=True):
        assert value == d.choices[0] or x > 0
        assert value == d.choices[-1] or x < 1


@settings(deadline=None)
@given(spaces(most=4))
def test_size_counts_all_structures(space):
    every = list(itertools.islice(itertools.product(*(d.choices for d in space.dimensions)), 30000))
    assert len(every) == min(space.size, 30000)
    assert isinstance(space.size, int)


def test_size_is_exact_where_floats_are_not():
    space = SearchSpace(tuple(Dimension(str(i), "width", tuple(range(1, 10))) for i in range(53)))
    assert space.size == 9**53


@settings(deadline=None)
@given(spaces(), st.floats(0.001, 1))
def test_uniform_takes_the_nearest_choice(space, ratio):
    for value, d in zip(space.uniform(ratio), space.dimensions, strict=True):
        if d.kind == "block":
            assert value == d.choices[-1]
            continue
        distances = {choice: abs(choice - ratio * d.full) for choice in d.choices}
        assert distances[value] == min(distances.values())
        assert not any(
            distances[choice] == distances[value] for choice in d.choices if choice < value
        )


def test_of_two_equally_near_choices_the_smaller_is_taken():
    space = SearchSpace((Dimension("a", "width", (1, 3), 4), Dimension("b", "width", (2, 6, 7), 8)))
    assert space.uniform(0.5) == (1, 2)
    assert space.nearest([2.0, 6.5]) == (1, 6)
    assert space.nearest([2.1, 6.6]) == (3, 7)


def test_full_is_the_unpruned_network():
    space = SearchSpace(
        (
            Dimension("a", "width", (1, 9), 10),
            Dimension("b", "width", (4,)),
            Dimension("c", "block", (0, 1)),
        )
    )
    assert space.full == (10, 4, 1)
    space.check(space.full)
    assert space.encode(space.full).tolist() == [1.0, 0.0, 1.0]
    assert space.decode(space.encode(space.full)) == (9, 4, 1)
    with pytest.raises(CandidateError):
        space.check((10, 4, 0))


CHOSEN = SearchSpace(
    (
        Dimension("a", "width", (2, 4), 4),
        Dimension("b", "width", (3, 5), 8),
        Dimension("c", "block", (0, 1)),
        Dimension("of a", "criterion", (0, 1, 2), of="a", labels=("l1", "l2", "refit")),
        Dimension("of b", "criterion", (0, 1), of="b", labels=("l1", "l2")),
    )
)


def test_criteria_have_names_no_order_and_no_part_in_what_is_full():
    assert CHOSEN.full == (4, 8, 1, 0, 0)
    CHOSEN.check(CHOSEN.full)
    assert CHOSEN.uniform(0.5) == (2, 3, 1, 0, 0)
    assert CHOSEN.ordered.tolist() == [True, True, True, False, False]
    assert CHOSEN.largest_indices.tolist() == [1, 1, 1, 0, 0]
    assert CHOSEN.widths((2, 5, 0, 2, 1)) == {"a": (2, 4), "b": (5, 8), "c": (0, 1)}
    assert CHOSEN.criteria((2, 5, 0, 2, 1)) == {"a": "refit", "b": "l2"}
    assert CHOSEN.features[:, 1].tolist() == [0, 0, 1, 2, 2]
    assert CHOSEN.size == 2 * 2 * 2 * 3 * 2
    rng = np.random.default_rng(0)
    assert {CHOSEN.sample(rng)[3:] for _ in range(200)} == set(
        itertools.product(range(3), range(2))
    )


def test_one_structure_stands_for_all_that_a_criterion_does_not_change():
    every = list(itertools.product(*(dimension.choices for dimension in CHOSEN.dimensions)))
    for candidate in [*every, CHOSEN.full, (4, 8, 1, 2, 1)]:
        standing = CHOSEN.canonical(candidate)
        assert standing == (
            *candidate[:3],
            0 if candidate[0] == 4 else candidate[3],
            0 if candidate[1] == 8 else candidate[4],
        )
        assert CHOSEN.canonical(standing) == standing
    assert SPACE.canonical(SPACE.full) == SPACE.full


def test_halves_are_rounded_up():
    space = SearchSpace((Dimension("a", "width", (1, 2, 3, 4)),))
    assert [space.decode([x])[0] for x in (0.16, 1 / 6 + 1e-9, 0.5, 0.84)] == [1, 2, 3, 4]


def test_sampling_is_uniform():
    space = SearchSpace((Dimension("a", "width", (1, 2, 3)), Dimension("b", "block", (0, 1))))
    rng = np.random.default_rng(0)
    counts = Counter(space.sample(rng) for _ in range(6000))
    assert set(counts) == set(itertools.product((1, 2, 3), (0, 1)))
    # Chi square, 5 degrees: p = 0.001
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 20
    again = np.random.default_rng(0)
    assert Counter(space.sample(again) for _ in range(6000)) == counts
    assert all(type(value) is int for value in space.sample(rng))


def test_features():
    dimensions = (Dimension("a", "width", (1, 2), 4), Dimension("b", "block", (0, 1)))
    assert SearchSpace(dimensions).features.tolist() == [[0, 0, 4, 2], [1, 1, 1, 2]]
    described = SearchSpace(dimensions, ((0.5, 7.0), (1.5, 8.0)))
    assert described.features.tolist() == [[0, 0, 4, 2, 0.5, 7], [1, 1, 1, 2, 1.5, 8]]
    assert described.features.dtype == np.float64


SPACE = SearchSpace((Dimension("a", "width", (1, 3), 4), Dimension("b", "block", (0, 1))))


def chosen(choices, of="a", labels=("l1", "l2")):
    """A criterion."""
    return Dimension("x", "criterion", choices, of=of, labels=labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Dimension("a", "width", ()), "dimension 'a' has no choices"),
        (
            lambda: Dimension("a", "width", (2, 2)),
            "choices of dimension 'a' must be strictly ascending, found (2, 2)",
        ),
        (lambda: Dimension("a", "width", (3, 2)), "must be strictly ascending, found (3, 2)"),
        (
            lambda: Dimension("a", "width", (1.5, 2)),
            "choices of dimension 'a' must be whole numbers, found (1.5, 2)",
        ),
        (
            lambda: Dimension("a", "depth", (1,)),
            'dimension \'a\' has kind \'depth\'; choose "width", "block", "criterion" or "rank"',
        ),
        (
            lambda: Dimension("a", "width", (0, 1)),
            "choices of dimension 'a' are (0, 1); widths are at least 1",
        ),
        (
            lambda: Dimension("b", "block", (0, 2)),
            "choices of dimension 'b' are (0, 2); block switches are 0 or 1",
        ),
        (
            lambda: chosen((1, 2)),
            "choices of dimension 'x' are (1, 2); criteria are numbered from 0",
        ),
        (
            lambda: chosen((0, 1), labels=("l1",)),
            "says which width it is of and has a label for each choice",
        ),
        (
            lambda: chosen((0, 1), labels=("l1", "l1")),
            "says which width it is of and has a label for each choice",
        ),
        (
            lambda: chosen((0, 1), of=""),
            "says which width it is of and has a label for each choice",
        ),
        (
            lambda: Dimension("a", "width", (1, 2), of="b"),
            "dimension 'a' is a width of 'b' with labels (); a criterion",
        ),
        (lambda: Dimension("a", "width", (1,), labels=("l1",)), "others have neither"),
        (
            lambda: SearchSpace((chosen((0, 1)),)),
            "is a criterion of 'a', of which there is no other one, or no width",
        ),
        (
            lambda: SearchSpace((*CHOSEN.dimensions, chosen((0, 1)))),
            "a width has one criterion at most",
        ),
        (lambda: SearchSpace(()), "a search space needs at least one dimension"),
        (
            lambda: SearchSpace((*SPACE.dimensions, SPACE.dimensions[0])),
            "must be unique, found twice: a",
        ),
        (
            lambda: SearchSpace(SPACE.dimensions, ((1.0,),)),
            "descriptors need 2 rows of one length, found 1 of [1]",
        ),
        (
            lambda: SearchSpace(SPACE.dimensions, ((1.0,), ())),
            "rows of one length, found 2 of [0, 1]",
        ),
        (lambda: SPACE.check((1,)), "a candidate of this space has 2 values, found 1: (1,)"),
        (lambda: SPACE.check((2, 1)), "dimension 'a' is 2; allowed are (1, 3)"),
        (lambda: SPACE.encode((1, 2)), "dimension 'b' is 2; allowed are (0, 1)"),
        (lambda: SPACE.uniform(0), "a uniform keep ratio must be in (0, 1], found 0"),
        (lambda: SPACE.uniform(1.01), "a uniform keep ratio must be in (0, 1], found 1.01"),
        (lambda: SPACE.uniform(math.nan), "a uniform keep ratio must be in (0, 1], found nan"),
        (lambda: SPACE.uniform("a"), "a uniform keep ratio must be in (0, 1], found 'a'"),
        (
            lambda: SPACE.decode([0.5]),
            "a point of this space has shape (2,) and no NaN, found [0.5]",
        ),
        (lambda: SPACE.decode([0.5, math.nan]), "and no NaN, found [0.5 nan]"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(CandidateError, match=re.escape(message)):
        call()
